"""Drafts that are reviewed where they are made: which steps of an engine can be one action of the
device."""

from __future__ import annotations

from collections.abc import Sequence

from cascade_engine.engine.row import Row
from cascade_engine.levels import (
    NeuralLevel,
    Proposal,
    ReviewItem,
    Speculated,
    Speculation,
    StatisticalLevel,
    Verdict,
)
from cascade_engine.policy import Draft, Policy, Review, RowState


class Speculating:
    """Takes over an engine step in which the statistical level, number `level`, drafts for the
    target alone, for all rows in the same way. What is drafted for a row is what that level would
    have drafted when asked once; the tokens are those of any other way."""

    def __init__(
        self, speculation: Speculation, level: int, contexts: list[int], context: int
    ) -> None:
        self._speculation = speculation
        self._level = level
        self._contexts = contexts
        self._context = context

    @classmethod
    def of(cls, neural: Sequence[NeuralLevel], statistical: StatisticalLevel) -> Speculating | None:
        """None where the backend drafts on the host."""
        speculation = Speculation.of(neural[0], statistical)
        if speculation is None:
            return None
        return cls(speculation, len(neural), [n.context for n in neural], neural[0].context)

    def takes(self, policy: Policy, drafts: Sequence[tuple[Row, Draft]]) -> bool:
        """Whether the policy reviews these drafts by the target next, whatever is found, and
        nothing else has to be looked at between."""
        trees = drafts[0][1].nodes > 0
        return all(
            (action.nodes > 0) == trees
            and action.level == self._level
            and _is_simple(row)
            and _reviews_next(policy, row.state(self._contexts), action)
            for row, action in drafts
        ) and self._speculation.fits(self._asked(drafts), trees)

    def review(self, drafts: Sequence[tuple[Row, Draft]]) -> list[tuple[ReviewItem, Verdict]]:
        """Drafts and reviews as the target's review does alone: the rows' tokens are written, their
        bookkeeping is the caller's. Raises ValueError like a review."""
        trees = drafts[0][1].nodes > 0
        found = self._speculation.review(self._asked(drafts), trees, self._level)
        for (row, _), (item, _) in zip(drafts, found, strict=True):
            if item.tree is None:
                row.append_draft(self._level, item.drafted)
            else:
                row.stats.levels[self._level].drafted += item.drafted
        return found

    def _asked(self, drafts: Sequence[tuple[Row, Draft]]) -> list[Speculated]:
        return [
            Speculated(
                Proposal(row.slot, row.length, action.nodes or action.tokens, row.prediction),
                min(action.tokens, self._context - row.length),
                row.sampler,
            )
            for row, action in drafts
        ]


def _is_simple(row: Row) -> bool:
    """Nothing of the row is wanted on the host before or beside its review, and nothing was drafted
    for it yet."""
    asks = row.allowed is not None or row.params.logprobs is not None or row.sampler.rejects
    return not asks and row.length == row.final and row.tree is None


def _reviews_next(policy: Policy, state: RowState, draft: Draft) -> bool:
    if draft.nodes:
        return policy.next_action(state._replace(widened=True)) == Review(0, draft.nodes)
    longer = state._replace(length=state.length + draft.tokens, room=state.room - draft.tokens)
    outcomes = (longer, state._replace(exhausted=True))
    return all(policy.next_action(outcome) == Review(0) for outcome in outcomes)
