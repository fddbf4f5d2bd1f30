"""Records a model's description as launches, one a method."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from cascade_engine.gpu_kernels import NATIVE, attention_kernel
from cascade_engine.ops.bias import RelativeBias
from cascade_engine.ops.cuda_batch import Buffer, Shape
from cascade_engine.ops.cuda_program import CudaProgram
from cascade_engine.ops.launch import ADD, ELEMENT, GEGLU, RELU, ROUND, STORE, SWIGLU, Launcher
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


class CudaRecorder:
    """Records one forward pass; the methods are those of the CPU's `Recorder`."""

    def __init__(self, launcher: Launcher, graphs: bool) -> None:
        self.program = CudaProgram(launcher, graphs)
        self.program.needs = self._needs
        self._run = launcher
        self._buffers: dict[tuple[object, ...], int] = {}
        self._linears: set[tuple[int, int, bool]] = set()
        self._heads: set[tuple[int, int]] = set()
        self._angles: tuple[int, int] | None = None
        self._queries: dict[int, int] = {}
        self._last_linear: tuple[int, LinearWeight, int] | None = None

    def _buffer(self, role: str, dtype: torch.dtype, cols: int, per_logit: bool = False) -> int:
        key = (role, dtype, cols, per_logit)
        if key not in self._buffers:
            self.program.buffers.append(Buffer(dtype, cols, per_logit))
            self._buffers[key] = len(self.program.buffers) - 1
        return self._buffers[key]

    def _add(self, name: str, per_logit: bool, served: str | None = None, **fixed: Any) -> None:
        """A launch, of the kernel that serves `name`, by default the one that was chosen for it;
        callable values are asked at the time of a run."""
        served = served or self._run.choices.get(name, NATIVE)
        launch = self._run if served == NATIVE else self._run.triton

        def step(shape: Shape, batch: dict[str, Any]) -> None:
            rows = shape.rows * (shape.logits if per_logit else shape.width)
            values = {k: v(shape, batch, rows) if callable(v) else v for k, v in fixed.items()}
            launch(name, **values)

        self.program.steps.append((per_logit, step))
        self._last_linear = None

    def _memory(self, buffer: int) -> Any:
        return lambda shape, batch, rows: self.program.buffers[buffer].memory

    def _per_logit(self, buffer: int) -> bool:
        return self.program.buffers[buffer].per_logit

    def _stride(self, buffer: int) -> int:
        return self.program.buffers[buffer].stride

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
            rows=_rows,
            cols=cols,
            out=self._memory(out),
            out_stride=self._stride(out),
            dtype=ELEMENT[dtype],
        )
        return out

    def linear(self, x: int, weight: LinearWeight, add_to: int | None = None) -> int:
        """`x W^T + bias`, into a buffer of its own or added to `add_to`."""
        out = add_to
        if out is None:
            out = self._buffer("linear", torch.float32, weight.shape[0], self._per_logit(x))
        output = STORE if add_to is None else ADD
        self._add_linear(x, weight, output, out)
        self._last_linear = (x, weight, out) if add_to is None else None
        return out

    def _add_linear(self, x: int, weight: LinearWeight, output: int, out: int) -> None:
        n, k = weight.shape
        per_logit = self._per_logit(x)
        self._linears.add((n, k, per_logit))
        self._add(
            "linear",
            per_logit,
            weights=weight.memory,
            dtype=ELEMENT[weight.memory.dtype],
            n=n,
            k=k,
            x=self._memory(x),
            x_stride=self._stride(x),
            rows=_rows,
            bias=None if weight.bias is None else weight.bias.to(self._run.device),
            output=output,
            y=self._memory(out),
            # Attention's queries lie row behind row, whatever their size.
            y_stride=self.program.cols(out) if output == ROUND else self._stride(out),
            y_cols=self.program.cols(out),
            workspace=lambda shape, batch, rows: self.program.workspace,
            counters=lambda shape, batch, rows: self.program.counters,
            multiprocessors=self._run.multiprocessors,
        )

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

    def _fused(self, linear: int, output: int, out: int) -> bool:
        """Whether the product recorded last computes `linear`: then it does what is to be done to
        it itself, and writes `out` instead."""
        last, self._last_linear = self._last_linear, None
        if last is None or last[2] != linear:
            return False
        x, weight, _ = last
        if output in (SWIGLU, GEGLU):
            interleave_gates(weight)
        self.program.steps.pop()
        self._add_linear(x, weight, output, out)
        return True

    def swiglu(self, gate_up: int, dtype: torch.dtype) -> int:
        """`silu(gate) * up` of the two halves of `gate_up`, as `dtype`. Behind the product that
        computed them it is part of that product: the weight's gates and ups are interleaved."""
        return self._gate("swiglu", SWIGLU, gate_up, dtype)

    def geglu(self, gate_up: int, dtype: torch.dtype) -> int:
        """`gelu(gate) * up`, as swiglu; GELU by its tanh form."""
        return self._gate("geglu", GEGLU, gate_up, dtype)

    def relu(self, x: int, dtype: torch.dtype) -> int:
        """`max(x, 0)` as `dtype`, of the product recorded last."""
        out = self._buffer("relu", dtype, self.program.cols(x), self._per_logit(x))
        if not self._fused(x, RELU, out):
            raise ValueError("device 'cuda' has relu as part of the product before it")
        return out

    def _gate(self, name: str, output: int, gate_up: int, dtype: torch.dtype) -> int:
        cols = self.program.cols(gate_up) // 2
        out = self._buffer(name, dtype, cols, self._per_logit(gate_up))
        if cols % 8 == 0 and self._fused(gate_up, output, out):
            return out
        self._add(
            name,
            self._per_logit(gate_up),
            gate_up=self._memory(gate_up),
            rows=_rows,
            cols=cols,
            out=self._memory(out),
            out_stride=self._stride(out),
            dtype=ELEMENT[dtype],
        )
        return out

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


def interleave_gates(weight: LinearWeight) -> None:
    """Reorders a weight of gates above ups, once and in place: tiles of eight gates and the eight
    ups that belong to them, as the fused gate of `linear` wants them."""
    if weight.handle.gated:
        return
    tiles, steps = weight.memory.shape[:2]
    half_blocks = weight.shape[0] // 16
    order = torch.arange(2 * tiles, device=weight.memory.device)
    order[: 2 * half_blocks] = torch.arange(2 * half_blocks).view(2, half_blocks).T.reshape(-1)
    # Halves of tiles are blocks of eight outputs.
    view = weight.memory.view(tiles, steps, 32, 2, 2, 2)
    blocks = view.permute(0, 4, 1, 2, 3, 5).reshape(2 * tiles, steps, 32, 2, 2)[order]
    view.copy_(blocks.view(tiles, 2, steps, 32, 2, 2).permute(0, 2, 3, 4, 1, 5))
    if weight.bias is not None:
        weight.bias.copy_(weight.bias.view(-1, 8)[order[: 2 * half_blocks]].view(-1))
    weight.handle.gated = True


def _batch(shape: Shape, batch: dict[str, Any], rows: int) -> dict[str, Any]:
    return batch


def _rows(shape: Shape, batch: dict[str, Any], rows: int) -> int:
    return rows
