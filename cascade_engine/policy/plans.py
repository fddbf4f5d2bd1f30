"""Plans that the automatic policy chooses from."""

from __future__ import annotations

from typing import NamedTuple

from cascade_engine.policy.base import Action, Draft, Review, RowState, Segment


class Plan(NamedTuple):
    """How a row drafts until its next target review. All zeros: plain decoding."""

    drafter: int = 0
    """The neural level that drafts; 0: none."""
    tokens: int = 0
    """Tokens that it vouches for before the target reviews."""
    second: int = 0
    """A smaller neural level that drafts for it; 0: none."""
    second_tokens: int = 0
    """Tokens that the second vouches for before the drafter reviews them."""
    width: int = 0
    """Statistical tokens that the lowest of them reviews at a time; 0: it writes token by token."""
    tail: int = 0
    """Statistical tokens behind, which the target reviews unseen by the drafters."""
    nodes: int = 0
    """Nodes of the tree that the target reviews instead; 0: a chain."""
    siblings: int = 0
    """Runners-up beside each token of a neural draft, in a tree."""
    min_confidence: float = 0.0
    """Of a drafter alone, or above statistical drafts: its draft ends, before it has `tokens`,
    where its confidence falls below. 0: it does not."""

    def next_action(self, row: RowState) -> Action:
        n = len(row.frontier)
        if row.room <= 0:
            return Review(0)
        drafter, vouched = self.drafter, 0
        if drafter and not row.is_dormant(drafter):
            vouched = row.frontier[drafter]
            missing = self.tokens - (vouched - row.frontier[0])
            confidence = row.confidence(0, drafter) if self.min_confidence else 1.0
            if missing > 0 and row.room >= 1 and confidence >= self.min_confidence:
                return self._draft(row, n, drafter, missing, 2, self.min_confidence / confidence)
        if self.nodes:
            if not row.widened:
                return Draft(n, min(self.nodes, row.room), self.nodes)
            return Review(0, self.nodes)
        unseen = row.length - max(vouched, row.frontier[0])
        if unseen < self.tail and not row.exhausted:
            return Draft(n, min(self.tail - unseen, row.room))
        return Review(0)

    def _draft(
        self, row: RowState, n: int, level: int, missing: int, reviews: int, least: float = 0.0
    ) -> Action:
        """`missing`: tokens that the level has yet to vouch for, `least`: the confidence in them
        below which it need not; `reviews`: how many levels will yet append a token of their own.
        Each finds room for it, so that none is passed over because of what was drafted."""
        second = self.second
        if second and level != second and not row.is_dormant(second) and row.room >= reviews:
            behind = self.second_tokens - (row.frontier[second] - row.frontier[level])
            if behind > 0:
                return self._draft(row, n, second, behind, reviews + 1)
            return Review(level, 0, self.siblings if level == self.drafter else 0)
        siblings = self.siblings if level == self.drafter else 0
        if self.width and not row.exhausted and row.length == row.frontier[level]:
            room = row.room - reviews + 1
            if room > 0:
                whole = None if siblings else self._segment(level, missing, room, least)
                return Draft(n, min(self.width, room), segment=whole)
        if not self.width and not siblings and row.length == row.frontier[level]:
            return Draft(level, min(missing, row.room - reviews + 2), 0, least)
        return Review(level, 0, siblings)

    def _segment(self, level: int, missing: int, room: int, least: float) -> Segment:
        return Segment(level, missing, room + 1, self.width, 1, least)


PLAIN = Plan()
