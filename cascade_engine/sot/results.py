"""What Skeleton-of-Thought gives back."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from cascade_engine.errors import RequestError
from cascade_engine.sot.jobs import Job, Outcome
from cascade_engine.sot.plan import Skeleton


class SotPiece(NamedTuple):
    """A piece of text as it comes. Joined in their order, a point's pieces are its text."""

    point: int
    """From 1; 0: the skeleton, -1: an ordinary answer."""
    text: str


SKELETON, ORDINARY = 0, -1


@dataclass(frozen=True)
class Expansion:
    """A point as it was written."""

    index: int
    text: str
    """With the number and the point that it begins with."""
    finish_reason: str
    error: str | None = None
    """Why it failed; `text` holds what there was until then."""
    token_ids: tuple[int, ...] = field(default=(), repr=False)
    prompt_token_ids: tuple[int, ...] = field(default=(), repr=False)
    decoder_prefix_ids: tuple[int, ...] = field(default=(), repr=False)
    """What an encoder-decoder's decoder began with."""


@dataclass
class StageStats:
    """What a stage took. Counts are None where an endpoint does not tell them."""

    name: str
    requests: int = 0
    attempts: int = 0
    prompt_tokens: int | None = 0
    cached_tokens: int | None = 0
    """Prompt tokens that were cached already and were not fed again."""
    new_tokens: int | None = 0
    seconds: float = 0.0
    """From its first request to its last token."""

    @property
    def prefill_tokens(self) -> int | None:
        """Prompt tokens that were fed."""
        if self.prompt_tokens is None:
            return None
        return self.prompt_tokens - (self.cached_tokens or 0)

    def add(self, outcome: Outcome) -> None:
        self.requests += 1
        self.attempts += outcome.attempts
        for name in ("prompt_tokens", "cached_tokens", "new_tokens"):
            sum_, value = getattr(self, name), getattr(outcome, name)
            setattr(self, name, None if sum_ is None or value is None else sum_ + value)


@dataclass(frozen=True)
class Decision:
    """Whether a question is answered by skeleton and points, and why."""

    use_sot: bool
    reason: str
    score: float | None = None
    """The router's probability that it suits, where one was asked."""


@dataclass(frozen=True)
class Prices:
    """In any currency, for a million tokens."""

    prompt: float
    completion: float

    def __post_init__(self) -> None:
        for name, value in (("prompt", self.prompt), ("completion", self.completion)):
            if not value >= 0:
                raise RequestError(f"price of {name} tokens must be >= 0, got {value!r}")


@dataclass
class SotResult:
    """A whole answer. Where it was decoded ordinarily `used_sot` is False, `reason` says why."""

    question: str
    decision: Decision
    used_sot: bool
    reason: str
    text: str
    """The points joined in order, or the ordinary answer."""
    skeleton: Skeleton
    skeleton_text: str
    """As the model wrote it."""
    expansions: list[Expansion]
    stages: list[StageStats]
    seconds: float
    notes: list[str] = field(default_factory=list)

    @property
    def points(self) -> list[str]:
        return [point.text for point in self.skeleton.points]

    @property
    def failures(self) -> dict[int, str]:
        """By point: why it is not complete. An ordinary answer is -1."""
        return {e.index: e.error for e in self.expansions if e.error is not None}

    def total(self, name: str) -> int | None:
        """A count of `StageStats` ("prompt_tokens", "new_tokens", ...) over all stages; None where
        it is not known."""
        values = [getattr(stage, name) for stage in self.stages]
        return None if None in values else sum(values)

    def cost(self, prices: Prices) -> float | None:
        """What prompts and answers cost; None where their tokens are not known."""
        prompt, completion = self.total("prompt_tokens"), self.total("new_tokens")
        if prompt is None or completion is None:
            return None
        return (prompt * prices.prompt + completion * prices.completion) / 1e6

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "question": self.question,
            "used_sot": self.used_sot,
            "reason": self.reason,
            "router_score": self.decision.score,
            "text": self.text,
            "points": self.points,
            "after": [list(point.after) for point in self.skeleton.points],
            "stages": [
                {**asdict(stage), "prefill_tokens": stage.prefill_tokens} for stage in self.stages
            ],
            "seconds": self.seconds,
            "failures": self.failures,
            "notes": self.notes,
        }


def expansion_of(index: int, shown: str, job: Job, outcome: Outcome) -> Expansion:
    return Expansion(
        index,
        (shown + outcome.text).strip(),
        outcome.finish_reason,
        outcome.error,
        outcome.token_ids,
        outcome.prompt_token_ids,
        outcome.decoder_prefix_ids,
    )
