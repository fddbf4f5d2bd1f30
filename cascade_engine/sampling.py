"""From request parameters to the native sampler that levels choose and judge tokens with."""

from __future__ import annotations

from cascade_engine.ops import Sampler
from cascade_engine.params import SamplingParams


def make_sampler(params: SamplingParams, seed: int) -> Sampler:
    """The rule that turns logits at a position into a token: a pure function of the logits, the
    seed and the position (and, for penalties, of the tokens before)."""
    return Sampler(
        temperature=params.temperature, top_k=params.top_k, top_p=params.top_p, seed=seed
    )
