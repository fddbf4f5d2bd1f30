"""What a session asks to have written, and what comes back; the same for engines and endpoints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cascade_engine.sot.prompts import Prompt

Stage = Literal["router", "skeleton", "point", "ordinary"]


@dataclass(frozen=True)
class Job:
    """One request of a session."""

    number: int
    """In the session, from 0."""
    stage: Stage
    prompt: Prompt
    max_tokens: int
    points: tuple[int, ...] = ()
    """The points that it writes."""


@dataclass(frozen=True)
class Outcome:
    """How a request ended. Counts are None where an endpoint does not tell them."""

    text: str
    """All that was written, also where it failed later."""
    finish_reason: str
    """"stop", "length", "abort", or "error"."""
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    new_tokens: int | None = None
    error: str | None = None
    attempts: int = 1
    token_ids: tuple[int, ...] = ()
    """Of the text; empty where an endpoint wrote it."""
    prompt_token_ids: tuple[int, ...] = ()
    decoder_prefix_ids: tuple[int, ...] = ()
    """What an encoder-decoder's decoder began with."""
