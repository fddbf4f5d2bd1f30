"""The worker threads behind every operation: right results and an end, however they are used."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cascade_engine.ops import CpuBackend
from tests.ops.support import F32, NativePass, assert_same_bits, bits

ROOT = Path(__file__).resolve().parents[2]
DEADLINE = 30.0
FORKS_A_PASS = 25
MATRIX, WEIGHT, BIAS = torch.randn(64, 8), torch.randn(8, 8) / 3, torch.randn(8)


class TinyForks:
    """A pass of many operations, every other of which forks for next to no work: 7 blocks of 32
    columns."""

    def __init__(self, backend: CpuBackend) -> None:
        self.native = NativePass("", capacity=64, backend=backend)
        recorder = self.native.recorder
        wide = backend.pack_linear(WEIGHT.repeat(25, 1), F32, BIAS.repeat(25))
        narrow = backend.pack_linear(torch.randn(8, 200, generator=seeded()) / 14, F32)
        self.out = recorder.embedding(MATRIX)
        for _ in range(FORKS_A_PASS):
            recorder.linear(recorder.linear(self.out, wide), narrow, add_to=self.out)

    def compute(self, ids: list[int]) -> torch.Tensor:
        self.native.feed(ids)
        return self.native.read(self.out)


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="module")
def alone() -> torch.Tensor:
    """The pass on one thread, for every row of the matrix."""
    return TinyForks(CpuBackend(1)).compute(list(range(64)))


def wrong_passes(forks: TinyForks, passes: int, alone: torch.Tensor) -> int:
    """How many of `passes` passes over changing rows give other bits than one thread."""
    wrong = 0
    for i in range(passes):
        ids = [(i + j) % 64 for j in range(1 + i % 5)]
        wrong += not torch.equal(bits(forks.compute(ids)), bits(alone[ids]))
    return wrong


def in_threads(*bodies: Callable[[], int]) -> list[int]:
    """Runs the bodies at the same time; fails when one has not ended after DEADLINE seconds."""
    results = [-1] * len(bodies)

    def run(i: int) -> None:
        results[i] = bodies[i]()

    threads = [threading.Thread(target=run, args=(i,), daemon=True) for i in range(len(bodies))]
    for thread in threads:
        thread.start()
    limit = time.monotonic() + DEADLINE
    for thread in threads:
        thread.join(max(0.0, limit - time.monotonic()))
    assert not any(thread.is_alive() for thread in threads), "a fork did not come to an end"
    return results


def system_threads() -> int:
    """Threads of this process, native ones too; 0 where the system does not tell."""
    tasks = Path("/proc/self/task")
    return len(list(tasks.iterdir())) if tasks.exists() else 0


@pytest.mark.parametrize("threads", range(1, 9))
def test_many_tiny_forks(threads: int, alone: torch.Tensor) -> None:
    """Breaks when the caller goes on before a worker is done, or a wake-up is lost."""
    forks = TinyForks(CpuBackend(threads))
    assert in_threads(lambda: wrong_passes(forks, 1000, alone)) == [0]


def test_workers_that_fell_asleep_wake_up(alone: torch.Tensor) -> None:
    forks = TinyForks(CpuBackend(2))

    def body() -> int:
        wrong = 0
        for _ in range(30):
            time.sleep(0.01)  # longer than workers spin
            wrong += wrong_passes(forks, 2, alone)
        return wrong

    assert in_threads(body) == [0]


def test_two_pools_at_once(alone: torch.Tensor) -> None:
    first, second = TinyForks(CpuBackend(2)), TinyForks(CpuBackend(3))
    bodies = [lambda f=f: wrong_passes(f, 1000, alone) for f in (first, second)]
    assert in_threads(*bodies) == [0, 0]


def test_one_pool_used_from_two_threads(alone: torch.Tensor) -> None:
    """Two models share a backend. Breaks when a second caller may publish its work over the
    first's."""
    backend = CpuBackend(3)
    first, second = TinyForks(backend), TinyForks(backend)
    bodies = [lambda f=f: wrong_passes(f, 1000, alone) for f in (first, second)]
    assert in_threads(*bodies) == [0, 0]


def test_pools_come_and_go(alone: torch.Tensor) -> None:
    """Breaks when the end of a pool waits for a worker that sleeps through it, or leaves one."""

    def body() -> int:
        return sum(wrong_passes(TinyForks(CpuBackend(1 + i % 4)), i % 3, alone) for i in range(60))

    before = system_threads()
    assert in_threads(body) == [0]
    assert system_threads() < before + 20


def test_packing_from_two_threads() -> None:
    """Weights are packed in parallel as well."""
    backend, dense = CpuBackend(2), torch.randn(500, 40)
    expected = CpuBackend(1).pack_linear(dense, F32).memory

    def body() -> int:
        for _ in range(20):
            assert_same_bits(backend.pack_linear(dense, F32).memory, expected)
        return 0

    assert in_threads(body, body) == [0, 0]


@pytest.mark.parametrize("threads", [0, -1, 1025])
def test_number_of_threads(threads: int) -> None:
    with pytest.raises(ValueError, match=rf"threads must be in 1\.\.1024, got {threads}"):
        CpuBackend(threads)


def test_no_data_race(tmp_path: Path) -> None:
    """The pool under ThreadSanitizer. Breaks when an ordering of its atomics is weakened."""
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None:
        pytest.skip("no C++ compiler: set CXX")
    program = tmp_path / "stress"
    sanitize: list[str | Path] = [compiler, "-std=c++20", "-O1", "-fsanitize=thread"]
    empty = tmp_path / "empty.cpp"
    empty.write_text("int main() { return 0; }")
    trial = subprocess.run([*sanitize, empty, "-o", program], capture_output=True, check=False)
    if trial.returncode or subprocess.run([program], check=False).returncode:
        pytest.skip(f"{compiler} builds nothing that runs with -fsanitize=thread")
    include, pool = ROOT / "csrc/include", ROOT / "csrc/cpu/thread_pool.cpp"
    stress = Path(__file__).with_name("thread_pool_stress.cpp")
    build = [*sanitize, "-I", include, "-pthread", pool, stress, "-o", program]
    subprocess.run(build, check=True)
    result = subprocess.run(
        [program], capture_output=True, text=True, timeout=DEADLINE, check=False
    )
    assert result.returncode == 0, (result.stdout + result.stderr)[:4000]
    assert result.stdout == "right\n"
