"""The CPU backend: weights packed for the native kernels, forward passes recorded as programs."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from cascade_engine import _C
from cascade_engine.errors import RequestError
from cascade_engine.memory import Arena
from cascade_engine.ops.bias import RelativeBias
from cascade_engine.ops.launch import unpack_tiles

NATIVE_DTYPE = {
    torch.float32: _C.DType.f32,
    torch.bfloat16: _C.DType.bf16,
    torch.int8: _C.DType.i8,
}
SOURCE_DTYPE = {
    torch.float32: _C.SourceDType.f32,
    torch.bfloat16: _C.SourceDType.bf16,
    torch.float16: _C.SourceDType.f16,
}
MAX_EXCEPTIONS = 1e-3
"""Of the elements of a compressed weight: each costs time of its own."""


def activation_dtype(weights: torch.dtype) -> torch.dtype:
    """What weights of a dtype are multiplied with, and what their cache and embedding table hold:
    int8 is for matrices alone."""
    return torch.bfloat16 if weights == torch.int8 else weights


def scale_count(n: int, dtype: torch.dtype) -> int:
    """float32 scales of a packed weight of `n` rows, padding included."""
    return -(-n // _C.BLOCK_COLUMNS) * _C.BLOCK_COLUMNS if dtype == torch.int8 else 0


@dataclass
class PackedTiles:
    """The shape of a weight in the layout of csrc/include/ce/cuda_kernels.h. `gated`: the two
    halves of its rows are interleaved by eights, for the fused gate."""

    n: int
    k: int
    gated: bool = False


@dataclass(frozen=True)
class LinearWeight:
    """A weight `[n, k]` in the packed layout of csrc/include/ce/types.h (or, with PackedTiles, of
    ce/cuda_kernels.h), with its bias `[n]`; in int8 with the scale of each row, `[n, padded]`.
    Compressed bfloat16 is memory of uint8."""

    handle: Any
    memory: torch.Tensor
    bias: torch.Tensor | None = None
    scales: torch.Tensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        return self.handle.n, self.handle.k


def unpack_linear(weight: LinearWeight) -> torch.Tensor:
    """The dense `[n, k]` matrix of a packed weight; of int8, what it stands for, in float64."""
    n, k = weight.shape
    if isinstance(weight.handle, PackedTiles):
        dense = unpack_tiles(weight.memory, n, k)
        if weight.handle.gated:
            dense = dense.view(n // 16, 2, 8, k).transpose(0, 1).reshape(n, k)
        return dense
    memory = weight.memory
    if memory.dtype == torch.uint8:
        memory = torch.zeros(_C.packed_elements(n, k, _C.DType.bf16), dtype=torch.bfloat16)
        _C.decode(weight.handle, memory.data_ptr())
    if memory.dtype == torch.float32:
        blocks = memory.view(-1, k, _C.BLOCK_COLUMNS).transpose(1, 2)
    else:
        if memory.dtype == torch.int8:
            halves = memory.view(-1, (k + 1) // 2, 2, 2, _C.BLOCK_COLUMNS // 2)
            pairs = halves.permute(0, 2, 4, 1, 3)
        else:
            pairs = memory.view(-1, (k + 1) // 2, _C.BLOCK_COLUMNS, 2).transpose(1, 2)
        blocks = pairs.reshape(-1, _C.BLOCK_COLUMNS, (k + 1) // 2 * 2)
    dense = blocks.reshape(-1, blocks.shape[-1])[:n, :k]
    return dense if weight.scales is None else dense * weight.scales[:n, None].double()


def last_level_cache() -> int:
    """Bytes of the processor's largest cache; where the system does not say, those of a common
    one."""
    for level in (3, 2):
        with contextlib.suppress(OSError, ValueError):
            size = os.sysconf(f"SC_LEVEL{level}_CACHE_SIZE")
            if size > 0:
                return size
    return 32 << 20


def read_matrix(address: int, rows: int, cols: int, dtype: torch.dtype) -> torch.Tensor:
    """A copy of native memory `[rows, cols]`."""
    if rows == 0:
        return torch.empty(0, cols, dtype=dtype)
    memory = (ctypes.c_char * (rows * cols * dtype.itemsize)).from_address(address)
    return torch.frombuffer(memory, dtype=dtype).view(rows, cols).clone()


def default_threads() -> int:
    """CASCADE_THREADS, else the processors this process may run on."""
    text = os.environ.get("CASCADE_THREADS", "")
    if not text:
        return _physical_cores()
    if not text.isdecimal() or int(text) < 1:
        raise RequestError(f"CASCADE_THREADS must be a number >= 1, got {text!r}")
    return int(text)


def _physical_cores() -> int:
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    if allowed is None:
        return os.cpu_count() or 1
    cores = set()
    for cpu in allowed:
        try:
            with open(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list") as file:
                cores.add(file.read().strip())
        except OSError:
            cores.add(str(cpu))
    return len(cores)


class CpuBackend:
    """Worker threads, the kernels of one instruction set, and the packing of weights.

    `threads` None: as `default_threads`. `isa`: "portable", "avx2", "avx512", "avx512bf16", or ""
    for the best this machine has (or the one CASCADE_CPU names).
    """

    device = torch.device("cpu")
    most_drafts = sys.maxsize
    """Under one review of `draft_segments`."""
    rejects_in_segments = True
    """`draft_segments` is there for rows that go by the rejection rule."""

    def __init__(self, threads: int | None = None, isa: str = "") -> None:
        self.arena = Arena()
        self.context = _C.CpuContext(default_threads() if threads is None else threads, isa)

    @property
    def isa(self) -> str:
        return self.context.isa

    def empty_linear(self, n: int, k: int, dtype: torch.dtype, bias: bool = False) -> LinearWeight:
        """A packed weight of zeros, to be filled with `fill_linear`."""
        return self._empty_linear(self.arena, n, k, dtype, bias)

    def staged_linear(self, n: int, k: int, dtype: torch.dtype, bias: bool = False) -> LinearWeight:
        """As `empty_linear`, for a weight that only `compress` reads: its memory goes with it."""
        return self._empty_linear(Arena(), n, k, dtype, bias)

    def _empty_linear(
        self, arena: Arena, n: int, k: int, dtype: torch.dtype, bias: bool
    ) -> LinearWeight:
        native = NATIVE_DTYPE[dtype]
        memory = arena.zeros([_C.packed_elements(n, k, native)], dtype)
        count = scale_count(n, dtype)
        scales = arena.zeros([count], torch.float32) if count else None
        address = 0 if scales is None else scales.data_ptr()
        handle = _C.PackedMatrix(memory.data_ptr(), native, n, k, address)
        return LinearWeight(handle, memory, torch.zeros(n) if bias else None, scales)

    def fill_linear(self, weight: LinearWeight, rows: torch.Tensor, first_row: int) -> None:
        """Copies `rows` `[count, k]` (float32, float16, bfloat16) to rows first_row.. on; int8
        quantises each by its largest magnitude. Raises ValueError for one that is not finite."""
        rows = rows.contiguous()
        if rows.shape[1] != weight.handle.k:
            raise ValueError(f"rows of {rows.shape[1]} columns do not fit k = {weight.handle.k}")
        source = SOURCE_DTYPE[rows.dtype]
        _C.pack_rows(self.context, rows.data_ptr(), source, rows.shape[0], weight.handle, first_row)

    def gains_by_compression(self, weight_bytes: int) -> bool:
        """Whether a model of so many bytes of bfloat16 is faster compressed: it is read from memory
        each time, and decoded as fast as it comes."""
        return self.isa.startswith("avx512") and weight_bytes > last_level_cache()

    def compress(self, weight: LinearWeight) -> LinearWeight:
        """A packed bfloat16 weight without loss in three quarters of its memory; a copy as it is
        where its numbers are spread too far for that (see `MAX_EXCEPTIONS`)."""
        n, k = weight.shape
        coding = _C.Coding(self.context, weight.handle) if k <= _C.MAX_CODED_COLUMNS else None
        if coding is None or coding.exceptions > MAX_EXCEPTIONS * weight.memory.numel():
            plain = self.empty_linear(n, k, weight.memory.dtype)
            plain.memory.copy_(weight.memory)
            return replace(plain, bias=weight.bias)
        memory = self.arena.zeros([coding.num_bytes], torch.uint8)
        handle = coding.write(self.context, memory.data_ptr())
        return LinearWeight(handle, memory, weight.bias)

    def pack_linear(
        self, weight: torch.Tensor, dtype: torch.dtype, bias: torch.Tensor | None = None
    ) -> LinearWeight:
        """Packs a dense `[n, k]` weight."""
        packed = self.empty_linear(weight.shape[0], weight.shape[1], dtype, bias is not None)
        self.fill_linear(packed, weight, 0)
        if bias is not None and packed.bias is not None:
            packed.bias.copy_(bias)
        return packed

    def distributions(self, rows: int, vocab: int) -> _C.DraftDistributions:
        """What drafted tokens of rows were drawn from, for the rejection rule."""
        return _C.DraftDistributions(rows, vocab)

    def recorder(self) -> Recorder:
        return Recorder(self)

    def accept(
        self, runners_up: int = 0, logprobs: Sequence[int] = (), **arguments: Any
    ) -> list[tuple[int, int, list[int]]]:
        """The acceptance rule over rows of logits: see `_C.accept`. `runners_up` and `logprobs`:
        what `siblings` and which rows `logprobs` will be asked for; they need no preparation
        here."""
        return _C.accept(self.context, **arguments)

    def draft(self, **arguments: Any) -> list[int]:
        """Tokens that a model drafts on its own: see `_C.draft`."""
        return _C.draft(self.context, **arguments)

    def draft_segments(self, **arguments: Any) -> Any:
        """Tokens that a model drafts with statistics below it: see `_C.draft_segments`."""
        return _C.draft_segments(self.context, **arguments)

    def logprobs(self, **arguments: Any) -> list[list[tuple[float, list[tuple[int, float]]]]]:
        """Log-probabilities of tokens that a review left: see `_C.logprobs`."""
        return _C.logprobs(self.context, **arguments)

    def siblings(self, **arguments: Any) -> list[list[list[tuple[int, float]]]]:
        """Runners-up of tokens that a review left: see `_C.siblings`."""
        return _C.siblings(self.context, **arguments)

    def propose(self, **arguments: Any) -> list[int]:
        """Max-Gram, filled up from a table: see `_C.propose`."""
        return _C.propose(self.context, **arguments)

    def speculation(self, *_: Any, **__: Any) -> None:
        """Drafts and reviews are actions of their own here: nobody waits between them."""

    def propose_trees(self, drafter: _C.Drafter, **arguments: Any) -> list[int]:
        """Trees and chains by n-gram statistics: see `_C.Drafter.propose`."""
        return drafter.propose(self.context, **arguments)


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
