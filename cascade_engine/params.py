"""What a request asks for."""

from __future__ import annotations

import math
from dataclasses import dataclass

from cascade_engine.errors import RequestError

MAX_SEED = 2**64 - 1


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How tokens are chosen and when decoding stops. Speculation changes none of it.

    Raises RequestError for values out of range.
    """

    max_tokens: int = 256
    """New tokens at most; fewer when the model's context ends before."""
    temperature: float = 0.0
    """0: the most likely token (ties to the lowest id). Above: sampling from
    softmax(logits / temperature)."""
    top_k: int = 0
    """Sample among the k most likely tokens; 0: all."""
    top_p: float = 1.0
    """Sample among the fewest most likely tokens whose probabilities reach top_p; 1: all."""
    seed: int | None = None
    """Seed of the noise, 0..2**64-1. None: drawn anew, and reported in the result."""
    ignore_eos: bool = False
    """Go on past the model's end-of-sequence tokens."""

    def __post_init__(self) -> None:
        _check_int("max_tokens", self.max_tokens, 1)
        _check_float("temperature", self.temperature, 0.0, math.inf)
        _check_int("top_k", self.top_k, 0)
        _check_float("top_p", self.top_p, 0.0, 1.0)
        if self.top_p == 0.0:
            raise RequestError("top_p must be > 0, got 0.0; for the most likely token set top_k=1")
        if self.seed is not None:
            _check_int("seed", self.seed, 0)
            if self.seed > MAX_SEED:
                raise RequestError(f"seed must be at most 2**64 - 1, got {self.seed}")


def _check_int(name: str, value: object, low: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        raise RequestError(f"{name} must be an integer >= {low}, got {value!r}")


def _check_float(name: str, value: object, low: float, high: float) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not low <= float(value) <= high or math.isinf(float(value)):  # type: ignore[arg-type]
        limit = f">= {low:g}" if math.isinf(high) else f"in {low:g}..{high:g}"
        raise RequestError(f"{name} must be a finite number {limit}, got {value!r}")
