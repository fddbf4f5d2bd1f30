"""Timing that holds on shared machines: interleaved runs, medians, the machine's ceilings."""

from __future__ import annotations

import json
import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from cascade_engine import _C, __version__, build_info

STREAM_FLOATS = 1 << 26  # 256 MB, far beyond any cache
# Idle threads of an OpenMP runtime keep spinning for a few milliseconds, on the cores that the next
# case needs.
SETTLE_SECONDS = 0.005
OUTPUTS = ("--json", "--plot")
"""Options that name a file to write."""


def quantiles(samples: Sequence[float]) -> dict[str, float]:
    """Median, 10th and 90th percentile."""
    ordered = sorted(samples)

    def at(share: float) -> float:
        return ordered[round(share * (len(ordered) - 1))]

    return {"median": statistics.median(ordered), "p10": at(0.1), "p90": at(0.9)}


def interleaved(
    cases: Mapping[str, Callable[[], object]], rounds: int, warmup: int = 2
) -> dict[str, list[float]]:
    """Seconds of each case, one run of every case a round, so that drift hits all alike.

    Before the timed run the machine settles and the case runs once more, so that no case is timed
    with another's threads still awake, or with its own asleep.
    """
    for _ in range(warmup):
        for case in cases.values():
            case()
    times: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, case in cases.items():
            time.sleep(SETTLE_SECONDS)
            case()
            begin = time.perf_counter()
            case()
            times[name].append(time.perf_counter() - begin)
    return times


def paired_ratio(numerator: Sequence[float], denominator: Sequence[float]) -> dict[str, float]:
    """Quantiles of the ratio round by round."""
    return quantiles([a / b for a, b in zip(numerator, denominator, strict=True)])


class ReadCeiling:
    """The machine's read bandwidth, measured with the best read kernel: summing a large array."""

    def __init__(self, threads: int) -> None:
        self._context = _C.CpuContext(threads)
        self._data = torch.ones(STREAM_FLOATS)

    @property
    def num_bytes(self) -> int:
        return self._data.numel() * 4

    def __call__(self) -> None:
        _C.stream(self._context, self._data.data_ptr(), self._data.numel())


def machine_facts(threads: int) -> dict[str, Any]:
    """What a figure must be read with."""
    info = build_info()
    model = ""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        model = next((line.split(":")[1].strip() for line in lines if "model name" in line), "")
    return {
        "version": __version__,
        "cpu": model,
        "cores": os.cpu_count(),
        "threads": threads,
        "instruction_set": info["cpu_default"],
        "compiler": info["compiler"],
        "platform": platform.platform(),
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
        "load_average": os.getloadavg()[0],
    }


def command_line() -> str:
    """The command that this process runs, without where its figures go."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    words = ["python", *(["-m", spec.name.removesuffix(".__main__")] if spec else sys.argv[:1])]
    rest = iter(sys.argv[1:])
    for word in rest:
        if word in OUTPUTS:
            next(rest, None)
        else:
            words.append(word)
    return shlex.join(words)


def write_json(path: str | None, report: Mapping[str, Any]) -> None:
    """The report and the command that made it."""
    if path:
        document = {"command": command_line(), **report}
        Path(path).write_text(json.dumps(document, indent=2) + "\n")
