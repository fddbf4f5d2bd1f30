"""The statistical level's drafts and the target's review of them as one action of the device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cascade_engine.levels.neural import NeuralLevel
from cascade_engine.levels.rows import ReviewItem, TokenRows, Verdict
from cascade_engine.levels.statistical import LEAST_PROBABILITY, Proposal, StatisticalLevel
from cascade_engine.levels.tree import MAX_NODES, TokenTree
from cascade_engine.ops import Ask, CudaSpeculation, Reviewed, Sampler

MOST_LEARNED = 1 << 17
"""Tokens of finished requests that the device searches for each node; with more the host drafts."""


@dataclass(frozen=True, slots=True)
class Speculated:
    """What is asked for one row, all of whose tokens are final: as `proposal` says, of trees at
    most `depth` deep."""

    proposal: Proposal
    depth: int
    sampler: Sampler


class Speculation:
    """Drafts are written where the target reads them, accepted tokens where the next drafts are
    looked for; the host hears of both once, after the review."""

    def __init__(
        self, target: NeuralLevel, statistical: StatisticalLevel, action: CudaSpeculation
    ) -> None:
        self._target = target
        self._statistical = statistical
        self._action = action
        self._rows: TokenRows = target.rows

    @classmethod
    def of(cls, target: NeuralLevel, statistical: StatisticalLevel) -> Speculation | None:
        """None where the backend has no such action, or drafts are a drafter's of one's own."""
        if type(statistical) is not StatisticalLevel:
            return None
        sources = statistical.sources
        action = target.speculation(
            table=sources.table,
            doubts=sources.drafter.doubts,
            least=LEAST_PROBABILITY,
            learned=min(sources.learn_tokens, MOST_LEARNED),
        )
        return None if action is None else cls(target, statistical, action)

    def fits(self, asked: Sequence[Speculated], trees: bool) -> bool:
        """Whether drafts of this size can be made and reviewed here, with the pages that are
        free."""
        if trees and self._statistical.learned > MOST_LEARNED:
            return False
        pages, missing = self._target.pages, 0
        for each in asked:
            slot, length, count = _sizes(each.proposal)
            if not 0 < count <= MAX_NODES or pages.length[slot] != length - 1:
                return False
            missing += pages.missing(slot, length + count)
        return missing <= pages.available_pages

    def review(
        self, asked: Sequence[Speculated], trees: bool, source: int
    ) -> list[tuple[ReviewItem, Verdict]]:
        """What was drafted (by level `source`) and what the target decided. The rows have the
        accepted tokens and the target's own; the caller truncates its cache as after any review.
        Raises ValueError, with the rows as they were, when one's logits allow no token."""
        target, pages = self._target, self._target.pages
        if trees:
            drafter = self._statistical.sources.drafter
            self._action.learn(drafter.learned_changes, drafter.learned_text)
        asks = []
        for each in asked:
            slot, length, count = _sizes(each.proposal)
            pages.reserve(slot, length + count, target.storage.copy_page)
            started, sampler = self._rows.starts[slot], each.sampler
            prediction = each.proposal.prediction
            asks.append(Ask(slot, started, length, count, each.depth, sampler, prediction))
        try:
            reviewed = self._action.run(asks, trees)
        except ValueError:
            for ask in asks:
                pages.truncate(ask.row, ask.length - 1)
            raise
        return [self._settled(ask, each, source) for ask, each in zip(asks, reviewed, strict=True)]

    def _settled(self, ask: Ask, found: Reviewed, source: int) -> tuple[ReviewItem, Verdict]:
        n, length = found.num_accepted, ask.length
        kept: Sequence[int] = range(n)
        tree, unmoved = None, n
        if found.parents:
            kept = found.path
            nodes = len(found.tokens)
            tree = TokenTree(found.tokens, found.parents, [1.0] * nodes, [source] * nodes)
            unmoved = next((i for i, node in enumerate(kept) if node != i), n)
        tokens = [*(found.tokens[i] for i in kept), found.own]
        self._rows.append(ask.row, length, tokens, [1.0] * len(tokens))
        self._target.pages.length[ask.row] = length + n
        end = length if tree is not None else length + len(found.tokens)
        item = ReviewItem(ask.row, length, end, ask.sampler, tree=tree)
        return item, Verdict(n, found.own, path=found.path, num_unmoved=unmoved)


def _sizes(proposal: Proposal) -> tuple[int, int, int]:
    return proposal.slot, proposal.length, proposal.tokens
