"""What the machine can do at best, measured: how fast memory is read, how fast `linear` multiplies
when its weights are in the processor's caches. And how large a packed weight is."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import torch

from cascade_engine import _C
from cascade_engine.memory import Arena
from cascade_engine.ops.cpu import CpuBackend
from cascade_engine.ops.weights import NATIVE_DTYPE, activation_dtype, scale_count

READ_BYTES = 512 << 20
LINEAR_ROWS = 64
LINEAR_SIZE = 512
LINEAR_REPEATS = 8
SECONDS = 0.7
"""For each measurement."""


class Measurement(NamedTuple):
    """A rate per second, the best of some runs."""

    rate: float
    runs: int
    how: str


def packed_bytes(n: int, k: int, dtype: torch.dtype) -> int:
    """Bytes of a weight [n, k] as `linear` streams it, padding and scales included."""
    elements = int(_C.packed_elements(n, k, NATIVE_DTYPE[dtype]))
    return elements * dtype.itemsize + 4 * scale_count(n, dtype)


def compressed_bytes(n: int, k: int, dtype: torch.dtype) -> int:
    """As `packed_bytes`, of bfloat16 compressed (see `CpuBackend.compress`), but for the few
    numbers that stand apart."""
    per_block = 16 + 4 + 4  # its table, where its exceptions are, and their end
    return int(_C.packed_elements(n, k, _C.DType.coded)) + per_block * -(-n // _C.BLOCK_COLUMNS)


def read_bandwidth(backend: CpuBackend, size: int = READ_BYTES) -> Measurement:
    """Bytes read per second over and over from `size` bytes, by all threads of the backend."""
    data = Arena().zeros([max(1, size // 4)], torch.float32).fill_(1)
    seconds, runs = _best(lambda: _C.stream(backend.context, data.data_ptr(), data.numel()))
    return Measurement(data.numel() * 4 / seconds, runs, f"sum over {size / 1e6:.3g} MB")


def multiply_rate(backend: CpuBackend, dtype: torch.dtype) -> Measurement:
    """Multiply-adds per second of `linear`, its weights in the caches."""
    size, rows = LINEAR_SIZE, LINEAR_ROWS
    recorder = backend.recorder()
    weight = backend.pack_linear(torch.zeros(size, size), dtype)
    dtype = activation_dtype(dtype)
    x = recorder.embedding(torch.zeros(1, size, dtype=dtype))
    h = recorder.rms_norm(x, torch.ones(size), 1e-5, dtype)
    for _ in range(LINEAR_REPEATS):
        recorder.linear(h, weight)
    tokens = torch.zeros(1, rows, dtype=torch.int32)
    table = torch.zeros(1, rows, dtype=torch.int32)
    recorder.program.bind_rows(tokens.data_ptr(), rows, 1)
    recorder.program.bind_block_tables(table.data_ptr(), rows, 1)
    seconds, runs = _best(lambda: recorder.program.run([0], [0], [rows], [0]))
    done = LINEAR_REPEATS * rows * size * size
    return Measurement(done / seconds, runs, f"{size} x {size} weight, {rows} rows")


def _best(run: Callable[[], object]) -> tuple[float, int]:
    """Seconds of the fastest run, after one that is not counted, and how many there were."""
    run()
    best, runs, begin = float("inf"), 0, time.perf_counter()
    while runs < 3 or time.perf_counter() - begin < SECONDS:
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
        runs += 1
    return best, runs
