"""The statistical level's part in a cycle: drafts, branches, and learning from what is complete."""

from __future__ import annotations

import time
from collections.abc import Sequence

from cascade_engine.engine.row import Row
from cascade_engine.engine.stats import EngineStats
from cascade_engine.engine.watching import Audience
from cascade_engine.levels import Proposal, StatisticalLevel, TokenRows
from cascade_engine.policy import Draft


class Drafting:
    """Asks the statistical level, number `level`, for running rows, and keeps it up with those that
    ask for trees; rows that do not spare this."""

    def __init__(
        self,
        statistical: StatisticalLevel,
        level: int,
        tokens: TokenRows,
        stats: EngineStats,
        audience: Audience,
    ) -> None:
        self._statistical = statistical
        self._level = level
        self._tokens = tokens
        self._stats = stats
        self._audience = audience

    def draft(self, drafts: Sequence[tuple[Row, Draft]]) -> None:
        """Appends tokens to rows, or branches to their trees."""
        begin = time.perf_counter()
        chains = [(row, action) for row, action in drafts if not action.nodes]
        counts = []
        if chains:
            counts = self._statistical.propose(
                [
                    Proposal(row.slot, row.length, a.tokens, row.prediction, row.final)
                    for row, a in chains
                ]
            )
        for (row, _), count in zip(chains, counts, strict=True):
            row.append_draft(self._level, count)
            self._audience.watcher.drafted(row, count)
        middle = time.perf_counter()
        trees = [(row, action) for row, action in drafts if action.nodes]
        self._draft_trees(trees)
        end = time.perf_counter()
        seconds = end - begin
        for listener in self._audience.listening():
            if chains:
                listener.drafted(self._level, chains, middle - begin)
            if trees:
                listener.drafted(self._level, trees, end - middle)
        self._stats.count_pass(self._level, len(drafts), seconds)
        for row, _ in drafts:
            row.stats.levels[self._level].count_call(seconds / len(drafts))
        self._audience.watcher.passed("draft", self._level, begin, seconds)

    def finish(self, row: Row) -> None:
        """The row is complete: learns from its answer where the level learns."""
        if row.counted or self._statistical.learns:
            self._count(row)
            self._statistical.finish(row.slot)
        self._statistical.leave(row.slot, row.final)

    def forget(self, row: Row) -> None:
        """The row is gone before its end; nothing is learnt."""
        if row.counted:
            self._statistical.release(row.slot)
        self._statistical.leave(row.slot)

    def _draft_trees(self, drafts: Sequence[tuple[Row, Draft]]) -> None:
        """Branches behind each row's end and, beside what was drafted, behind its final tokens."""
        for row, _ in drafts:
            self._count(row)
        ends = [(row, row.length, a.nodes) for row, a in drafts]
        finals = [(row, row.final, a.nodes) for row, a in drafts if row.length > row.final]
        for roots in (ends, finals):
            if not roots:
                continue
            trees = self._statistical.propose_trees(
                [
                    Proposal(row.slot, root, nodes, row.prediction, row.final)
                    for row, root, nodes in roots
                ]
            )
            for (row, root, _), tree in zip(roots, trees, strict=True):
                row.append_branches(self._level, self._tokens, root, tree)
                self._audience.watcher.branched(row, root, tree)

    def _count(self, row: Row) -> None:
        """The level knows the row's final tokens."""
        if row.counted == 0:
            tokens = self._tokens.read(row.slot, 0, row.final)
            self._statistical.begin(row.slot, tokens, len(row.prompt))
        elif row.counted < row.final:
            tokens = self._tokens.read(row.slot, row.counted, row.final)
            self._statistical.extend(row.slot, tokens)
        row.counted = row.final
