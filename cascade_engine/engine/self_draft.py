"""Drafts called "self:N": the target's first layers and its head."""

from __future__ import annotations

import re
from os import PathLike

from cascade_engine.errors import RequestError
from cascade_engine.levels import NeuralLevel
from cascade_engine.models.config import LlamaConfig, ModelConfig
from cascade_engine.models.llama import LlamaWeights, leading_layers
from cascade_engine.ops import CpuBackend, CudaBackend

PREFIX = "self:"


def is_self_draft(draft: str | PathLike[str]) -> bool:
    """A directory of such a name is written "./self:N"."""
    return isinstance(draft, str) and draft.startswith(PREFIX)


def self_draft_layers(draft: str, name: str, target: ModelConfig) -> int:
    """How many layers of the target, called `name`, draft; RequestError where they cannot."""
    if not isinstance(target, LlamaConfig):
        raise RequestError(
            f"draft {draft!r}: {name} is an encoder-decoder T5, whose first layers do not draft; "
            "use a smaller T5 with its vocabulary"
        )
    layers = int(draft[len(PREFIX) :]) if re.fullmatch(r"self:\d{1,9}", draft) else 0
    if not 1 <= layers < target.num_layers:
        raise RequestError(
            f"draft {draft!r}: N of 'self:N' must be in 1..{target.num_layers - 1}, fewer than the "
            f"{target.num_layers} layers of {name} (a directory of that name: './{draft}')"
        )
    return layers


def self_draft_level(
    target: NeuralLevel, layers: int, backend: CpuBackend | CudaBackend, tokens: int
) -> NeuralLevel:
    """The level beside its target, whose cache holds `tokens` tokens."""
    assert isinstance(target.weights, LlamaWeights)
    weights = leading_layers(target.weights, layers)
    sizes = target.context, tokens, target.vocab_size, target.left_padded
    return NeuralLevel(f"{PREFIX}{layers}", weights, backend, target.rows, *sizes, owner=target)
