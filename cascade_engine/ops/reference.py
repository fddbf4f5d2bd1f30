"""The reference backend: every operation in plain torch, written from the papers. The oracle that
the native backends are tested against; slow, exact in float64, one sequence at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from cascade_engine.ops.bias import RelativeBias
from cascade_engine.ops.weights import LinearWeight, unpack_linear


class ReferenceCache:
    """Keys and values of one layer, in order: `[tokens, kv_heads, head_dim]`."""

    def __init__(self, kv_heads: int, head_dim: int) -> None:
        self.kv_heads = kv_heads
        self.head_dim = head_dim
        self.keys = torch.zeros(0, kv_heads, head_dim)
        self.values = torch.zeros(0, kv_heads, head_dim)


class ReferenceOps:
    """Runs a model's forward description at once, with tensors where `Recorder` has buffers.

    `token_ids` are fed at positions start.. of one sequence whose earlier tokens are in the caches;
    its first `source` tokens are an encoder's input.
    `dtype` arguments are ignored: everything is computed in `precision`.
    """

    def __init__(
        self,
        token_ids: Sequence[int],
        start: int = 0,
        wanted: int | None = None,
        precision: torch.dtype = torch.float64,
        source: int = 0,
    ) -> None:
        self._source = source
        self.precision = precision
        self._ids = torch.tensor(token_ids)
        self._positions = torch.arange(start, start + len(token_ids))
        self._wanted = len(token_ids) if wanted is None else wanted
        self._cos: torch.Tensor | None = None
        self._sin: torch.Tensor | None = None

    def caches(self, layers: int, kv_heads: int, head_dim: int) -> Iterator[ReferenceCache]:
        """Empty caches, one a layer."""
        return (ReferenceCache(kv_heads, head_dim) for _ in range(layers))

    def embedding(self, table: LinearWeight | torch.Tensor) -> torch.Tensor:
        dense = unpack_linear(table) if isinstance(table, LinearWeight) else table
        return dense[self._ids].to(self.precision)

    def rms_norm(
        self, x: torch.Tensor, weight: torch.Tensor, eps: float, dtype: torch.dtype
    ) -> torch.Tensor:
        """Zhang and Sennrich, arXiv 1910.07467: x / sqrt(mean(x^2) + eps) * weight."""
        scale = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)
        return x * scale * weight.to(self.precision)

    def linear(
        self, x: torch.Tensor, weight: LinearWeight, add_to: torch.Tensor | None = None
    ) -> torch.Tensor:
        y = x @ unpack_linear(weight).to(self.precision).T
        if weight.bias is not None:
            y = y + weight.bias.to(self.precision)
        return y if add_to is None else add_to.add_(y)

    def rope_angles(self, inv_freq: torch.Tensor, head_dim: int) -> None:
        """Angles in float32, as models are trained with, then cosines and sines exactly."""
        angles = (self._positions.float()[:, None] * inv_freq[None, :]).to(self.precision)
        self._cos, self._sin = angles.cos()[:, None, :], angles.sin()[:, None, :]

    def rope_store(self, qkv: torch.Tensor, heads: int, cache: ReferenceCache) -> None:
        """Su et al., arXiv 2104.09864, halves paired; writes keys and values of the tokens'
        positions to the cache."""
        tokens, kv, dim = qkv.shape[0], cache.kv_heads, cache.head_dim
        query_key = qkv[:, : (heads + kv) * dim].view(tokens, heads + kv, dim)
        if self._cos is not None and self._sin is not None:
            a, b = query_key.chunk(2, dim=-1)
            turned = (a * self._cos - b * self._sin, b * self._cos + a * self._sin)
            query_key.copy_(torch.cat(turned, dim=-1))
        values = qkv[:, (heads + kv) * dim :].view(tokens, kv, dim)
        cache.keys = self._written(cache.keys, query_key[:, heads:])
        cache.values = self._written(cache.values, values)

    def _written(self, cached: torch.Tensor, fresh: torch.Tensor) -> torch.Tensor:
        start, end = int(self._positions[0]), int(self._positions[-1]) + 1
        cached = cached.to(self.precision)
        return torch.cat([cached[:start], fresh, cached[end:]])

    def attention(
        self,
        matrix: torch.Tensor,
        heads: int,
        scale: float,
        cache: ReferenceCache,
        dtype: torch.dtype,
        bias: RelativeBias | None = None,
        over_source: bool = False,
    ) -> torch.Tensor:
        """Vaswani et al., arXiv 1706.03762, with grouped queries (arXiv 2305.13245) and what Raffel
        et al., arXiv 1910.10683, add to the scores by relative position."""
        tokens, dim, group = matrix.shape[0], cache.head_dim, heads // cache.kv_heads
        queries = matrix[:, : heads * dim].view(tokens, cache.kv_heads, group, dim)
        scores = torch.einsum("tkgd,skd->kgts", queries, cache.keys) * scale
        positions, keys = self._positions[:, None], torch.arange(cache.keys.shape[0])[None, :]
        if bias is not None:
            scores = scores + bias.at(keys - positions).to(self.precision).view(scores.shape)
        behind = (keys >= self._source) & (keys <= positions)
        visible = (keys < self._source).expand_as(behind) if over_source else behind
        weights = scores.masked_fill(~visible, float("-inf")).softmax(-1)
        return torch.einsum("kgts,skd->tkgd", weights, cache.values).reshape(tokens, heads * dim)

    def swiglu(self, gate_up: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Shazeer, arXiv 2002.05202."""
        gate, up = gate_up.chunk(2, dim=-1)
        return torch.nn.functional.silu(gate) * up

    def geglu(self, gate_up: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Shazeer, arXiv 2002.05202, with GELU as Hendrycks and Gimpel approximate it (arXiv
        1606.08415, section 2)."""
        gate, up = gate_up.chunk(2, dim=-1)
        return torch.nn.functional.gelu(gate, approximate="tanh") * up

    def relu(self, x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        return x.relu()

    def select_logit_rows(
        self, x: torch.Tensor, dtype: torch.dtype = torch.float32
    ) -> torch.Tensor:
        return x[x.shape[0] - self._wanted :]
