"""What passes tell the automatic policy: their costs, and how much of drafts they kept."""

from __future__ import annotations

from collections.abc import Sequence

from cascade_engine.policy.base import (
    Draft,
    LevelSet,
    OutputSeen,
    ReviewSeen,
    RowSeen,
    SegmentsSeen,
    VerdictSeen,
)
from cascade_engine.policy.pace import Around
from cascade_engine.policy.planning import (
    TREE_SIZES,
    Estimate,
    Knowledge,
    PassCosts,
    RowRecord,
)
from cascade_engine.policy.plans import PLAIN

COLD = 3.0
"""Times the expected, beyond which the seconds of a level's first pass are not what passes take: it
touches the level's memory for the first time."""
BEHIND = 8
"""Tokens that a draft may have to read first in a pass that tells what it costs."""


class PassCounts:
    """The part of a Listener that hears of passes."""

    def __init__(self, levels: LevelSet) -> None:
        self.costs = PassCosts(list(levels.weight_bytes))
        self._neural = levels.neural
        self._known = Knowledge(levels.neural)
        self._around = Around()
        self._estimate, self._plan = Estimate(PLAIN), PLAIN
        """In force."""
        self._records: list[RowRecord] = []
        """Of the rows of the last review."""
        self._rows, self._reviews = 1, 0
        self._steady = True
        """The step so far did nothing but what the plan asks for."""
        self._cold = set(range(levels.neural + 1))
        """Levels that have not run yet."""
        self._warming = False
        """A level's first pass was part of the step, and took long."""

    def drafted(self, level: int, drafts: Sequence[tuple[RowSeen, Draft]], seconds: float) -> None:
        if level < self._neural:
            self._drafted_alone(level, drafts, seconds)
            return
        tokens = 0
        for _, action in drafts:
            tokens += action.nodes or action.tokens
        self._passed(level, len(drafts), tokens, seconds, drafts[0][1].nodes > 0)

    def _drafted_alone(
        self, level: int, drafts: Sequence[tuple[RowSeen, Draft]], seconds: float
    ) -> None:
        """As many reviews of nothing, a token of each row to a pass; but what the level had yet to
        read of the rows is read in the first."""
        self._around.passed(len(drafts), seconds)
        behind = False
        for row, action in drafts:
            record = self._record(row)
            behind = behind or row.length - action.tokens - record.read[level] > BEHIND
            self._known.drafted(record, level, self._neural, 0, 0, row.length)
        if behind:
            self._steady = False
            return
        tokens = sum(action.tokens for _, action in drafts)
        for drafted in range(max(action.tokens for _, action in drafts)):
            rows = sum(action.tokens > drafted for _, action in drafts)
            self._observe(level, rows, rows, seconds * rows / tokens)
            if self._warming:
                break

    def reviewed(
        self,
        level: int,
        rows: Sequence[RowSeen],
        items: Sequence[ReviewSeen],
        verdicts: Sequence[VerdictSeen],
        fed: int,
        seconds: float,
    ) -> None:
        self._passed(level, len(rows), fed, seconds, items[0].tree is not None)
        if not level:
            self._count_target(rows, items, verdicts)
            return
        plan = self._plan
        source = plan.second if level == plan.drafter and plan.second else self._neural
        for row, item, verdict in zip(rows, items, verdicts, strict=True):
            drafted, record = item.length - item.frontier, self._record(row)
            self._known.drafted(record, level, source, verdict.num_accepted, drafted, row.length)

    def drafted_segments(self, level: int, rows: Sequence[RowSeen], drafted: SegmentsSeen) -> None:
        """What is spent around the passes is spent once."""
        for each in drafted.proposals:
            if each.seconds:
                self._observe(self._neural, each.rows, max(each.tokens, 1), each.seconds)
        behind = False
        for row, segment in zip(rows, drafted.rows, strict=True):
            length, record = row.length, self._record(row)
            length -= sum(segment.accepted) + len(segment.accepted)
            behind = behind or length - record.read[level] > BEHIND
            for proposed, kept in zip(segment.proposed, segment.accepted, strict=True):
                length += kept + 1
                self._known.drafted(record, level, self._neural, kept, proposed, length)
        for i, each in enumerate(drafted.reviews):
            if i or not behind:
                self._observe(level, each.rows, each.tokens, each.seconds)
        self._steady = self._steady and not behind
        self._around.passed(
            len(rows), sum(e.seconds for e in (*drafted.proposals, *drafted.reviews))
        )

    def _passed(self, level: int, rows: int, tokens: int, seconds: float, tree: bool) -> None:
        self._observe(level, rows, tokens, seconds, tree)
        self._around.passed(rows, seconds)

    def _observe(
        self, level: int, rows: int, tokens: int, seconds: float, tree: bool = False
    ) -> None:
        if level in self._cold:
            self._cold.discard(level)
            if seconds > COLD * self.costs.seconds(level, rows, tokens, tree):
                self._warming, self._steady = True, False
                return
        self.costs.observe(level, rows, tokens, seconds, tree)

    def _record(self, row: RowSeen) -> RowRecord:
        if row.record is None:
            row.record = RowRecord(self._neural)
        return row.record

    def _count_target(
        self,
        rows: Sequence[RowSeen],
        items: Sequence[ReviewSeen],
        verdicts: Sequence[VerdictSeen],
    ) -> None:
        self._rows = len(rows)
        records = []
        for row, item, verdict in zip(rows, items, verdicts, strict=True):
            start, end, tree = item.frontier, item.length, item.tree
            fresh, record = row.record is None, self._record(row)
            if fresh and start == end and tree is None:
                self._steady = False  # its prompt was read in the same pass
            records.append(record)
            kept, seen = verdict.num_accepted, None
            if tree is not None:
                kept = 0
                for node in verdict.path:
                    if node != kept or kept >= end - start:
                        break
                    kept += 1
                path = verdict.path
                needed = tree.needed(path, TREE_SIZES, kept)
                seen = len(tree), tree.ranks(path), tree.likeliest(path, kept), needed
            self._known.reviewed(record, self._estimate, start, end, kept, seen, row.length)
        self._records = records
        self._reviews += len(rows)

    def _count_outputs(self, outputs: Sequence[OutputSeen]) -> int:
        """The tokens of a step; rows that ended are no longer planned for."""
        tokens = ended = 0
        for out in outputs:
            tokens += len(out.pieces)
            ended += out.finish_reason is not None
        if ended:
            self._known.ended += ended
            if ended < len(outputs) == len(self._records):
                pairs = zip(self._records, outputs, strict=True)
                self._records = [r for r, out in pairs if out.finish_reason is None]
        self._known.emitted += tokens
        return tokens
