"""Vertical cascades in one go: which drafts of a cycle a neural level and the statistics can make
without the policy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from cascade_engine.engine.items import segment_item
from cascade_engine.engine.row import Row
from cascade_engine.levels import NeuralLevel, SegmentItem, Segments, StatisticalLevel
from cascade_engine.policy import Draft


class Taken(NamedTuple):
    """Rows' parts in a call of `segments`, by neural level `level`."""

    level: int
    segments: Segments
    items: list[SegmentItem]


class Segmenting:
    """Takes over drafts of the statistical level that a policy goes on from as `Draft.segment`
    says. What rows get is what draft and review after review would have given."""

    def __init__(self, neural: Sequence[NeuralLevel], statistical: StatisticalLevel) -> None:
        self._contexts = [level.context for level in neural]
        self._least_context = min(self._contexts)
        self._segments = [None, *(Segments.of(level, statistical) for level in neural[1:])]

    def takes(self, drafts: Sequence[tuple[Row, Draft]]) -> Taken | None:
        """The rows' parts, if one level can draft for all of these rows, none of which asks the
        request's functions or has a level that falls asleep meanwhile."""
        items: list[SegmentItem] = []
        level = 0
        for row, action in drafts:
            segment = action.segment
            if segment is None or segment.level != (level or segment.level):
                return None
            item, level = segment_item(row, segment), segment.level
            if row.allowed is not None or self._falls_asleep(row, item.reach):
                return None
            items.append(item)
        segments = self._segments[level]
        return Taken(level, segments, items) if segments and segments.fits(items) else None

    def _falls_asleep(self, row: Row, reach: int) -> bool:
        if reach <= self._least_context:
            return False
        return any(row.length <= context < reach for context in self._contexts)
