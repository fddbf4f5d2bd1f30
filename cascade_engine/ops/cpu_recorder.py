"""Forward passes on the CPU, recorded as native programs."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from cascade_engine import _C
from cascade_engine.ops.bias import RelativeBias
from cascade_engine.ops.weights import NATIVE_DTYPE, LinearWeight

if TYPE_CHECKING:
    from cascade_engine.ops.cpu import CpuBackend


def read_matrix(address: int, rows: int, cols: int, dtype: torch.dtype) -> torch.Tensor:
    """A copy of native memory `[rows, cols]`."""
    if rows == 0:
        return torch.empty(0, cols, dtype=dtype)
    memory = (ctypes.c_char * (rows * cols * dtype.itemsize)).from_address(address)
    return torch.frombuffer(memory, dtype=dtype).view(rows, cols).clone()


class Recorder:
    """Records one forward pass. Each method stands for one operation and returns the buffer that
    will hold its result; the next call of the same operation with the same width reuses it.

    `keep` holds the tensors whose memory the program borrows.
    """

    def __init__(self, backend: CpuBackend) -> None:
        self.program = _C.Program(backend.context)
        self.keep: list[object] = [backend]
        self._buffers: dict[tuple[object, ...], int] = {}
        self._per_logit: set[int] = set()

    def _buffer(self, role: str, dtype: _C.DType, cols: int, per_logit: bool = False) -> int:
        key = (role, dtype, cols, per_logit)
        if key not in self._buffers:
            self._buffers[key] = self.program.buffer(dtype, cols, per_logit)
            if per_logit:
                self._per_logit.add(self._buffers[key])
        return self._buffers[key]

    def embedding(self, table: LinearWeight | torch.Tensor) -> int:
        """float32 `[rows, k]` of the tokens' embeddings; a packed table is a tied head's."""
        if isinstance(table, LinearWeight):
            handle, packed = table.handle, True
        else:
            n, k = table.shape
            dtype = NATIVE_DTYPE[table.dtype]
            handle, packed = _C.PackedMatrix(table.data_ptr(), dtype, n, k), False
        out = self._buffer("embedding", _C.DType.f32, handle.k)
        self.keep.append(table)
        self.program.embedding(out, handle, packed)
        return out

    def rms_norm(self, x: int, weight: torch.Tensor, eps: float, dtype: torch.dtype) -> int:
        """Root-mean-square norm of `x` times `weight`, as `dtype`."""
        per_logit = x in self._per_logit
        out = self._buffer("rms_norm", NATIVE_DTYPE[dtype], self.program.cols(x), per_logit)
        self.keep.append(weight)
        self.program.rms_norm(out, x, weight.data_ptr(), eps)
        return out

    def linear(self, x: int, weight: LinearWeight, add_to: int | None = None) -> int:
        """`x W^T + bias`, into a buffer of its own or added to `add_to`."""
        out = add_to
        if out is None:
            out = self._buffer("linear", _C.DType.f32, weight.handle.n, x in self._per_logit)
        bias = 0 if weight.bias is None else weight.bias.data_ptr()
        self.keep.append(weight)
        self.program.linear(out, x, weight.handle, bias, add_to is not None)
        return out

    def rope_angles(self, inv_freq: torch.Tensor, head_dim: int) -> None:
        """Sets the rotation for the rope_store calls that follow."""
        self.keep.append(inv_freq)
        self.program.rope_angles(inv_freq.data_ptr(), head_dim)

    def rope_store(self, qkv: int, heads: int, cache: _C.CacheLayer) -> None:
        """Rotates queries in place, stores rotated keys and values in the cache."""
        self.program.rope_store(qkv, heads, cache)

    def attention(
        self,
        queries: int,
        heads: int,
        scale: float,
        cache: _C.CacheLayer,
        dtype: torch.dtype,
        bias: RelativeBias | None = None,
        over_source: bool = False,
    ) -> int:
        """Attention over the cache, `[rows, heads * head_dim]` as `dtype`: causal, from the end of
        the row's source on (its beginning, where there is none), or of every row over the whole
        source. `queries` have keys and values behind them, which attention over a source may lack.
        """
        out = self._buffer("attention", NATIVE_DTYPE[dtype], heads * cache.head_dim)
        table, reach = (0, 0) if bias is None else (bias.table.data_ptr(), bias.reach)
        self.keep.append(bias)
        self.program.attention(out, queries, heads, scale, cache, over_source, table, reach)
        return out

    def swiglu(self, gate_up: int, dtype: torch.dtype) -> int:
        """`silu(gate) * up` of the two halves of `gate_up`, as `dtype`."""
        cols = self.program.cols(gate_up) // 2
        out = self._buffer("swiglu", NATIVE_DTYPE[dtype], cols, gate_up in self._per_logit)
        self.program.swiglu(out, gate_up)
        return out

    def geglu(self, gate_up: int, dtype: torch.dtype) -> int:
        """`gelu(gate) * up` of the two halves of `gate_up`, as `dtype`; GELU by its tanh form."""
        cols = self.program.cols(gate_up) // 2
        out = self._buffer("geglu", NATIVE_DTYPE[dtype], cols, gate_up in self._per_logit)
        self.program.geglu(out, gate_up)
        return out

    def relu(self, x: int, dtype: torch.dtype) -> int:
        """`max(x, 0)` as `dtype`."""
        out = self._buffer("relu", NATIVE_DTYPE[dtype], self.program.cols(x), x in self._per_logit)
        self.program.relu(out, x)
        return out

    def read(self, buffer: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """A copy of a buffer of `dtype` as the last run left it."""
        program = self.program
        address, rows = program.data(buffer), program.rows(buffer)
        return read_matrix(address, rows, program.cols(buffer), dtype)

    def select_logit_rows(self, x: int, dtype: torch.dtype = torch.float32) -> int:
        """The rows of `x`, of `dtype`, whose logits are wanted: a buffer for each `x`."""
        out = self._buffer(f"select {x}", NATIVE_DTYPE[dtype], self.program.cols(x), per_logit=True)
        self.program.select_logit_rows(out, x)
        return out

    def cache_layers(
        self, data: torch.Tensor, kv_heads: int, head_dim: int
    ) -> Iterator[_C.CacheLayer]:
        """The layers of a paged cache `[layers, 2, pages, kv_heads * head_dim * PAGE_TOKENS]`, for
        rope_store and attention."""
        self.keep.append(data)
        dtype = NATIVE_DTYPE[data.dtype]
        for keys, values in data:
            yield _C.CacheLayer(keys.data_ptr(), values.data_ptr(), dtype, kv_heads, head_dim)
