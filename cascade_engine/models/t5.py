"""T5: weights from a Hugging Face checkpoint, the encoder's pass and the decoder's (Raffel et al.,
arXiv 1910.10683; version 1.1 with the GELU gate of Shazeer, arXiv 2002.05202).

A row is the encoder's input, then the decoder's start token, then what is generated. The slots of
the input hold, in each layer's cache, the cross-attention keys and values of its positions; the
slots behind them the decoder's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from cascade_engine.errors import CheckpointError
from cascade_engine.models.checkpoint import Checkpoint
from cascade_engine.models.llama import Loader, num_bytes
from cascade_engine.models.relative import bias_by_offset
from cascade_engine.models.t5_config import T5Config, float16_refusal
from cascade_engine.ops import CpuBackend, CudaBackend, LinearWeight, RelativeBias, activation_dtype

SCALE = 1.0
"""Of attention scores: the initialisation of the query projection stands in for it."""


@dataclass(frozen=True)
class T5Attention:
    norm: torch.Tensor
    qkv: LinearWeight
    """Query, key and value projections, one above the other."""
    output: LinearWeight


@dataclass(frozen=True)
class T5CrossAttention:
    norm: torch.Tensor
    query: LinearWeight
    key_value: LinearWeight
    """Key and value projections of the encoder's output, one above the other."""
    output: LinearWeight


@dataclass(frozen=True)
class T5FeedForward:
    norm: torch.Tensor
    up: LinearWeight
    """v1.1: the gate's projection above the other one."""
    down: LinearWeight


@dataclass(frozen=True)
class T5EncoderLayer:
    attention: T5Attention
    feed_forward: T5FeedForward


@dataclass(frozen=True)
class T5DecoderLayer:
    attention: T5Attention
    cross: T5CrossAttention
    feed_forward: T5FeedForward


@dataclass(frozen=True)
class T5Weights:
    """Weights in the layout of the backend; norms and biases are float32, matrices are `dtype`."""

    config: T5Config
    dtype: torch.dtype
    embedding: torch.Tensor | LinearWeight
    """`[vocab, hidden]` row-major in the activations' dtype, or the head itself where it is tied:
    kept once."""
    encoder: tuple[T5EncoderLayer, ...]
    encoder_bias: RelativeBias
    encoder_norm: torch.Tensor
    decoder: tuple[T5DecoderLayer, ...]
    decoder_bias: RelativeBias
    decoder_norm: torch.Tensor
    """With hidden_size^-0.5 in it where the outputs are scaled."""
    head: LinearWeight

    @property
    def activation_dtype(self) -> torch.dtype:
        """Of what goes into matrices, and of the cache."""
        return activation_dtype(self.dtype)

    def num_bytes(self) -> int:
        """Memory held, each tensor counted once."""
        return num_bytes(self)


