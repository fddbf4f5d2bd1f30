"""How Skeleton-of-Thought is to be done."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from cascade_engine.chat import ChatFormat
from cascade_engine.errors import RequestError
from cascade_engine.params import SamplingParams

Expand = Literal["fork", "ragged", "left-padded"]
Use = Literal["auto", "on", "off"]


@dataclass(frozen=True, kw_only=True)
class SotOptions:
    """Raises RequestError for values out of range."""

    use: Use = "on"
    """"auto" asks the router and the engine's load; "off" decodes ordinarily."""
    prompts: str | Path = "default"
    """"default", "short", "embedded" and "embedded-t5" (for the models of the package) or a
    folder."""
    chat_format: ChatFormat | str | None = None
    """A built-in format by name; None: the target's own template."""
    expand: Expand = "fork"
    """How points are written: from a shared cache of what their prompts have in common, each by
    itself in ragged passes, or in dense left-padded ones. The tokens are the same."""
    params: SamplingParams = field(default_factory=lambda: SamplingParams(max_tokens=1024))
    """For every request; `max_tokens` is the ordinary answer's. With a seed, point i has seed + i,
    since equal seeds would give different points the same noise."""
    skeleton_tokens: int = 256
    point_tokens: int = 256
    min_points: int = 2
    """With fewer, the question is answered ordinarily."""
    max_points: int = 16
    points_per_request: int = 1
    """More cost fewer prompt tokens and take longer."""
    dependencies: bool = False
    """Ask for "(after 1, 2)" where a point needs others. Such marks are heeded in any case."""

    def __post_init__(self) -> None:
        for name, allowed in (("use", get_args(Use)), ("expand", get_args(Expand))):
            if getattr(self, name) not in allowed:
                raise RequestError(
                    f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}"
                )
        for name in ("skeleton_tokens", "point_tokens", "min_points", "points_per_request"):
            _check(name, getattr(self, name), 1)
        _check("max_points", self.max_points, self.min_points)
        p = self.params
        one = (p.logprobs, p.prediction, p.decoder_prefix, p.allowed_tokens)
        if p.n != 1 or any(value is not None for value in one):
            raise RequestError(
                "Skeleton-of-Thought is many requests: leave n, logprobs, prediction, "
                "decoder_prefix and allowed_tokens out of params"
            )


def _check(name: str, value: object, low: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        raise RequestError(f"{name} must be an integer >= {low}, got {value!r}")
