"""LLaMA: weights from a Hugging Face checkpoint, and one forward pass (Touvron et al.,
arXiv 2302.13971; grouped-query attention as in arXiv 2307.09288)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, is_dataclass, replace
from typing import Any

import torch

from cascade_engine.errors import CheckpointError
from cascade_engine.models.checkpoint import Checkpoint
from cascade_engine.models.config import LlamaConfig, inv_freq
from cascade_engine.ops import CpuBackend, CudaBackend, LinearWeight, activation_dtype


@dataclass(frozen=True)
class LlamaLayer:
    input_norm: torch.Tensor
    qkv: LinearWeight
    """Query, key and value projections, one above the other."""
    output: LinearWeight
    post_attention_norm: torch.Tensor
    gate_up: LinearWeight
    """Gate and up projections, one above the other."""
    down: LinearWeight


@dataclass(frozen=True)
class LlamaWeights:
    """Weights in the layout of the backend; norms are float32, matrices are `dtype`."""

    config: LlamaConfig
    dtype: torch.dtype
    embedding: torch.Tensor | LinearWeight
    """`[vocab, hidden]` row-major in the activations' dtype, or the head itself where it is tied:
    kept once."""
    layers: tuple[LlamaLayer, ...]
    norm: torch.Tensor
    head: LinearWeight
    inv_freq: torch.Tensor

    @property
    def activation_dtype(self) -> torch.dtype:
        """Of what goes into matrices, and of the cache."""
        return activation_dtype(self.dtype)

    def num_bytes(self) -> int:
        """Memory held, each tensor counted once."""
        return num_bytes(self)


def leading_layers(weights: LlamaWeights, layers: int) -> LlamaWeights:
    """A model of the first `layers` layers and the head; its weights are these."""
    config = replace(weights.config, num_layers=layers)
    return replace(weights, config=config, layers=weights.layers[:layers])


def tensors_of(value: object) -> Iterable[torch.Tensor]:
    """All tensors of a model's weights."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, LinearWeight):
        yield value.memory
        yield from (part for part in (value.bias, value.scales) if part is not None)
    elif is_dataclass(value):
        for field in vars(value).values():
            yield from tensors_of(field)
    elif isinstance(value, tuple):
        for item in value:
            yield from tensors_of(item)


def num_bytes(weights: object) -> int:
    """Memory of a model's weights, each tensor counted once."""
    tensors = tensors_of(weights)
    return sum({t.data_ptr(): t.numel() * t.element_size() for t in tensors}.values())


