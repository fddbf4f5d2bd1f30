"""Model configurations read from a Hugging Face directory, checked value by value.

Whatever the engine does not compute is refused here, so that no model runs as something it is not.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import torch

from cascade_engine.errors import ConfigError
from cascade_engine.models.config_reader import Reader, parse_dtype, read_json
from cascade_engine.models.t5_config import T5Config, is_t5, parse_t5

# Parameters of each supported rope type, apart from the base; all are required but those below.
ROPE_PARAMETERS = {
    "default": (),
    "linear": ("factor",),
    "llama3": (
        "factor",
        "low_freq_factor",
        "high_freq_factor",
        "original_max_position_embeddings",
    ),
}
# Architecture switches that other families write; a value that turns one on changes the model.
UNSUPPORTED_SWITCHES = (
    "quantization_config",
    "compression_config",
    "sliding_window",
    "attention_chunk_size",
    "no_rope_layers",
    "per_layer_config",
    "num_local_experts",
    "num_experts",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "use_qk_norm",
    "use_alibi",
)


@dataclasses.dataclass(frozen=True)
class RopeConfig:
    """Rotary embedding: base and, by type, how its frequencies are stretched."""

    type: str = "default"
    theta: float = 10000.0
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_positions: int = 0


@dataclasses.dataclass(frozen=True)
class LlamaConfig:
    """A LLaMA-family decoder. `dtype` is the checkpoint's declared one, None when it has none."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    max_positions: int
    rope: RopeConfig
    attention_bias: bool
    mlp_bias: bool
    tie_word_embeddings: bool
    bos_id: int | None
    eos_ids: tuple[int, ...]
    dtype: torch.dtype | None

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor that a checkpoint of this model holds, by name."""
        hidden, inner = self.hidden_size, self.intermediate_size
        queries, keys = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        linears = [
            ("self_attn.q_proj", queries, hidden, self.attention_bias),
            ("self_attn.k_proj", keys, hidden, self.attention_bias),
            ("self_attn.v_proj", keys, hidden, self.attention_bias),
            ("self_attn.o_proj", hidden, queries, self.attention_bias),
            ("mlp.gate_proj", inner, hidden, self.mlp_bias),
            ("mlp.up_proj", inner, hidden, self.mlp_bias),
            ("mlp.down_proj", hidden, inner, self.mlp_bias),
        ]
        shapes: dict[str, tuple[int, ...]] = {
            "model.embed_tokens.weight": (self.vocab_size, hidden),
            "model.norm.weight": (hidden,),
        }
        if not self.tie_word_embeddings:
            shapes["lm_head.weight"] = (self.vocab_size, hidden)
        for layer in range(self.num_layers):
            prefix = f"model.layers.{layer}."
            shapes[prefix + "input_layernorm.weight"] = (hidden,)
            shapes[prefix + "post_attention_layernorm.weight"] = (hidden,)
            for name, rows, cols, bias in linears:
                shapes[f"{prefix}{name}.weight"] = (rows, cols)
                if bias:
                    shapes[f"{prefix}{name}.bias"] = (rows,)
        return shapes

    def tied_tensors(self) -> dict[str, str]:
        """Tensors that a checkpoint may hold although another one is used in their place."""
        if not self.tie_word_embeddings:
            return {}
        return {"lm_head.weight": "model.embed_tokens.weight"}


def inv_freq(config: LlamaConfig) -> torch.Tensor:
    """Inverse rotary frequencies [head_dim / 2], float32.

    Operation for operation what transformers computes, because a last bit here turns into
    visible angles at far positions.
    """
    rope = config.rope
    exponent = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    frequencies = 1.0 / (rope.theta**exponent)
    if rope.type == "linear":
        return frequencies / rope.factor
    if rope.type == "llama3":
        return _llama3_frequencies(frequencies, rope)
    return frequencies


def _llama3_frequencies(frequencies: torch.Tensor, rope: RopeConfig) -> torch.Tensor:
    """Long wavelengths divided by `factor`, short ones kept, those between blended."""
    context = rope.original_max_positions
    wavelengths = 2 * math.pi / frequencies
    is_long = wavelengths > context / rope.low_freq_factor
    is_short = wavelengths < context / rope.high_freq_factor
    blend = (context / wavelengths - rope.low_freq_factor) / (
        rope.high_freq_factor - rope.low_freq_factor
    )
    between = (1 - blend) * frequencies / rope.factor + blend * frequencies
    scaled = torch.where(is_long, frequencies / rope.factor, frequencies)
    return torch.where(~is_long & ~is_short, between, scaled)


ModelConfig = LlamaConfig | T5Config


def load_config(directory: str | Path) -> ModelConfig:
    """The configuration in `directory`/config.json, by its model_type. Raises ConfigError."""
    root = Path(directory)
    if not root.is_dir():
        raise ConfigError(f"{root} is not a directory; name a Hugging Face model directory")
    values = read_json(root / "config.json")
    if values is None:
        raise ConfigError(f"{root} has no config.json; name a Hugging Face model directory")
    generation = read_json(root / "generation_config.json") or {}
    where = root / "config.json"
    if is_t5(values, where):
        reader = Reader(values, where)
        return parse_t5(reader, Reader(generation, root / "generation_config.json"))
    if values.get("model_type") != "llama":
        raise ConfigError(
            f"{where}: model_type {values.get('model_type')!r} is not supported; 'llama' and 't5' "
            "are"
        )
    return _parse_llama(Reader(values, where), generation, root)


def _parse_llama(reader: Reader, generation: dict[str, Any], root: Path) -> LlamaConfig:
    _refuse_unsupported(reader)
    hidden = reader.integer("hidden_size")
    heads = reader.integer("num_attention_heads")
    if reader.values.get("head_dim") is None and hidden % heads:
        raise reader.error("hidden_size", f"a multiple of num_attention_heads = {heads}")
    head_dim = reader.integer("head_dim", hidden // heads)
    if head_dim % 2:
        raise ConfigError(f"{reader.where}: head_dim must be even for rope, got {head_dim}")
    kv_heads = reader.integer("num_key_value_heads", heads)
    if heads % kv_heads:
        raise reader.error("num_key_value_heads", f"a divisor of num_attention_heads = {heads}")
    vocab_size = reader.integer("vocab_size")
    max_positions = reader.integer("max_position_embeddings", 2048)
    bos, eos = _special_ids(reader, Reader(generation, root / "generation_config.json"))
    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=hidden,
        intermediate_size=reader.integer("intermediate_size"),
        num_layers=reader.integer("num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        rms_norm_eps=reader.positive("rms_norm_eps", 1e-6),
        max_positions=max_positions,
        rope=_parse_rope(reader, max_positions),
        attention_bias=reader.flag("attention_bias", False),
        mlp_bias=reader.flag("mlp_bias", False),
        tie_word_embeddings=reader.flag("tie_word_embeddings", False),
        bos_id=bos,
        eos_ids=eos,
        dtype=parse_dtype(reader),
    )


def _refuse_unsupported(reader: Reader) -> None:
    architectures = reader.values.get("architectures")
    if architectures not in (None, ["LlamaForCausalLM"]):
        raise reader.error("architectures", "['LlamaForCausalLM'], the one that is supported")
    if reader.values.get("hidden_act", "silu") not in ("silu", "swish"):
        raise reader.error("hidden_act", "'silu', the one that is supported")
    if reader.integer("pretraining_tp", 1) != 1:
        raise reader.error("pretraining_tp", "1, the only split that is supported")
    for key in UNSUPPORTED_SWITCHES:
        if reader.values.get(key):
            raise reader.error(key, "absent: it is not supported for a LLaMA model")
    layer_types = reader.values.get("layer_types")
    if layer_types is not None and (
        not isinstance(layer_types, list) or any(kind != "full_attention" for kind in layer_types)
    ):
        raise reader.error("layer_types", "'full_attention' for every layer")


def _parse_rope(reader: Reader, max_positions: int) -> RopeConfig:
    """Both spellings: rope_theta with rope_scaling, and rope_parameters."""
    scaling, parameters = reader.section("rope_scaling"), reader.section("rope_parameters")
    if scaling and parameters and scaling.values != parameters.values:
        raise reader.error("rope_scaling", "absent or the same where rope_parameters is given")
    rope = parameters or scaling or Reader({}, reader.where, "rope_parameters.")
    kind = rope.values.get("rope_type") or rope.values.get("type") or "default"
    if not isinstance(kind, str) or kind not in ROPE_PARAMETERS:
        raise rope.error("rope_type" if "rope_type" in rope.values else "type", _one_of_ropes())
    if rope.values.get("type") not in (None, kind):
        raise rope.error("type", f"{kind!r} as rope_type says")
    for section in (rope, reader):
        if section.positive("partial_rotary_factor", 1.0) != 1.0:
            raise section.error("partial_rotary_factor", "1.0, the only one that is supported")
    known = {"rope_type", "type", "rope_theta", "partial_rotary_factor", *ROPE_PARAMETERS[kind]}
    for key, value in rope.values.items():
        if key not in known and value is not None:
            raise rope.error(key, f"absent: rope type {kind!r} has no such parameter")
    theta = rope.positive("rope_theta", reader.positive("rope_theta", 10000.0))
    if kind == "default":
        return RopeConfig(theta=theta)
    factor = rope.positive("factor")
    if kind == "linear":
        return RopeConfig(kind, theta, factor)
    low, high = rope.positive("low_freq_factor"), rope.positive("high_freq_factor")
    if high <= low:
        raise rope.error("high_freq_factor", f"greater than low_freq_factor = {low}")
    # Beside the rope parameters it takes precedence over the value among them, as in transformers.
    inner = rope.integer("original_max_position_embeddings", max_positions)
    original = reader.integer("original_max_position_embeddings", inner)
    return RopeConfig(kind, theta, factor, low, high, original)


def _one_of_ropes() -> str:
    return "one of " + ", ".join(ROPE_PARAMETERS)


def _special_ids(config: Reader, generation: Reader) -> tuple[int | None, tuple[int, ...]]:
    """Begin and end ids. What generation_config.json says overrides config.json, absent ones are
    1 and 2 as in transformers, and null in config.json means that the model has none."""
    limit = config.integer("vocab_size") - 1
    ids = {}
    for key, default in (("bos_token_id", 1), ("eos_token_id", 2)):
        reader = generation if generation.values.get(key) is not None else config
        value = reader.values.get(key, default)
        listed = [] if value is None else value if isinstance(value, list) else [value]
        for item in listed:
            if type(item) is not int or not 0 <= item <= limit:
                raise reader.error(key, f"in [0, {limit}] as vocab_size = {limit + 1} says")
        if key == "bos_token_id" and isinstance(value, list):
            raise reader.error(key, "one id")
        ids[key] = tuple(dict.fromkeys(listed))
    bos = ids["bos_token_id"]
    return (bos[0] if bos else None), ids["eos_token_id"]
