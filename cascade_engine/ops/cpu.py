"""The CPU backend: its threads, weights packed for the native kernels, and actions on rows."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from cascade_engine import _C
from cascade_engine.errors import RequestError
from cascade_engine.memory import Arena
from cascade_engine.ops.cpu_recorder import Recorder
from cascade_engine.ops.weights import NATIVE_DTYPE, SOURCE_DTYPE, LinearWeight, scale_count

MAX_EXCEPTIONS = 1e-3
"""Of the elements of a compressed weight: each costs time of its own."""


def last_level_cache() -> int:
    """Bytes of the processor's largest cache; where the system does not say, those of a common
    one."""
    for level in (3, 2):
        with contextlib.suppress(OSError, ValueError):
            size = os.sysconf(f"SC_LEVEL{level}_CACHE_SIZE")
            if size > 0:
                return size
    return 32 << 20


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

    `threads` None: as `default_threads`. `isa`: "portable", "avx2", "avx512", "avx512bf16",
    "amx", or "" for the best this machine has (or the one CASCADE_CPU names).
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
        return self.isa not in ("portable", "avx2") and weight_bytes > last_level_cache()

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
