"""The choice between native and Triton kernels: measured once for a device, with a clock of the
test's own (tests/kernels: either kernel computes the same on what is measured)."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cascade_engine.gpu_kernels import ALTERNATIVES, OVERRIDE, saved_timings
from cascade_engine.ops import CudaBackend, kernel_choice
from cascade_engine.ops.kernel_choice import chosen_kernels
from cascade_engine.ops.launch import Launcher
from tests.cuda.conftest import needs_gpu
from tests.cuda.support import BF16

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)
SMALL = {"HIDDEN": 16, "INNER": 24, "HEADS": 2, "KV_HEADS": 1, "NATIVE_HEAD_DIM": 8}


class Counting(Launcher):
    """Either kernel writes a number into what it is given; both are counted."""

    def __init__(self) -> None:
        module: Any = SimpleNamespace(attention_partial_floats=lambda *shape: 1)
        super().__init__(module, torch.device("cpu"))
        self.launches: list[tuple[str, str]] = []
        self.wrong: set[str] = set()
        self.broken: set[str] = set()

    def __call__(self, name: str, *args: Any, **arguments: Any) -> None:
        self.launches.append(("native", name))
        self.write(arguments, 1.0)

    def triton(self, name: str, **arguments: Any) -> None:
        if name in self.broken:
            raise RuntimeError("no compiler\nof any kind")
        self.launches.append(("triton", name))
        self.write(arguments, 1.1 if name in self.wrong else 1.0)

    def write(self, arguments: dict[str, Any], value: float) -> None:
        written = [arguments[key] for key in ("out", "queries") if key in arguments][:1]
        if "qkv" in arguments:
            written += [arguments["cache"]["keys"], arguments["cache"]["values"]]
        for tensor in written:
            tensor.fill_(value)


@pytest.fixture(autouse=True)
def small_device(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SMALL.items():
        monkeypatch.setattr(kernel_choice, name, value)
    monkeypatch.setattr(kernel_choice, "CONTEXTS", ((1, 1, 20), (2, 2, 20)))
    monkeypatch.setattr(kernel_choice, "gpu_name", lambda *_: "a GPU")
    monkeypatch.delenv(OVERRIDE, raising=False)


def timer(run: Counting, seconds: dict[tuple[str, str], float]) -> Callable[..., float]:
    """A clock by which a kernel takes what is said, else a microsecond."""

    def times(work: Callable[[], object]) -> float:
        work()
        return seconds.get(run.launches[-1], 1e-6)

    return times


def test_the_faster_kernel_serves_and_is_measured_once(tmp_path: Path) -> None:
    run = Counting()
    run.wrong, run.broken = {"swiglu"}, {"attention"}
    clock = timer(run, {("native", "rope_store"): 5e-6, ("triton", "rms_norm"): 2e-6})
    expected = {"rope_store": "triton", "rms_norm": "native"}
    expected |= {"swiglu": "native", "attention": "native"}
    assert chosen_kernels(run, clock, tmp_path) == expected
    timings, note = saved_timings("a GPU", tmp_path)
    assert note == ""
    assert timings["attention"].failure == "RuntimeError: no compiler"
    assert timings["swiglu"].failure.startswith("ValueError: it differs from the native kernel")
    assert timings["rope_store"].native == pytest.approx([5.0, 5.0])
    assert timings["rms_norm"].triton == pytest.approx([2.0, 2.0])
    run.launches.clear()
    assert chosen_kernels(run, clock, tmp_path) == expected
    assert run.launches == []
    [path] = tmp_path.iterdir()
    path.write_text("[]")
    assert chosen_kernels(run, clock, tmp_path) == expected
    assert run.launches
    assert saved_timings("a GPU", tmp_path)[0] == timings


def test_engines_of_a_process_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no file keeps what was measured, and it would come out in another way."""
    monkeypatch.setattr(kernel_choice, "_kept", {})
    monkeypatch.setenv("CASCADE_CACHE", "none")
    first, later = Counting(), Counting()
    served = chosen_kernels(first, timer(first, {("native", "swiglu"): 5e-6}))
    assert served == {**dict.fromkeys(ALTERNATIVES, "native"), "swiglu": "triton"}
    assert chosen_kernels(later, timer(later, {("native", "rms_norm"): 5e-6})) == served
    assert later.launches == []
    monkeypatch.setattr(kernel_choice, "gpu_name", lambda *_: "another GPU")
    chosen_kernels(later, timer(later, {}))
    assert later.launches