class _T5Loader(Loader):
    """The blocks of a T5 checkpoint."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        config: T5Config,
        backend: CpuBackend | CudaBackend,
        dtype: torch.dtype,
        compress: bool,
    ) -> None:
        super().__init__(checkpoint, backend, dtype, compress)
        self.config = config
        self.shapes = config.tensor_shapes()

    def attention(self, layer: str) -> T5Attention:
        names = [f"{layer}.SelfAttention.{name}" for name in "qkv"]
        return T5Attention(
            norm=self.vector(f"{layer}.layer_norm.weight"),
            qkv=self.linear(names, self.shapes),
            output=self.linear([f"{layer}.SelfAttention.o"], self.shapes),
        )

    def cross(self, layer: str) -> T5CrossAttention:
        part = f"{layer}.EncDecAttention"
        return T5CrossAttention(
            norm=self.vector(f"{layer}.layer_norm.weight"),
            query=self.linear([f"{part}.q"], self.shapes),
            key_value=self.linear([f"{part}.k", f"{part}.v"], self.shapes),
            output=self.linear([f"{part}.o"], self.shapes),
        )

    def feed_forward(self, layer: str) -> T5FeedForward:
        part = f"{layer}.DenseReluDense"
        up = [f"{part}.wi_0", f"{part}.wi_1"] if self.config.gated else [f"{part}.wi"]
        return T5FeedForward(
            norm=self.vector(f"{layer}.layer_norm.weight"),
            up=self.linear(up, self.shapes),
            down=self.linear([f"{part}.wo"], self.shapes),
        )

    def encoder_layer(self, i: int) -> T5EncoderLayer:
        block = f"encoder.block.{i}.layer"
        return T5EncoderLayer(self.attention(f"{block}.0"), self.feed_forward(f"{block}.1"))

    def decoder_layer(self, i: int) -> T5DecoderLayer:
        block = f"decoder.block.{i}.layer"
        return T5DecoderLayer(
            self.attention(f"{block}.0"), self.cross(f"{block}.1"), self.feed_forward(f"{block}.2")
        )

    def bias(self, stack: str) -> RelativeBias:
        name = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        return bias_by_offset(self.vector(name), stack == "encoder", self.config.max_distance)

    def embedding_and_head(self) -> tuple[torch.Tensor | LinearWeight, LinearWeight]:
        if self.config.tie_word_embeddings:
            head = self.linear(["shared"], self.shapes)
            return head, head
        table = self.checkpoint.tensor("shared.weight")
        table = table.to(activation_dtype(self.dtype), copy=True)
        self.checkpoint.release("shared.weight")
        return table, self.linear(["lm_head"], self.shapes)


def load_weights(
    checkpoint: Checkpoint,
    config: T5Config,
    backend: CpuBackend | CudaBackend,
    dtype: torch.dtype,
    progress: Callable[[int, int], None] | None = None,
    compress: bool = False,
) -> T5Weights:
    """Checks that the checkpoint holds exactly what `config` implies, then packs it.

    `progress(done, total)` counts layers of both stacks. `compress`: see `CpuBackend.compress`.
    Raises CheckpointError for missing, unknown or misshapen tensors, and for float16 tensors of
    version 1.1.
    """
    check_tensors(checkpoint, config)
    loader = _T5Loader(checkpoint, config, backend, dtype, compress)
    embedding, head = loader.embedding_and_head()
    total = config.num_encoder_layers + config.num_layers
    report = progress or (lambda done, total: None)
    encoder, decoder = [], []
    for i in range(config.num_encoder_layers):
        encoder.append(loader.encoder_layer(i))
        report(i + 1, total)
    for i in range(config.num_layers):
        decoder.append(loader.decoder_layer(i))
        report(config.num_encoder_layers + i + 1, total)
    decoder_norm = loader.vector("decoder.final_layer_norm.weight")
    if config.scale_outputs:
        decoder_norm *= config.hidden_size**-0.5
    return T5Weights(
        config=config,
        dtype=dtype,
        embedding=embedding,
        encoder=tuple(encoder),
        encoder_bias=loader.bias("encoder"),
        encoder_norm=loader.vector("encoder.final_layer_norm.weight"),
        decoder=tuple(decoder),
        decoder_bias=loader.bias("decoder"),
        decoder_norm=decoder_norm,
        head=head,
    )


def check_tensors(checkpoint: Checkpoint, config: T5Config) -> None:
    """Raises CheckpointError unless the checkpoint holds exactly this model's tensors, in a dtype
    that it can be run from."""
    shapes = config.tensor_shapes()
    checkpoint.expect(shapes, config.tied_tensors())
    if config.gated:
        for name in shapes:
            entry = checkpoint.entries[name]
            if entry.dtype == "F16":
                raise CheckpointError(f"{entry.file}: {float16_refusal(f'float16 in {name}')}")


def encode(ops: Any, weights: T5Weights, cache: Sequence[Any]) -> Any:
    """The encoder's pass over whole inputs; returns its output `[tokens, hidden]`. Stores each
    decoder layer's cross-attention keys and values of the input in `cache`, one entry a layer.

    Until they are there, the first layer's slots hold the keys and values of the encoder layer at
    work. `ops` is a backend's, as in `decode`."""
    config, dtype = weights.config, weights.activation_dtype
    eps, heads, own = config.rms_norm_eps, config.num_heads, cache[0]
    x = ops.embedding(weights.embedding)
    for block in weights.encoder:
        h = ops.rms_norm(x, block.attention.norm, eps, dtype)
        qkv = ops.linear(h, block.attention.qkv)
        ops.rope_store(qkv, heads, own)
        h = ops.attention(qkv, heads, SCALE, own, dtype, weights.encoder_bias, over_source=True)
        ops.linear(h, block.attention.output, add_to=x)
        _feed_forward(ops, weights, block.feed_forward, x)
    h = ops.rms_norm(x, weights.encoder_norm, eps, dtype)
    for layer, kv in zip(weights.decoder, cache, strict=True):
        ops.rope_store(ops.linear(h, layer.cross.key_value), 0, kv)
    return h


def decode(ops: Any, weights: T5Weights, cache: Iterable[Any]) -> Any:
    """The decoder's pass over new tokens behind an encoded input; returns logits `[wanted rows,
    vocab]`. Stores the tokens' own keys and values in `cache`. Behind the last layer's attentions
    only the wanted rows go on.

    `ops` is a backend's: with a `Recorder` values are buffers of the recorded program, with
    `ReferenceOps` they are tensors."""
    config, dtype = weights.config, weights.activation_dtype
    eps, heads = config.rms_norm_eps, config.num_heads
    x = ops.embedding(weights.embedding)
    for layer, kv in zip(weights.decoder, cache, strict=True):
        h = ops.rms_norm(x, layer.attention.norm, eps, dtype)
        qkv = ops.linear(h, layer.attention.qkv)
        ops.rope_store(qkv, heads, kv)
        h = ops.attention(qkv, heads, SCALE, kv, dtype, weights.decoder_bias)
        ops.linear(h, layer.attention.output, add_to=x)
        h = ops.rms_norm(x, layer.cross.norm, eps, dtype)
        q = ops.linear(h, layer.cross.query)
        h = ops.attention(q, heads, SCALE, kv, dtype, over_source=True)
        if layer is weights.decoder[-1]:
            x, h = ops.select_logit_rows(x), ops.select_logit_rows(h, dtype)
        ops.linear(h, layer.cross.output, add_to=x)
        _feed_forward(ops, weights, layer.feed_forward, x)
    h = ops.rms_norm(x, weights.decoder_norm, eps, dtype)
    return ops.linear(h, weights.head)


def _feed_forward(ops: Any, weights: T5Weights, layer: T5FeedForward, x: Any) -> None:
    """Adds the layer's output to `x`."""
    dtype = weights.activation_dtype
    h = ops.rms_norm(x, layer.norm, weights.config.rms_norm_eps, dtype)
    h = ops.linear(h, layer.up)
    h = ops.geglu(h, dtype) if weights.config.gated else ops.relu(h, dtype)
    ops.linear(h, layer.down, add_to=x)
