"""Which kernels serve the operations that have two: measured once for a device, then remembered."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from cascade_engine import _C
from cascade_engine.gpu_kernels import (
    ALTERNATIVES,
    NATIVE_HEAD_DIM,
    Timing,
    choices,
    gpu_name,
    overrides,
    save_timings,
    saved_timings,
    triton_version,
)
from cascade_engine.ops.launch import ELEMENT, Launcher

DTYPE = torch.bfloat16
HIDDEN, INNER, HEADS, KV_HEADS = 4096, 11008, 32, 8
"""Of the shapes that are measured: those of models of 7B parameters, and grouped heads."""
CONTEXTS = ((1, 1, 2048), (8, 8, 4096), (1, 112, 512))
"""Rows, new tokens of each and tokens that these see, for attention: steps, reviews, prompts."""
PAGE_TOKENS, CHUNK, NO_TREE = 16, 256, 2**31 - 1
LAUNCHES, ROUNDS = 20, 5
TOLERANCE = 0.02
"""Of the largest value: kernels that differ by more do not do the same."""

_kept: dict[str, dict[str, Timing]] = {}
"""By GPU, what this process goes by: its engines agree where no file keeps what was measured."""

Timer = Callable[[Callable[[], object]], float]
"""Seconds of one call's work on the device."""


class Case(NamedTuple):
    """One shape of an operation: its arguments, those of either kernel alone, what it writes."""

    operation: str
    arguments: dict[str, Any]
    native: dict[str, Any]
    triton: dict[str, Any]
    written: list[torch.Tensor]


def chosen_kernels(
    launcher: Launcher, timer: Timer | None = None, cache: Path | str | None = "auto"
) -> dict[str, str]:
    """By operation, who serves on this launcher's device. What the environment does not say and
    nobody has measured here is measured now: some milliseconds a kernel, the first time beside
    Triton's compilation. Raises RequestError for what the environment cannot say."""
    said = overrides()
    index = launcher.device.index
    if index is None:
        index = torch.cuda.current_device() if launcher.device.type == "cuda" else 0
    gpu = gpu_name(_C.build_info(), index)
    if triton_version() is None or gpu is None:
        return choices({})
    kept = _kept.setdefault(gpu, {}) if cache == "auto" else {}
    timings = {**saved_timings(gpu, cache)[0], **kept}
    missing = [name for name in ALTERNATIVES if name not in timings and name not in said]
    if missing:
        timings |= measure(launcher, missing, timer or partial(device_seconds, launcher))
        save_timings(gpu, timings, cache)
    kept.update(timings)
    return choices(timings)


def measure(launcher: Launcher, operations: list[str], timer: Timer) -> dict[str, Timing]:
    """Either kernel's time on each shape. Where Triton's cannot run here, or does not compute what
    the native one does, that is what was found."""
    found = {name: Timing([], []) for name in operations}
    for case in cases(launcher):
        timing = found.get(case.operation)
        if timing is None or timing.failure:
            continue
        native = partial(launcher, case.operation, **case.arguments, **case.native)
        other = partial(launcher.triton, case.operation, **case.arguments, **case.triton)
        try:
            _check_same(native, other, case.written)
            times = timer(native) * 1e6, timer(other) * 1e6
        except Exception as error:  # whatever keeps Triton from running: the native kernel serves
            reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            found[case.operation] = Timing([], [], reason)
            continue
        timing.native.append(times[0])
        timing.triton.append(times[1])
    return found


def device_seconds(launcher: Launcher, work: Callable[[], object]) -> float:
    """Of one of many launches in a graph, between events: what the host does for a launch is not
    part of it, as it is not in a pass."""

    def launches() -> None:
        for _ in range(LAUNCHES):
            work()

    work()
    torch.cuda.synchronize(launcher.device)
    replay, times = launcher.capture(launches), []
    replay()
    for _ in range(ROUNDS):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1e-3 / LAUNCHES)
    return statistics.median(times)


def cases(launcher: Launcher) -> Iterator[Case]:
    """Steps of one and of 16 tokens; attention over CONTEXTS."""
    for rows in (1, 16):
        yield _norm(launcher, rows)
        yield _gate(launcher, rows)
        yield _rope(launcher, rows)
    for rows, width, context in CONTEXTS:
        yield _attention(launcher, rows, width, context)


def _norm(run: Launcher, rows: int) -> Case:
    out = _zeros(run, rows, HIDDEN)
    arguments = {
        "x": _numbers(run, rows, HIDDEN),
        "weight": _numbers(run, HIDDEN),
        "eps": 1e-5,
        "rows": rows,
        "cols": HIDDEN,
        **_matrix(out),
    }
    return Case("rms_norm", arguments, {}, {}, [out])


