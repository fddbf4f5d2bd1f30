"""From `--size` to a small LLaMA with the target's vocabulary."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from cascade_engine.errors import RequestError
from cascade_engine.models.config import LlamaConfig
from cascade_engine.training.loop import require_transformers

NAMED = {
    "15m": "hidden=288,layers=6,heads=6,intermediate=768",
    "42m": "hidden=512,layers=8,heads=8,intermediate=1376",
    "110m": "hidden=768,layers=12,heads=12,intermediate=2048",
}
"""Shapes of well-known small models, named by what they weigh with a vocabulary of 32,000."""
KEYS = ("hidden", "layers", "heads", "kv_heads", "intermediate")
BASE_RATE, BASE_HIDDEN = 3e-3, 256


@dataclass(frozen=True)
class Shape:
    """A small LLaMA's sizes. Raises RequestError for heads that do not divide."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value < 1:
                raise RequestError(f"--size: {name} must be >= 1, got {value}")
        if self.hidden % self.heads or self.hidden // self.heads % 2:
            raise RequestError(
                f"--size: hidden={self.hidden} must be an even multiple of heads={self.heads}"
            )
        if self.heads % self.kv_heads:
            raise RequestError(f"--size: kv_heads={self.kv_heads} must divide heads={self.heads}")

    @property
    def learning_rate(self) -> float:
        """Peak of Muon's and AdamW's; smaller models take larger ones."""
        return float(BASE_RATE * (BASE_HIDDEN / self.hidden) ** 0.5)


def parse_size(text: str, target: LlamaConfig) -> Shape:
    """A name of NAMED, `hidden=288,layers=2` (further keys: heads, kv_heads, intermediate), or a
    fraction of the target's layer weights such as 0.05. Raises RequestError for anything else."""
    text = NAMED.get(text.lower(), text)
    try:
        share = float(text)
    except ValueError:
        return _from_keys(text)
    if not 0.0 < share < 1.0:
        raise RequestError(f"--size as a fraction must be between 0 and 1, got {text}")
    # Weights grow with layers x hidden^2: both shrink by the cube root.
    factor = share ** (1 / 3)
    hidden = max(32, round(target.hidden_size * factor / 32) * 32)
    layers = max(1, round(target.num_layers * factor))
    return _shape({"hidden": hidden, "layers": layers})


def _from_keys(text: str) -> Shape:
    values: dict[str, int] = {}
    for part in text.split(","):
        key, _, value = part.partition("=")
        if key not in KEYS or not value.isdecimal():
            raise RequestError(
                f"--size must be one of {', '.join(NAMED)}, a fraction such as 0.05, or sizes such "
                f"as hidden=288,layers=2 (keys: {', '.join(KEYS)}), got {text!r}"
            )
        values[key] = int(value)
    for key in ("hidden", "layers"):
        if key not in values:
            raise RequestError(f"--size {text!r} lacks {key}")
    return _shape(values)


def _shape(values: dict[str, int]) -> Shape:
    hidden = values["hidden"]
    heads = values.get("heads") or max(
        1, hidden // (64 if hidden % 64 == 0 and hidden > 64 else 32)
    )
    intermediate = values.get("intermediate") or -(-hidden * 8 // 3 // 32) * 32
    return Shape(hidden, values["layers"], heads, values.get("kv_heads") or heads, intermediate)


def build(shape: Shape, target: LlamaConfig, context: int) -> Any:
    """A randomly initialised draft, float32, with a tied head; torch's seed decides its weights.
    Positions beyond `context` it does not know: the engine goes on without it there."""
    transformers = require_transformers()
    config = transformers.LlamaConfig(
        vocab_size=target.vocab_size,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=context,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=target.bos_id,
        eos_token_id=list(target.eos_ids) or None,
        pad_token_id=None,
    )
    return transformers.LlamaForCausalLM(config)
