"""Where bench.ops measures: a device's cases, its clock and its ceiling.

A clock times several runs together, one of each a round, so that drift hits all alike; one of them
is the ceiling: reading a large array on a CPU, a device-to-device copy on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch

from bench import cuda_cases, cuda_token_cases, op_cases
from bench.measure import ReadCeiling, interleaved, machine_facts
from bench.op_case import Case, Size
from bench.shapes import DTYPES
from cascade_engine import _C
from cascade_engine.errors import RequestError
from cascade_engine.ops.cpu import CpuBackend
from cascade_engine.ops.cuda import check_device
from cascade_engine.ops.launch import Launcher

Runs = Mapping[str, Callable[[], object]]
Times = dict[str, list[float]]
CEILING = "ceiling"
COPY_BYTES = 512 << 20  # far beyond any L2
CPU_TOKENS = (1, 2, 4, 8, 16, 32, 64, 512)
CPU_SIZES: tuple[Size, ...] = (*((1, tokens) for tokens in CPU_TOKENS), (16, 1))


class Device(Protocol):
    """`sizes` and `contexts` are what is measured of an operation where nothing is asked for."""

    ops: Sequence[str]
    dtypes: Mapping[str, torch.dtype]
    shape: str
    title: str
    facts: dict[str, Any]
    ceiling_name: str
    ceiling_bytes: int

    def sizes(self, op: str) -> Sequence[Size]: ...

    def contexts(self, op: str) -> Sequence[int]: ...

    def cases(
        self,
        op: str,
        shape: str,
        dtype: torch.dtype,
        sizes: Sequence[Size],
        contexts: Sequence[int],
        parents: Sequence[int] | None,
    ) -> Iterator[Case]: ...

    def times(self, runs: Runs, rounds: int) -> Times:
        """Seconds of each run, and of the ceiling under the name CEILING."""


class CpuDevice:
    """The CPU backend with so many threads and the given instruction set ('': the best)."""

    ops, dtypes, shape = op_cases.OPS, DTYPES, "110m"
    ceiling_name = "read"

    def __init__(self, threads: int, isa: str) -> None:
        self._backend = CpuBackend(threads, isa)
        self._ceiling = ReadCeiling(threads)
        self.ceiling_bytes = self._ceiling.num_bytes
        self.title = f"{threads} threads, {self._backend.isa}"
        self.facts = machine_facts(threads) | {"instruction_set": self._backend.isa}

    def sizes(self, op: str) -> Sequence[Size]:
        return CPU_SIZES

    def contexts(self, op: str) -> Sequence[int]:
        return (512, 8192)

    def cases(self, op: str, *arguments: Any) -> Iterator[Case]:
        return op_cases.cases_of(op, self._backend, *arguments)

    def times(self, runs: Runs, rounds: int) -> Times:
        return interleaved({**runs, CEILING: self._ceiling}, rounds)


class CudaDevice:
    """A GPU. graph: every run is captured once and replayed. cold_l2: what a run reads is not in
    the L2 cache. `launcher` replaces the extension's launchers, for the emulation of the tests,
    whose times mean nothing."""

    ops = ("linear", "attention", "rms_norm", "rope_store", "swiglu", *cuda_token_cases.OPS)
    shape = "7b"
    dtypes: Mapping[str, torch.dtype] = {"bf16": torch.bfloat16, "f16": torch.float16}
    ceiling_name = "copy"

    def __init__(
        self, threads: int, graph: bool, cold_l2: bool, launcher: Launcher | None = None
    ) -> None:
        if launcher is None:
            check_device(torch.device("cuda"))
            launcher = Launcher(_C.cuda, torch.device("cuda"))
        self._run, self._graph, self._cold_l2 = launcher, graph, cold_l2
        self._host = CpuBackend(threads)
        self._data = torch.zeros(COPY_BYTES, dtype=torch.uint8, device=launcher.device)
        self._copy = torch.empty_like(self._data)
        self.ceiling_bytes = 2 * COPY_BYTES
        self.facts = machine_facts(threads) | {"graph": graph, "cold_l2": cold_l2}
        self.title = "emulated"
        if launcher.device.type == "cuda":
            self.title = torch.cuda.get_device_name()
            properties = torch.cuda.get_device_properties(launcher.device)
            self.facts["cuda"] = torch.version.cuda
            self.facts["multiprocessors"] = properties.multi_processor_count
            self.facts["device_memory"] = properties.total_memory
        self.facts["device"] = self.title
        self.title += ", graphs" * graph + ", cold L2" * cold_l2

    def sizes(self, op: str) -> Sequence[Size]:
        defaults: dict[str, Sequence[Size]] = {
            "attention": ((16, 1), (16, 16)),
            **dict.fromkeys(cuda_token_cases.OPS, ((64, 1),)),
            "commit": ((1, 4),),
        }
        return defaults.get(op, ((1, 1), (16, 1), (64, 1)))

    def contexts(self, op: str) -> Sequence[int]:
        return (4096, 32768) if op == "attention" else (32768,)

    def cases(
        self,
        op: str,
        shape: str,
        dtype: torch.dtype,
        sizes: Sequence[Size],
        contexts: Sequence[int],
        parents: Sequence[int] | None,
    ) -> Iterator[Case]:
        if op in cuda_token_cases.OPS:
            host = self._host
            return cuda_token_cases.cases_of(op, self._run, host, shape, dtype, sizes, contexts)
        return cuda_cases.cases_of(op, self._run, shape, dtype, sizes, contexts, parents)

    def times(self, runs: Runs, rounds: int) -> Times:
        runs = {**runs, CEILING: lambda: self._copy.copy_(self._data)}
        ready = {name: self._captured(run) for name, run in runs.items()}
        times: Times = {name: [] for name in runs}
        for _ in range(rounds):
            for name, run in ready.items():
                if self._cold_l2:
                    # Read, not written: lines that were written would go back to memory while the
                    # run is timed.
                    self._data.view(torch.float32).sum()
                times[name].append(self._seconds(run))
        return times

    def _captured(self, run: Callable[[], object]) -> Callable[[], object]:
        """After warming up, so that nothing is set up while it is captured or timed."""
        for _ in range(3):
            run()
        if not self._graph or not self._run.captures:
            return run
        torch.cuda.synchronize()
        return self._run.capture(run)

    def _seconds(self, run: Callable[[], object]) -> float:
        """Between events on the device."""
        if self._run.device.type != "cuda":
            return interleaved({"run": run}, rounds=1, warmup=0)["run"][0]
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        run()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) * 1e-3


def open_device(name: str, threads: int, isa: str, graph: bool, cold_l2: bool) -> Device:
    """Raises RequestError, ValueError where there is no such device or instruction set."""
    if name == "cuda":
        if isa:
            raise RequestError(f"--isa {isa} chooses among the CPU's kernels; leave it out")
        return CudaDevice(threads, graph, cold_l2)
    if graph or cold_l2:
        option = "--graph" if graph else "--cold-l2"
        raise RequestError(f"{option} is about GPUs, got --device cpu; leave it out")
    return CpuDevice(threads, isa)
