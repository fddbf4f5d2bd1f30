"""What target reviews did with drafts, of one request or of all; what the engine has done."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

NOTED = 4096
"""Tokens that are counted together."""


@dataclass
class PositionCounts:
    """One level's tokens in the target's reviews, by draft position (0: the first token behind the
    target's frontier)."""

    drafted: list[int] = field(default_factory=list)
    """Tokens of this level that the target reviewed."""
    accepted: list[int] = field(default_factory=list)
    """Of those, how many it kept."""


class Noted(NamedTuple):
    """Tokens that are yet to be counted: of each its level and its draft position."""

    levels: list[int]
    positions: list[int]

    def add(self, levels: Iterable[int], positions: Iterable[int]) -> None:
        self.levels.extend(levels)
        self.positions.extend(positions)

    def take(self) -> Counter[tuple[int, int]]:
        counts = Counter(zip(self.levels, self.positions, strict=True))
        self.levels.clear()
        self.positions.clear()
        return counts


class ReviewCounts:
    """Target reviews and what they kept. Tokens count as reviewed, also behind a stop.

    Tokens are noted, and counted together where they are many or asked for.
    """

    def __init__(self, levels: int) -> None:
        self._levels = [PositionCounts() for _ in range(levels)]
        self.tokens_per_pass: list[int] = []
        """tokens_per_pass[k]: target reviews of a row that gave k + 1 tokens."""
        self._drafted = Noted([], [])
        self._accepted = Noted([], [])

    def add(self, sources: Sequence[int], positions: Sequence[int], kept: Collection[int]) -> None:
        """A target review of drafted tokens: token i was drafted by level `sources[i]` for draft
        position `positions[i]`; those of `kept` were accepted."""
        _add(self.tokens_per_pass, len(kept), 1)
        if sources:
            self._drafted.add(sources, positions)
            self._accepted.add(map(sources.__getitem__, kept), map(positions.__getitem__, kept))
            if len(self._drafted.levels) >= NOTED:
                self._count()

    @property
    def levels(self) -> list[PositionCounts]:
        self._count()
        return self._levels

    @property
    def tokens_per_review(self) -> float:
        """Mean, 0 without reviews."""
        reviews = sum(self.tokens_per_pass)
        tokens = sum((i + 1) * count for i, count in enumerate(self.tokens_per_pass))
        return tokens / reviews if reviews else 0.0

    def _count(self) -> None:
        for (level, position), count in self._drafted.take().items():
            _add(self._levels[level].drafted, position, count)
        for (level, position), count in self._accepted.take().items():
            _add(self._levels[level].accepted, position, count)


@dataclass
class LevelCounters:
    """One level, over all requests."""

    name: str
    passes: int = 0
    """Forward passes, each over one or more rows; for the statistical level, calls."""
    rows: int = 0
    """Rows in those passes."""
    seconds: float = 0.0


class EngineStats:
    """What the engine has done since it was loaded or since `reset`. Always on, the counters cost
    next to nothing; `snapshot` makes them JSON-ready."""

    def __init__(self, level_names: Sequence[str]) -> None:
        self._names = list(level_names)
        self.reset()

    def reset(self) -> None:
        self.levels = [LevelCounters(name) for name in self._names]
        self.requests = {"added": 0, "finished": 0, "aborted": 0, "preempted": 0}
        self.prompt_tokens = 0
        self.cached_prompt_tokens = 0
        self.new_tokens = 0
        self.prefill_seconds = 0.0
        self.step_seconds = 0.0
        self.steps = 0
        self.reviews = ReviewCounts(len(self._names))

    def count_pass(self, level: int, rows: int, seconds: float, passes: int = 1) -> None:
        counters = self.levels[level]
        counters.passes += passes
        counters.rows += rows
        counters.seconds += seconds

    def snapshot(self) -> dict[str, Any]:
        return {
            "requests": dict(self.requests),
            "prompt_tokens": self.prompt_tokens,
            "cached_prompt_tokens": self.cached_prompt_tokens,
            "new_tokens": self.new_tokens,
            "steps": self.steps,
            "step_seconds": self.step_seconds,
            "prefill_seconds": self.prefill_seconds,
            "tokens_per_target_review": self.reviews.tokens_per_review,
            "tokens_per_pass": list(self.reviews.tokens_per_pass),
            "levels": [
                {**asdict(level), **asdict(counts)}
                for level, counts in zip(self.levels, self.reviews.levels, strict=True)
            ],
        }


def _add(counts: list[int], index: int, count: int) -> None:
    if index >= len(counts):
        counts += [0] * (index + 1 - len(counts))
    counts[index] += count
