"""Records a model's description as launches, one a method."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from cascade_engine.gpu_kernels import NATIVE, attention_kernel
from cascade_engine.ops.bias import RelativeBias
from cascade_engine.ops.cuda_batch import Shape
from cascade_engine.ops.cuda_products import ProductRecorder, rows_of
from cascade_engine.ops.launch import ELEMENT, ROUND, Launcher
from cascade_engine.ops.weights import LinearWeight


@dataclass(frozen=True)
class CudaCacheLayer:
    """Keys and values of one layer, `[pages, kv_heads, PAGE_TOKENS, head_dim]`."""

    keys: torch.Tensor
    values: torch.Tensor
    kv_heads: int
    head_dim: int

    def arguments(self) -> dict[str, Any]:
        dtype = ELEMENT[self.keys.dtype]
        heads = {"kv_heads": self.kv_heads, "head_dim": self.head_dim}
        return {"keys": self.keys, "values": self.values, "dtype": dtype, **heads}


class CudaRecorder(ProductRecorder):
    """Records one forward pass; the methods are those of the CPU's `Recorder`."""

    def __init__(self, launcher: Launcher, graphs: bool) -> None:
        super().__init__(launcher, graphs)
        self.program.needs = self._needs
        self._heads: set[tuple[int, int]] = set()
        self._angles: tuple[int, int] | None = None
        self._queries: dict[int, int] = {}

    def embedding(self, table: LinearWeight | torch.Tensor) -> int:
        """float32 `[rows, k]` of the tokens' embeddings; a packed table is a tied head's."""
        packed = isinstance(table, LinearWeight)
        memory = (table.memory if isinstance(table, LinearWeight) else table).to(self._run.device)
        vocab, cols = table.shape
        out = self._buffer("embedding", torch.float32, cols)
        self._add(
            "embedding",
            False,
            batch=_batch,
            table=memory,
            dtype=ELEMENT[memory.dtype],
            packed=packed,
            vocab=vocab,
            cols=cols,
            out=self._memory(out),
        )
        return out

    def rms_norm(self, x: int, weight: torch.Tensor, eps: float, dtype: torch.dtype) -> int:
        """Root-mean-square norm of `x` times `weight`, as `dtype`."""
        cols, per_logit = self.program.cols(x), self._per_logit(x)
        out = self._buffer("rms_norm", dtype, cols, per_logit)
        self._add(
            "rms_norm",
            per_logit,
            x=self._memory(x),
            weight=weight.to(self._run.device),
            eps=eps,
            rows=rows_of,
            cols=cols,
            out=self._memory(out),
            out_stride=self._stride(out),
            dtype=ELEMENT[dtype],
        )
        return out

    def rope_angles(self, inv_freq: torch.Tensor, head_dim: int) -> None:
        """Sets the rotation for the rope_store calls that follow."""
        half = head_dim // 2
        cos = self._buffer("cos", torch.float32, half)
        sin = self._buffer("sin", torch.float32, half)
        self._angles = (cos, sin)
        self._add(
            "rope_angles",
            False,
            batch=_batch,
            inv_freq=inv_freq.to(self._run.device, torch.float32),
            half=half,
            cos=self._memory(cos),
            sin=self._memory(sin),
        )

    def rope_store(self, qkv: int, heads: int, cache: CudaCacheLayer) -> None:
        """Rotates queries, stores rotated keys and values in the cache."""
        queries = self._queries[qkv] = self._query_buffer(heads, cache)
        cos, sin = self._angles if self._angles is not None else (None, None)
        self._add(
            "rope_store",
            False,
            batch=_batch,
            qkv=self._memory(qkv),
            cos=None if cos is None else self._memory(cos),
            sin=None if sin is None else self._memory(sin),
            heads=heads,
            cache=cache.arguments(),
            queries=self._memory(queries),
        )

    def attention(
        self,
        queries: int,
        heads: int,
        scale: float,
        cache: CudaCacheLayer,
        dtype: torch.dtype,
        bias: RelativeBias | None = None,
        over_source: bool = False,
    ) -> int:
        """Attention over the cache, `[rows, heads * head_dim]` as `dtype`: causal, from the end of
        the row's source on, or of every row over the whole source. `queries` have been through
        rope_store or are those of the product before, which then rounds them itself."""
        out = self._buffer("attention", dtype, heads * cache.head_dim)
        served = attention_kernel(cache.head_dim, self._run.choices.get("attention", NATIVE))
        own: dict[str, Any] = {"out_stride": self._stride(out)}
        if served == NATIVE:
            self._heads.add((heads, cache.head_dim))
            own = {
                "max_chunks": lambda shape, batch, rows: self.program.max_chunks,
                "partials": lambda shape, batch, rows: self.program.partials,
                "multiprocessors": self._run.multiprocessors,
                "shared_limit": self._run.shared_limit,
            }
        self.program.attends(over_source)
        if self._fused(queries, ROUND, rounded := self._query_buffer(heads, cache)):
            self._queries[queries] = rounded
        self._add(
            "attention",
            False,
            served,
            batch=_batch,
            queries=self._memory(self._queries[queries]),
            heads=heads,
            scale=scale,
            bias=None if bias is None else bias.table.to(self._run.device),
            bias_reach=0 if bias is None else bias.reach,
            sources=lambda shape, batch, rows: self.program.sources,
            over_source=over_source,
            cache=cache.arguments(),
            out=self._memory(out),
            **own,
        )
        return out

    def _query_buffer(self, heads: int, cache: CudaCacheLayer) -> int:
        return self._buffer("queries", cache.keys.dtype, heads * cache.head_dim)

    def select_logit_rows(self, x: int, dtype: torch.dtype = torch.float32) -> int:
        """The rows of `x`, of `dtype`, whose logits are wanted: a buffer for each `x`."""
        cols = self.program.cols(x)
        out = self._buffer(f"select {x}", dtype, cols, per_logit=True)
        self._add(
            "select_logit_rows",
            True,
            batch=_batch,
            wanted=lambda shape, batch, rows: self.program.wanted,
            logit_width=lambda shape, batch, rows: shape.logits,
            x=self._memory(x),
            words=self._stride(x) * dtype.itemsize // 4,
            out=self._memory(out),
        )
        return out

    def read(self, buffer: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """A copy of a buffer of `dtype` as the last run left it."""
        return self.program.read(buffer)

    def cache_layers(
        self, data: torch.Tensor, kv_heads: int, head_dim: int
    ) -> Iterator[CudaCacheLayer]:
        """The layers of a paged cache `[layers, 2, pages, kv_heads * PAGE_TOKENS * head_dim]`."""
        if data.device.type != self._run.device.type:
            raise ValueError(f"the cache is on {data.device}, the backend on {self._run.device}")
        attention_kernel(head_dim)  # refuses what none can serve
        self.program.cache = (data, kv_heads, head_dim)
        for keys, values in data:
            yield CudaCacheLayer(keys, values, kv_heads, head_dim)

    def _needs(self, shape: Shape) -> tuple[int, int, int]:
        """Floats of workspace, counters and floats of attention partials."""
        module, sms = self._run.module, self._run.multiprocessors
        workspace = counters = partials = 0
        for n, k, per_logit in self._linears:
            rows = shape.rows * (shape.logits if per_logit else shape.width)
            if rows > 0:
                workspace = max(workspace, module.linear_workspace_floats(n, k, rows, sms))
                counters = max(counters, module.linear_counters(n, rows))
        for (heads, dim), rows in itertools.product(self._heads, [shape.rows * shape.width]):
            size = module.attention_partial_floats(rows, heads, dim, self.program.max_chunks)
            partials = max(partials, size)
        return workspace, counters, partials


def _batch(shape: Shape, batch: dict[str, Any], rows: int) -> dict[str, Any]:
    return batch
