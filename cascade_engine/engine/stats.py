"""What the engine has done since it was loaded or since `reset`; always on."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class LevelCounters:
    """One level, over all requests."""

    name: str
    passes: int = 0
    """Forward passes, each over one or more rows; for the statistical level, calls."""
    rows: int = 0
    """Rows in those passes."""
    seconds: float = 0.0
    drafted: list[int] = field(default_factory=list)
    """By draft position (0: the first token behind the target's frontier): tokens of this level
    that the target reviewed."""
    accepted: list[int] = field(default_factory=list)
    """Of those, how many it kept."""


class EngineStats:
    """Counters that cost next to nothing; `snapshot` makes them JSON-ready."""

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
        self.tokens_per_pass: list[int] = []
        """tokens_per_pass[k]: target reviews of a row that gave k + 1 tokens."""

    def count_pass(self, level: int, rows: int, seconds: float) -> None:
        counters = self.levels[level]
        counters.passes += 1
        counters.rows += rows
        counters.seconds += seconds

    def count_review(
        self,
        sources: Sequence[int],
        positions: Sequence[int],
        kept: Container[int],
        num_accepted: int,
    ) -> None:
        """A target review of drafted tokens: token i was drafted by level `sources[i]` for draft
        position `positions[i]`, and is one of `kept` if it was accepted."""
        _add(self.tokens_per_pass, num_accepted)
        for i, (level, position) in enumerate(zip(sources, positions, strict=True)):
            _add(self.levels[level].drafted, position)
            if i in kept:
                _add(self.levels[level].accepted, position)

    def snapshot(self) -> dict[str, Any]:
        passes = sum(self.tokens_per_pass)
        tokens = sum((i + 1) * count for i, count in enumerate(self.tokens_per_pass))
        return {
            "requests": dict(self.requests),
            "prompt_tokens": self.prompt_tokens,
            "cached_prompt_tokens": self.cached_prompt_tokens,
            "new_tokens": self.new_tokens,
            "steps": self.steps,
            "step_seconds": self.step_seconds,
            "prefill_seconds": self.prefill_seconds,
            "tokens_per_target_review": tokens / passes if passes else 0.0,
            "tokens_per_pass": list(self.tokens_per_pass),
            "levels": [asdict(level) for level in self.levels],
        }


def _add(counts: list[int], index: int) -> None:
    while len(counts) <= index:
        counts.append(0)
    counts[index] += 1
