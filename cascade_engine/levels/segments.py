"""A neural level that drafts with the statistical level below it: the vertical cascade in one call
of native code."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from cascade_engine.levels.neural import NeuralLevel
from cascade_engine.levels.statistical import MAX_MATCH, StatisticalLevel
from cascade_engine.ops import Sampler


class SegmentItem(NamedTuple):
    """One row whose segment is drafted; all of its `length` tokens are reviewed by the level or a
    better one. The other numbers are policy.Segment's."""

    slot: int
    length: int
    tokens: int
    most: int
    width: int
    least: int
    sampler: Sampler
    reviews: int = 0
    """`Rejection.number` of the first review, where the sampler rejects."""
    prediction: torch.Tensor | None = None
    min_confidence: float = 0.0

    @property
    def drafts(self) -> int:
        """Under one review at most."""
        return min(self.most, max(self.least, 1) + self.width) - 1

    @property
    def reach(self) -> int:
        """Tokens of the row that the level reads at most."""
        return self.length + min(self.most, self.tokens + self.drafts) - 1


class SegmentDrafted(NamedTuple):
    """What a row has got."""

    proposed: list[int]
    """Drafts of the statistics that each review saw."""
    accepted: list[int]
    """Those that it kept; a token of the level's own follows them."""
    asked: int
    """Times that the statistics were."""


class SegmentPass(NamedTuple):
    """A review, one pass over rows; or what the statistics gave for it, asked up to `passes` times
    for a row and `rows` times in all."""

    passes: int
    rows: int
    tokens: int
    """Read by the level; proposed."""
    seconds: float


class SegmentsDrafted(NamedTuple):
    rows: list[SegmentDrafted]
    proposals: list[SegmentPass]
    reviews: list[SegmentPass]


class Segments:
    """Drafts of the statistics and a level's reviews of them, in turn: between them nothing returns
    to Python. Tokens, probabilities and caches are those of a call for each."""

    def __init__(self, level: NeuralLevel, statistical: StatisticalLevel) -> None:
        self._level = level
        self._table = statistical.sources.table

    @classmethod
    def of(cls, level: NeuralLevel, statistical: StatisticalLevel) -> Segments | None:
        """None where the backend has no such loop, or drafts are a drafter's of one's own."""
        able = level.cascades and type(statistical) is StatisticalLevel
        return cls(level, statistical) if able else None

    def fits(self, items: Sequence[SegmentItem]) -> bool:
        """Whether the longest segments fit the level's context, and the pages that are free, and
        the backend has a loop for rows like these."""
        level = self._level
        pages, missing = level.pages, 0
        for item in items:
            reach = item.reach
            if reach > level.row_tokens or item.drafts > level.backend.most_drafts:
                return False
            if item.sampler.rejects and not level.backend.rejects_in_segments:
                return False
            missing += pages.missing(item.slot, reach)
        return missing <= pages.available_pages

    def draft(self, items: Sequence[SegmentItem], lenience: float) -> SegmentsDrafted:
        """Appends to each row, whose cache then ends before its last token. A review whose logits
        allow no token ends all segments early; raises ValueError if it is the first, and leaves the
        rows as they were."""
        level = self._level
        pages = level.pages
        for item in items:
            level.catch_up(item.slot, item.length, item.length - 1)
        level.reserve([item.slot for item in items], [item.reach for item in items])
        found = level.backend.draft_segments(
            **level.loop_arguments([item.sampler for item in items]),
            rows=[_native(item, pages.length[item.slot]) for item in items],
            lenience=lenience,
            max_match=MAX_MATCH,
            table=self._table,
        )
        drafted = SegmentsDrafted(
            [SegmentDrafted(*row) for row in found[0]],
            [SegmentPass(*each) for each in found[1]],
            [SegmentPass(*each) for each in found[2]],
        )
        for item, (_, accepted, _) in zip(items, drafted.rows, strict=True):
            end = item.length + sum(accepted) + len(accepted) - 1
            pages.length[item.slot] = end
            pages.truncate(item.slot, end)
        return drafted


def _native(item: SegmentItem, cached: int) -> tuple[object, ...]:
    corpus = (0, 0)
    if item.prediction is not None:
        corpus = item.prediction.data_ptr(), len(item.prediction)
    return (item.slot, cached, *item[1:8], *corpus, item.min_confidence)