def test_nothing_is_measured_that_is_decided(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Counting()
    monkeypatch.setenv(OVERRIDE, "triton")
    assert chosen_kernels(run, timer(run, {}), tmp_path) == dict.fromkeys(ALTERNATIVES, "triton")
    assert run.launches == []
    monkeypatch.setenv(OVERRIDE, "attention=native,swiglu=native,rope_store=native")
    chosen_kernels(run, timer(run, {}), tmp_path)
    assert {name for _, name in run.launches} == {"rms_norm"}


def test_a_chosen_kernel_is_launched(emulated: Launcher) -> None:
    """By the recorder, for every operation that has two."""
    launched: list[str] = []

    class Told(Launcher):
        def triton(self, name: str, **arguments: Any) -> None:
            launched.append(name)

    for served in ("triton", "native"):
        run = Told(emulated.module, emulated.device)
        run.choices = dict.fromkeys(ALTERNATIVES, served)
        backend = CudaBackend(threads=1, launcher=run)
        recorder = backend.recorder()
        x = recorder.rms_norm(
            recorder.embedding(torch.randn(5, 16).to(BF16)), torch.ones(16), 1e-5, BF16
        )
        [layer] = recorder.cache_layers(torch.zeros(1, 2, 4, 2 * 16 * 8, dtype=BF16), 2, 8)
        qkv = recorder.linear(x, backend.pack_linear(torch.zeros(32, 16), BF16))
        recorder.rope_store(qkv, 2, layer)
        recorder.attention(qkv, 2, 1.0, layer, BF16)
        recorder.swiglu(recorder.linear(x, backend.pack_linear(torch.zeros(24, 16), BF16)), BF16)
        program = recorder.program
        rows, tables = torch.zeros(1, 32, dtype=torch.int32), torch.zeros(1, 2, dtype=torch.int32)
        program.bind_rows(rows.data_ptr(), 32, 1)
        program.bind_block_tables(tables.data_ptr(), 2, 4)
        program.run([0], [0], [1], [0])
        expected = ["rms_norm", "rope_store", "attention", "swiglu"]
        assert launched == (expected if served == "triton" else [])
        launched.clear()


def test_launches_in_a_graph_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """After one outside, which compiles; the median of rounds, for one launch."""
    log: list[str] = []
    times = iter([40.0, 90.0, 20.0, 60.0, 30.0])

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            log.append("event")

        def synchronize(self) -> None:
            log.append("wait")

        def elapsed_time(self, end: Event) -> float:
            return next(times)

    class Capturing(Counting):
        def capture(self, work: Callable[[], object]) -> Callable[[], object]:
            log.append("capture")
            work()
            return lambda: log.append("replay")

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: log.append("synchronize"))
    seconds = kernel_choice.device_seconds(Capturing(), lambda: log.append("run"))
    assert seconds == pytest.approx(40.0e-3 / kernel_choice.LAUNCHES)
    assert log[:3] == ["run", "synchronize", "capture"]
    assert log[3:] == [
        *["run"] * kernel_choice.LAUNCHES,
        "replay",
        *["event", "replay", "event", "wait"] * kernel_choice.ROUNDS,
    ]


@pytest.mark.gpu
@needs_gpu
def test_a_gpu_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.delenv(OVERRIDE, raising=False)
    launcher = CudaBackend().launcher
    assert set(chosen_kernels(launcher, cache=tmp_path)) == set(ALTERNATIVES)
    [path] = tmp_path.iterdir()
    print(path.read_text())
