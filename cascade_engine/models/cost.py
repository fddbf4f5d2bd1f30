"""What a LLaMA costs, counted from its configuration: memory, memory traffic, operations."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from cascade_engine.models.config import LlamaConfig
from cascade_engine.ops import activation_dtype

PackedBytes = Callable[[int, int, torch.dtype], int]
"""Bytes of a matrix [n, k] as the backend keeps it."""


@dataclass(frozen=True)
class PassCost:
    """One forward pass."""

    multiply_adds: int
    bytes: int
    """Read and written in memory: weights once, cached keys and values once, new ones written.
    Activations stay in the processor's caches and do not count."""


class ModelCost:
    """Counts for one model whose matrices are of one dtype."""

    def __init__(self, config: LlamaConfig, dtype: torch.dtype, packed_bytes: PackedBytes) -> None:
        self.config = config
        self.dtype = dtype
        shapes = config.tensor_shapes()
        self.parameters = sum(math.prod(shape) for shape in shapes.values())
        """Trained numbers, a tied head counted once."""
        tables = {name for name in shapes if name.startswith("model.embed_tokens")}
        matrices = {n: s for n, s in shapes.items() if len(s) == 2 and n not in tables}
        vectors = [shape for shape in shapes.values() if len(shape) == 1]
        head = (config.vocab_size, config.hidden_size)
        if config.tie_word_embeddings:
            matrices["lm_head.weight"] = head
        self._matrices = [(n, k) for n, k in matrices.values()]
        activation = activation_dtype(dtype)
        table_dtype = dtype if config.tie_word_embeddings else activation
        self._table_row = config.hidden_size * table_dtype.itemsize
        self._streamed = sum(packed_bytes(n, k, dtype) for n, k in self._stacked())
        self._streamed += 4 * (sum(math.prod(shape) for shape in vectors) + config.head_dim // 2)
        table = 0 if config.tie_word_embeddings else config.vocab_size * self._table_row
        self.weight_bytes = self._streamed + table
        """As loaded: matrices packed, vectors (rotary frequencies among them) in float32."""
        heads = config.num_kv_heads * config.head_dim
        self.cache_bytes_per_token = 2 * config.num_layers * heads * activation.itemsize

    def decode(self, tokens: int, cached: int) -> PassCost:
        """A pass over `tokens` new tokens of one row, each with logits, behind `cached` others."""
        config = self.config
        linear = sum(n * k for n, k in self._matrices)
        positions = sum(cached + i + 1 for i in range(tokens))
        attention = 2 * config.num_layers * config.num_heads * config.head_dim * positions
        cache = (cached + tokens) * self.cache_bytes_per_token
        read = self._streamed + cache + tokens * self._table_row
        return PassCost(tokens * linear + attention, read)

    def _stacked(self) -> list[tuple[int, int]]:
        """Matrices as they are loaded: q, k, v and gate, up are one matrix each."""
        config = self.config
        hidden, inner = config.hidden_size, config.intermediate_size
        queries = config.num_heads * config.head_dim
        qkv = queries + 2 * config.num_kv_heads * config.head_dim
        layer = [(qkv, hidden), (hidden, queries), (2 * inner, hidden), (hidden, inner)]
        return layer * config.num_layers + [(config.vocab_size, hidden)]


def predicted_seconds(cost: PassCost, bandwidth: float, rate: float) -> float:
    """The larger of the time to move the bytes (bytes/s) and to multiply (multiply-adds/s): a
    lower bound, since everything else a pass does comes on top."""
    return max(cost.bytes / bandwidth, cost.multiply_adds / rate)
