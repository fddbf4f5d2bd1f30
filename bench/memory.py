"""Memory that a loaded engine takes, beside its weights and cache, in a process of its own."""

from __future__ import annotations

import multiprocessing
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from bench.shapes import write_shape
from cascade_engine import Engine, PlainDecoding, SamplingParams

STATUS = Path("/proc/self/status")
CLEAR_REFS = Path("/proc/self/clear_refs")
RESET_PEAK = "5"


def measure_memory(target: Path, dtype: str, threads: int, context: int) -> dict[str, Any] | None:
    """Resident bytes that loading `target` and decoding to the end of `context` add to a process
    that has run another model before, now and at the peak. None where there is no /proc."""
    if not CLEAR_REFS.exists():
        return None
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        return pool.submit(_in_child, target, dtype, threads, context).result()


def _in_child(target: Path, dtype: str, threads: int, context: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as scratch:
        # Brings in the pages of the libraries themselves.
        _run(write_shape("tiny", "bf16", Path(scratch)), dtype, threads, 64)
    before = _status("VmRSS")
    CLEAR_REFS.write_text(RESET_PEAK)
    engine = _run(target, dtype, threads, context)
    resident, peak = _status("VmRSS") - before, _status("VmHWM") - before
    held = engine.report.weight_bytes + engine.report.cache_bytes
    return {
        "weight_bytes": engine.report.weight_bytes,
        "cache_bytes": engine.report.cache_bytes,
        "resident_bytes": resident,
        "peak_bytes": peak,
        "over_weights_and_cache": resident / held,
        "peak_over_weights_and_cache": peak / held,
    }


def _run(target: Path, dtype: str, threads: int, context: int) -> Engine:
    """An engine whose one row has filled its cache."""
    engine = Engine.load(
        target,
        dtype=dtype,
        threads=threads,
        policy=PlainDecoding(),
        max_rows=1,
        max_context=context,
    )
    new = min(16, context // 2)
    prompt = [3 + i % 64 for i in range(context - new)]
    engine.generate([prompt], SamplingParams(max_tokens=new, ignore_eos=True))
    return engine


def _status(field: str) -> int:
    """Bytes of a field of /proc/self/status."""
    lines = STATUS.read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(field + ":"))) * 1024
