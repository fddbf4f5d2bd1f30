"""T5 configurations: v1.0 (ReLU, head tied to the embedding) and v1.1 / FLAN (GELU gate).

Raffel et al., arXiv 1910.10683; Shazeer, arXiv 2002.05202; Chung et al., arXiv 2210.11416.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from cascade_engine.errors import ConfigError
from cascade_engine.models.config_reader import Reader, parse_dtype

ARCHITECTURES = ("T5ForConditionalGeneration", "T5WithLMHeadModel")
# Feed-forward variants that are computed, and the activation each implies.
ACTIVATIONS = {"relu": "relu", "gated-gelu": "gelu_new"}
# Settings that other engines write; a value that turns one on changes the model.
UNSUPPORTED_SWITCHES = ("quantization_config", "compression_config")
DEFAULT_POSITIONS = 512
"""Encoder tokens that published models are trained with."""


@dataclasses.dataclass(frozen=True)
class T5Config:
    """A T5 encoder-decoder. `dtype` is the checkpoint's declared one, None when it has none.

    `num_layers`, `num_kv_heads` and `head_dim` describe what a decoder caches, as LlamaConfig's do.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_encoder_layers: int
    num_layers: int
    num_heads: int
    head_dim: int
    """d_kv; apart from hidden_size / num_heads."""
    num_buckets: int
    max_distance: int
    """From this distance on, all positions share a bucket."""
    rms_norm_eps: float
    gated: bool
    """GELU gate (v1.1) instead of ReLU (v1.0)."""
    scale_outputs: bool
    """Whether the head sees the decoder's outputs times hidden_size^-0.5 (v1.0)."""
    tie_word_embeddings: bool
    stored_head_wins: bool
    """Whether lm_head.weight in the checkpoint unties the head. Transformers 5 writes
    tie_word_embeddings true for every T5, and goes by what the weight file holds."""
    positions: int
    """Encoder tokens that the model was made for; relative positions set no limit."""
    pad_id: int
    decoder_start_id: int
    eos_ids: tuple[int, ...]
    dtype: torch.dtype | None

    @property
    def num_kv_heads(self) -> int:
        return self.num_heads

    @property
    def max_positions(self) -> int:
        """Tokens of a row, encoder input and output together, where nobody asks for another
        number: as many out as in."""
        return 2 * self.positions

    def stored_with(self, tensors: set[str]) -> T5Config:
        """This configuration where the checkpoint holds these tensors."""
        if self.stored_head_wins and "lm_head.weight" in tensors:
            return dataclasses.replace(self, tie_word_embeddings=False)
        return self

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor that a checkpoint of this model holds, by name."""
        shapes: dict[str, tuple[int, ...]] = {
            "shared.weight": (self.vocab_size, self.hidden_size),
            "encoder.final_layer_norm.weight": (self.hidden_size,),
            "decoder.final_layer_norm.weight": (self.hidden_size,),
        }
        if not self.tie_word_embeddings:
            shapes["lm_head.weight"] = (self.vocab_size, self.hidden_size)
        for stack, layers in (("encoder", self.num_encoder_layers), ("decoder", self.num_layers)):
            table = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
            shapes[table] = (self.num_buckets, self.num_heads)
            for i in range(layers):
                shapes.update(self._block_shapes(f"{stack}.block.{i}.", stack == "decoder"))
        return shapes

    def tied_tensors(self) -> dict[str, str]:
        """Tensors that a checkpoint may hold although another one is used in their place."""
        tied = {f"{stack}.embed_tokens.weight": "shared.weight" for stack in ("encoder", "decoder")}
        if self.tie_word_embeddings:
            tied["lm_head.weight"] = "shared.weight"
        return tied

    def _block_shapes(self, prefix: str, is_decoder: bool) -> dict[str, tuple[int, ...]]:
        hidden, inner, width = self.hidden_size, self.intermediate_size, self.attention_width
        kinds = ["SelfAttention", "EncDecAttention"] if is_decoder else ["SelfAttention"]
        shapes: dict[str, tuple[int, ...]] = {}
        for i, kind in enumerate(kinds):
            shapes[f"{prefix}layer.{i}.layer_norm.weight"] = (hidden,)
            for name in "qkv":
                shapes[f"{prefix}layer.{i}.{kind}.{name}.weight"] = (width, hidden)
            shapes[f"{prefix}layer.{i}.{kind}.o.weight"] = (hidden, width)
        last = f"{prefix}layer.{len(kinds)}."
        shapes[last + "layer_norm.weight"] = (hidden,)
        for name in ("wi_0", "wi_1") if self.gated else ("wi",):
            shapes[f"{last}DenseReluDense.{name}.weight"] = (inner, hidden)
        shapes[f"{last}DenseReluDense.wo.weight"] = (hidden, inner)
        return shapes

    @property
    def attention_width(self) -> int:
        """Columns of the queries, of the keys, of the values."""
        return self.num_heads * self.head_dim


def parse_t5(reader: Reader, generation: Reader) -> T5Config:
    """The configuration of a config.json with model_type "t5". Raises ConfigError."""
    gated = _parse_feed_forward(reader)
    layers = reader.integer("num_layers")
    buckets = reader.integer("relative_attention_num_buckets", 32, low=4)
    distance = reader.integer("relative_attention_max_distance", 128)
    if distance <= buckets // 2:
        raise reader.error("relative_attention_max_distance", f"greater than {buckets // 2}")
    tied = reader.flag("tie_word_embeddings", True)
    pad = _id(reader, generation, "pad_token_id", 0)
    dtype = parse_dtype(reader)
    if gated and dtype == torch.float16:
        raise ConfigError(f"{reader.where}: {float16_refusal('dtype float16')}")
    return T5Config(
        vocab_size=reader.integer("vocab_size"),
        hidden_size=reader.integer("d_model"),
        intermediate_size=reader.integer("d_ff"),
        num_encoder_layers=layers,
        num_layers=reader.integer("num_decoder_layers", layers),
        num_heads=reader.integer("num_heads"),
        head_dim=reader.integer("d_kv"),
        num_buckets=buckets,
        max_distance=distance,
        rms_norm_eps=reader.positive("layer_norm_epsilon", 1e-6),
        gated=gated,
        scale_outputs=reader.flag("scale_decoder_outputs", tied),
        tie_word_embeddings=tied,
        stored_head_wins=reader.values.get("scale_decoder_outputs") is not None,
        positions=reader.integer("n_positions", DEFAULT_POSITIONS),
        pad_id=pad,
        decoder_start_id=_id(reader, generation, "decoder_start_token_id", pad),
        eos_ids=_eos_ids(reader, generation),
        dtype=dtype,
    )


def float16_refusal(what: str) -> str:
    """Why a v1.1 model in float16 is not run."""
    return (
        f"{what} is not supported for T5 v1.1 / FLAN: feed-forward activations of these models "
        "pass float16's largest number, 65504, so that files converted to it hold infinities or "
        "clipped values; use the float32 or bfloat16 weights"
    )


def _parse_feed_forward(reader: Reader) -> bool:
    """Whether the feed-forward layers are gated; refuses what is not computed."""
    architectures = reader.values.get("architectures")
    if architectures is not None and (
        not isinstance(architectures, list)
        or len(architectures) != 1
        or architectures[0] not in ARCHITECTURES
    ):
        raise reader.error("architectures", f"['{ARCHITECTURES[0]}'], the one that is supported")
    for key in UNSUPPORTED_SWITCHES:
        if reader.values.get(key):
            raise reader.error(key, "absent: it is not supported for a T5 model")
    if not reader.flag("is_encoder_decoder", True):
        raise reader.error("is_encoder_decoder", "true: encoders alone do not generate")
    kind = reader.values.get("feed_forward_proj", "relu")
    if not isinstance(kind, str) or kind not in ACTIVATIONS:
        raise reader.error(
            "feed_forward_proj", "'relu' (v1.0) or 'gated-gelu' (v1.1), the ones supported"
        )
    if reader.values.get("dense_act_fn", ACTIVATIONS[kind]) not in (None, ACTIVATIONS[kind]):
        raise reader.error(
            "dense_act_fn", f"{ACTIVATIONS[kind]!r} as feed_forward_proj {kind!r} says"
        )
    return bool(kind == "gated-gelu")


def _id(config: Reader, generation: Reader, key: str, default: int) -> int:
    """One token id; generation_config.json overrides config.json."""
    reader = generation if generation.values.get(key) is not None else config
    return _checked(reader, key, reader.values.get(key), config.integer("vocab_size"), default)


def _checked(reader: Reader, key: str, value: object, rows: int, default: int) -> int:
    if value is None:
        value = default
    if type(value) is not int or not 0 <= value < rows:
        raise reader.error(key, f"in [0, {rows - 1}] as vocab_size = {rows} says")
    return value


def _eos_ids(config: Reader, generation: Reader) -> tuple[int, ...]:
    key = "eos_token_id"
    reader = generation if generation.values.get(key) is not None else config
    value = reader.values.get(key, 1)
    listed = [] if value is None else value if isinstance(value, list) else [value]
    rows = config.integer("vocab_size")
    return tuple(dict.fromkeys(_checked(reader, key, item, rows, -1) for item in listed))


def is_t5(values: dict[str, object], where: Path) -> bool:
    """Whether a config.json describes a T5; its relatives are refused by name."""
    kind = values.get("model_type")
    if kind in ("mt5", "umt5", "longt5", "switch_transformers"):
        raise ConfigError(
            f"{where}: model_type {kind!r} is not supported; of the T5 family 't5' is "
            "(T5 v1.0, v1.1, FLAN-T5)"
        )
    return kind == "t5"
