"""What a request gives back."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

from cascade_engine.engine.stats import ReviewCounts
from cascade_engine.levels import TokenLogprobs


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

    def count_call(self, seconds: float, calls: int = 1) -> None:
        self.calls += calls
        self.seconds += seconds


@dataclass
class RunStats:
    """Counts and times of one request. `seconds` runs from its admission to its last token."""

    levels: list[LevelStats]
    prompt_tokens: int = 0
    cached_tokens: int = 0
    """Prompt tokens whose keys and values another request had left in the target's cache."""
    new_tokens: int = 0
    seconds: float = 0.0
    target_calls: int = 0
    """Target passes that emitted tokens; prefill is not counted."""

    def __post_init__(self) -> None:
        self.reviews = ReviewCounts(len(self.levels))
        """What each target pass kept of the drafts, by level and draft position."""

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
            "cached_tokens": self.cached_tokens,
            "new_tokens": self.new_tokens,
            "seconds": self.seconds,
            "tokens_per_second": self.tokens_per_second,
            "target_calls": self.target_calls,
            "tokens_per_target_call": self.tokens_per_target_call,
            "tokens_per_pass": list(self.reviews.tokens_per_pass),
            "levels": [
                {
                    **asdict(level),
                    "reviewed_by_position": list(counts.drafted),
                    "accepted_by_position": list(counts.accepted),
                }
                for level, counts in zip(self.levels, self.reviews.levels, strict=True)
            ],
        }


class Batching(NamedTuple):
    """How rows are decoded together; none of it changes a token."""

    left_padded: bool = False
    """Dense passes, each row padded on its left, instead of ragged ones."""
    reuse_cache: bool = True
    """A prompt that begins like an earlier one starts from what is cached."""


class Capacity(NamedTuple):
    """What an engine holds and what it could still take."""

    running: int
    waiting: int
    free_rows: int
    free_tokens: int
    """Room in the key/value cache of the level that has the least."""


class Piece(NamedTuple):
    """One emitted token."""

    text: str
    """Text that became final with this token; empty while a character is incomplete or a stop
    string may have begun."""
    token_id: int
    level: int
    """The level that drafted it; 0 is the target."""
    logprobs: TokenLogprobs | None = None


piece_of: Callable[[Iterable[Any]], Piece] = partial(tuple.__new__, Piece)
"""A piece of these four fields, without a call in Python: every token becomes one."""


@dataclass(frozen=True, slots=True)
class StepOutput:
    """What an engine step made final of one sample of a request."""

    request_id: str
    index: int
    """Which of the request's `n` samples."""
    prompt_token_ids: list[int] = field(repr=False)
    seed: int
    """The seed in force, given or drawn; samples of one request share it."""
    stats: RunStats = field(repr=False)
    """Of the sample so far; the engine goes on counting in it."""
    pieces: list[Piece]
    finish_reason: str | None = None
    """None while it runs; else "stop", "length" or "abort"."""
    stop: int | str | None = None
    """The token id or string that ended it, where the reason is "stop"."""

    @property
    def token_ids(self) -> list[int]:
        return [piece.token_id for piece in self.pieces]

    @property
    def text(self) -> str:
        return "".join(piece.text for piece in self.pieces)

    def followed_by(self, later: StepOutput) -> StepOutput:
        """This output and a later one of the same sample as one."""
        return replace(later, pieces=self.pieces + later.pieces)


@dataclass
class Generation:
    """A sample of a request."""

    request_id: str
    index: int
    prompt_token_ids: list[int]
    pieces: list[Piece] = field(repr=False)
    finish_reason: str | None
    """"stop" (an end-of-sequence token, a stop token or string), "length" (max_tokens or the
    context's end), "abort"; None while it runs."""
    stop: int | str | None
    """The token id or string that ended it."""
    seed: int
    """The seed in force, given or drawn; samples of one request share it."""
    stats: RunStats = field(repr=False)

    @classmethod
    def of(cls, out: StepOutput) -> Generation:
        """All outputs of a sample, joined by `followed_by`, as its result."""
        return cls(
            request_id=out.request_id,
            index=out.index,
            prompt_token_ids=out.prompt_token_ids,
            pieces=out.pieces,
            finish_reason=out.finish_reason,
            stop=out.stop,
            seed=out.seed,
            stats=out.stats,
        )

    @property
    def text(self) -> str:
        """The text of the new tokens, as it continues the prompt's; stop strings are cut off."""
        return "".join(piece.text for piece in self.pieces)

    @property
    def token_ids(self) -> list[int]:
        """The new tokens; a stop token is the last of them."""
        return [piece.token_id for piece in self.pieces]

    @property
    def sources(self) -> list[int]:
        """For each token, the level that drafted it; 0 is the target."""
        return [piece.level for piece in self.pieces]

    @property
    def logprobs(self) -> list[TokenLogprobs] | None:
        """Of each token, where they were asked for."""
        found = [piece.logprobs for piece in self.pieces if piece.logprobs is not None]
        return found if len(found) == len(self.pieces) and found else None

    def stats_dict(self) -> dict[str, Any]:
        """`stats` with the finish reason and the seed."""
        return {**self.stats.as_dict(), "finish_reason": self.finish_reason, "seed": self.seed}