def _gate(run: Launcher, rows: int) -> Case:
    out = _zeros(run, rows, INNER)
    gate_up = _numbers(run, rows, 2 * INNER)
    arguments = {"gate_up": gate_up, "rows": rows, "cols": INNER, **_matrix(out)}
    return Case("swiglu", arguments, {}, {}, [out])


def _matrix(out: torch.Tensor) -> dict[str, Any]:
    return {"out": out, "out_stride": out.shape[1], "dtype": ELEMENT[DTYPE]}


def _rope(run: Launcher, rows: int) -> Case:
    half = NATIVE_HEAD_DIM // 2
    angles = _numbers(run, rows, half)
    queries, cache = _zeros(run, rows, HEADS * NATIVE_HEAD_DIM), _cache(run, 1, rows)
    arguments = {
        "batch": _batch(run, 1, rows, 0),
        "qkv": _numbers(run, rows, (HEADS + 2 * KV_HEADS) * NATIVE_HEAD_DIM),
        "cos": angles.cos(),
        "sin": angles.sin(),
        "heads": HEADS,
        "cache": cache,
        "queries": queries,
    }
    return Case("rope_store", arguments, {}, {}, [queries, cache["keys"], cache["values"]])


def _attention(run: Launcher, rows: int, width: int, context: int) -> Case:
    cols, chunks = HEADS * NATIVE_HEAD_DIM, -(-context // CHUNK)
    cache, out = _cache(run, rows, context), _zeros(run, rows * width, cols)
    for part in ("keys", "values"):
        cache[part].copy_(_numbers(run, *cache[part].shape))
    floats = run.module.attention_partial_floats(rows * width, HEADS, NATIVE_HEAD_DIM, chunks)
    arguments = {
        "batch": _batch(run, rows, width, context - width),
        "queries": _numbers(run, rows * width, cols).to(DTYPE),
        "heads": HEADS,
        "scale": NATIVE_HEAD_DIM**-0.5,
        "bias": None,
        "bias_reach": 0,
        "sources": None,
        "over_source": False,
        "cache": cache,
        "out": out,
    }
    native = {
        "max_chunks": chunks,
        "partials": torch.zeros(floats, device=run.device),
        "multiprocessors": run.multiprocessors,
        "shared_limit": run.shared_limit,
    }
    return Case("attention", arguments, native, {"out_stride": cols}, [out])


def _batch(run: Launcher, rows: int, width: int, start: int) -> dict[str, Any]:
    """Chains of `width` new tokens behind `start` cached ones."""
    pages = -(-(start + width) // PAGE_TOKENS)

    def ints(value: int) -> torch.Tensor:
        return torch.full((rows,), value, dtype=torch.int32, device=run.device)

    return {
        "rows": rows,
        "width": width,
        "slots": torch.arange(rows, dtype=torch.int32, device=run.device),
        "starts": ints(start),
        "counts": ints(width),
        "bases": ints(NO_TREE),
        "ancestors": torch.zeros(rows, width, dtype=torch.int64, device=run.device),
        "tokens": torch.zeros(rows, start + width, dtype=torch.int32, device=run.device),
        "token_stride": start + width,
        "block_tables": torch.arange(rows * pages, dtype=torch.int32, device=run.device),
        "table_stride": pages,
    }


def _cache(run: Launcher, rows: int, context: int) -> dict[str, Any]:
    pages = -(-context // PAGE_TOKENS)
    shape = (rows * pages, KV_HEADS, PAGE_TOKENS, NATIVE_HEAD_DIM)
    heads = {"kv_heads": KV_HEADS, "head_dim": NATIVE_HEAD_DIM, "dtype": ELEMENT[DTYPE]}
    return {"keys": _zeros(run, *shape), "values": _zeros(run, *shape), **heads}


def _zeros(run: Launcher, *shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=DTYPE, device=run.device)


def _numbers(run: Launcher, *shape: int) -> torch.Tensor:
    """float32 in -1..1; nobody's random numbers are used up."""
    count = torch.Size(shape).numel()
    return torch.arange(count, dtype=torch.float32, device=run.device).mul_(0.7).sin_().view(shape)


def _check_same(
    native: Callable[[], object], other: Callable[[], object], written: list[torch.Tensor]
) -> None:
    native()
    expected = [tensor.clone() for tensor in written]
    for tensor in written:
        tensor.zero_()
    other()
    for tensor, exact in zip(written, expected, strict=True):
        error = (tensor.float() - exact.float()).abs().max()
        if not error <= TOLERANCE * exact.float().abs().max():
            raise ValueError(f"it differs from the native kernel by {float(error):.3g}")
