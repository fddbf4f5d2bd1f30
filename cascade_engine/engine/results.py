"""What a request gives back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple


@dataclass
class LevelStats:
    """What one level did for a request."""

    name: str
    calls: int = 0
    """Forward passes, or proposals of the statistical level."""
    drafted: int = 0
    """Tokens it appended as drafts; for the target, tokens of its own."""
    accepted: int = 0
    """Of those, how many were emitted."""
    seconds: float = 0.0
    """Its share of the time of the passes it took part in."""


@dataclass
class RunStats:
    """Counts and times of one request. `seconds` runs from its admission to its last token."""

    levels: list[LevelStats]
    prompt_tokens: int = 0
    new_tokens: int = 0
    seconds: float = 0.0
    target_calls: int = 0
    """Target passes that emitted tokens; prefill is not counted."""

    @property
    def tokens_per_target_call(self) -> float:
        return self.new_tokens / self.target_calls if self.target_calls else 0.0

    @property
    def tokens_per_second(self) -> float:
        return self.new_tokens / self.seconds if self.seconds else 0.0

    def as_dict(self) -> dict[str, Any]:
        """The figures as JSON-ready values."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "new_tokens": self.new_tokens,
            "seconds": self.seconds,
            "tokens_per_second": self.tokens_per_second,
            "target_calls": self.target_calls,
            "tokens_per_target_call": self.tokens_per_target_call,
            "levels": [vars(level) for level in self.levels],
        }


class StepOutput(NamedTuple):
    """Tokens of one request that an engine step made final."""

    request_id: str
    token_ids: list[int]
    sources: list[int]
    """For each token, the level that drafted it; 0 is the target."""
    finish_reason: str | None
    """None while the request runs; else "stop" or "length"."""

    def followed_by(self, later: StepOutput) -> StepOutput:
        """This output and a later one of the same request as one."""
        return later._replace(
            token_ids=self.token_ids + later.token_ids, sources=self.sources + later.sources
        )


class Piece(NamedTuple):
    """One token of a stream."""

    text: str
    """Text that the token completes; empty while a character is incomplete."""
    token_id: int
    level: int
    """The level that drafted it; 0 is the target."""


@dataclass
class Generation:
    """A finished request."""

    request_id: str
    prompt_token_ids: list[int]
    token_ids: list[int]
    sources: list[int]
    """For each token, the level that drafted it; 0 is the target."""
    text: str
    finish_reason: str
    """"stop" (an end-of-sequence token) or "length" (max_tokens or the context's end)."""
    seed: int
    """The seed in force, given or drawn."""
    stats: RunStats = field(repr=False)

    def stats_dict(self) -> dict[str, Any]:
        """`stats` with the finish reason and the seed."""
        return {**self.stats.as_dict(), "finish_reason": self.finish_reason, "seed": self.seed}