class Loader:
    """Moves tensors from a checkpoint into the backend's layout, one at a time."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        backend: CpuBackend | CudaBackend,
        dtype: torch.dtype,
        compress: bool = False,
    ) -> None:
        self.checkpoint = checkpoint
        self.backend = backend
        self.dtype = dtype
        self.compressor = backend if compress and isinstance(backend, CpuBackend) else None
        assert self.compressor is not None or not compress

    def vector(self, name: str) -> torch.Tensor:
        vector = self.checkpoint.tensor(name).to(torch.float32, copy=True)
        self.checkpoint.release(name)
        return vector

    def linear(self, names: list[str], shapes: dict[str, tuple[int, ...]]) -> LinearWeight:
        """Stacks the weights (and biases) called `names` into one packed matrix."""
        rows = [shapes[f"{name}.weight"][0] for name in names]
        k = shapes[f"{names[0]}.weight"][1]
        biased = f"{names[0]}.bias" in shapes
        backend, compressor = self.backend, self.compressor
        make = backend.empty_linear if compressor is None else compressor.staged_linear
        packed = make(sum(rows), k, self.dtype, bias=biased)
        first = 0
        for name, count in zip(names, rows, strict=True):
            for start, rows_part in self.checkpoint.slices(f"{name}.weight"):
                try:
                    backend.fill_linear(packed, rows_part, first + start)
                except ValueError as error:
                    raise CheckpointError(f"{name}.weight: {error}") from None
            if packed.bias is not None:
                packed.bias[first : first + count] = self.vector(f"{name}.bias")
            first += count
        return packed if compressor is None else compressor.compress(packed)

    def layer(self, i: int, shapes: dict[str, tuple[int, ...]]) -> LlamaLayer:
        prefix = f"model.layers.{i}"
        attention, mlp = f"{prefix}.self_attn", f"{prefix}.mlp"
        return LlamaLayer(
            input_norm=self.vector(f"{prefix}.input_layernorm.weight"),
            qkv=self.linear([f"{attention}.{name}_proj" for name in "qkv"], shapes),
            output=self.linear([f"{attention}.o_proj"], shapes),
            post_attention_norm=self.vector(f"{prefix}.post_attention_layernorm.weight"),
            gate_up=self.linear([f"{mlp}.gate_proj", f"{mlp}.up_proj"], shapes),
            down=self.linear([f"{mlp}.down_proj"], shapes),
        )


def load_weights(
    checkpoint: Checkpoint,
    config: LlamaConfig,
    backend: CpuBackend | CudaBackend,
    dtype: torch.dtype,
    progress: Callable[[int, int], None] | None = None,
    compress: bool = False,
) -> LlamaWeights:
    """Checks that the checkpoint holds exactly what `config` implies, then packs it.

    `progress(done, total)` counts layers. `compress`: see `CpuBackend.compress`. Raises
    CheckpointError for missing, unknown or misshapen tensors.
    """
    shapes = config.tensor_shapes()
    checkpoint.expect(shapes, config.tied_tensors())
    loader = Loader(checkpoint, backend, dtype, compress)
    embedding: torch.Tensor | LinearWeight
    if config.tie_word_embeddings:
        embedding = head = loader.linear(["model.embed_tokens"], shapes)
    else:
        embedding = checkpoint.tensor("model.embed_tokens.weight")
        embedding = embedding.to(activation_dtype(dtype), copy=True)
        checkpoint.release("model.embed_tokens.weight")
        head = loader.linear(["lm_head"], shapes)
    layers = []
    for i in range(config.num_layers):
        layers.append(loader.layer(i, shapes))
        if progress is not None:
            progress(i + 1, config.num_layers)
    return LlamaWeights(
        config=config,
        dtype=dtype,
        embedding=embedding,
        layers=tuple(layers),
        norm=loader.vector("model.norm.weight"),
        head=head,
        inv_freq=inv_freq(config),
    )


def forward(ops: Any, weights: LlamaWeights, cache: Iterable[Any]) -> Any:
    """One pass over new tokens; returns logits `[wanted rows, vocab]`. Stores the tokens' keys and
    values in `cache`, one entry a layer. Behind the last layer's attention only the wanted rows go
    on: of the others nothing but keys and values is used.

    `ops` is a backend's: with a `Recorder` values are buffers of the recorded program, with
    `ReferenceOps` they are tensors."""
    config, dtype = weights.config, weights.activation_dtype
    scale = config.head_dim**-0.5
    ops.rope_angles(weights.inv_freq, config.head_dim)
    x = ops.embedding(weights.embedding)
    for layer, kv in zip(weights.layers, cache, strict=True):
        h = ops.rms_norm(x, layer.input_norm, config.rms_norm_eps, dtype)
        qkv = ops.linear(h, layer.qkv)
        ops.rope_store(qkv, config.num_heads, kv)
        h = ops.attention(qkv, config.num_heads, scale, kv, dtype)
        if layer is weights.layers[-1]:
            x, h = ops.select_logit_rows(x), ops.select_logit_rows(h, dtype)
        ops.linear(h, layer.output, add_to=x)
        h = ops.rms_norm(x, layer.post_attention_norm, config.rms_norm_eps, dtype)
        h = ops.swiglu(ops.linear(h, layer.gate_up), dtype)
        ops.linear(h, layer.down, add_to=x)
    h = ops.rms_norm(x, weights.norm, config.rms_norm_eps, dtype)
    return ops.linear(h, weights.head)
