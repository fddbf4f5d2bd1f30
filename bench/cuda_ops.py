"""CUDA kernels against the hardware's copy bandwidth and torch, in one process.

    python -m bench.cuda_ops --json FILE                 # every case, on the GPU
    python -m bench.cuda_ops --op linear --op attention
    python -m bench.cuda_ops --model                     # decode and review of the 7B shape as well

Each case is captured in a CUDA graph and replayed with a cold L2 (a large buffer is written before
every replay); medians, p10 and p90 of microseconds between events. GB/s counts what must be read
once; % is of the bandwidth of a device-to-device copy measured at the start.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch

from bench.cuda_cases import Sizes, all_cases
from bench.cuda_model import measure_model
from bench.measure import machine_facts, quantiles, write_json
from cascade_engine import _C
from cascade_engine.ops.cuda import check_device
from cascade_engine.ops.launch import Launcher

FLUSH_BYTES = 512 << 20
REPEATS = 50


def cold_microseconds(call: Callable[[], object], flush: torch.Tensor) -> list[float]:
    """Times of a captured graph's replays."""
    for _ in range(2):
        call()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    times = []
    for _ in range(REPEATS):
        flush.zero_()
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1000)
    return times


def copy_bandwidth(flush: torch.Tensor) -> float:
    """Bytes per second read and written by a device-to-device copy."""
    target = torch.empty_like(flush)
    times = cold_microseconds(lambda: target.copy_(flush), flush)
    return 2 * flush.numel() / (min(times) * 1e-6)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--op", action="append", help="linear, attention, max_gram, ...")
    parser.add_argument("--model", action="store_true", help="decode and review of the 7B shape")
    parser.add_argument("--json")
    options = parser.parse_args()
    device = torch.device("cuda")
    check_device(device)
    run = Launcher(_C.cuda, device)
    flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device=device)
    ceiling = copy_bandwidth(flush)
    print(f"{torch.cuda.get_device_name()}: copies at {ceiling / 1e9:.0f} GB/s")
    results: list[dict[str, Any]] = []
    for case in all_cases(run, Sizes()):
        if options.op and case.op not in options.op:
            continue
        ours = quantiles(cold_microseconds(case.ours, flush))
        entry: dict[str, Any] = {"op": case.op, "case": case.name, "us": ours}
        text = f"{case.op:14} {case.name:44} {ours['median']:9.1f} us"
        if case.read_bytes:
            entry["gb_s"] = case.read_bytes / ours["median"] / 1e3
            entry["of_copy"] = entry["gb_s"] * 1e9 / ceiling
            text += f" {entry['gb_s']:7.0f} GB/s {entry['of_copy']:6.1%}"
        if case.torch is not None:
            entry["torch_us"] = quantiles(cold_microseconds(case.torch, flush))
            entry["vs_torch"] = entry["torch_us"]["median"] / ours["median"]
            text += f"  {entry['vs_torch']:.2f} x torch"
        print(text, flush=True)
        results.append(entry)
    if options.model:
        results += measure_model(ceiling)
    if options.json:
        facts = {
            **machine_facts(0),
            "gpu": torch.cuda.get_device_name(),
            "copy_gb_s": ceiling / 1e9,
        }
        facts["time"] = time.strftime("%Y-%m-%d %H:%M:%S")
        write_json(options.json, {"machine": facts, "results": results})


if __name__ == "__main__":
    main()
