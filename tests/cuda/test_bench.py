"""bench.ops on a GPU: its cases run and are right, and its clock times what it says; the figures
only a GPU can tell."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bench import bars, cuda_draft_cases, cuda_model, cuda_peers, devices, ops
from bench.cuda_batch import said, served_by
from bench.devices import CudaDevice
from cascade_engine.ops import CudaBackend
from cascade_engine.ops.launch import Launcher
from tests.cuda.support import RecordingLauncher


@pytest.fixture
def device(run: Launcher, monkeypatch: pytest.MonkeyPatch) -> CudaDevice:
    monkeypatch.setattr(devices, "COPY_BYTES", 1 << 12)
    return CudaDevice(1, graph=True, cold_l2=True, launcher=run)


def report_of(
    device: CudaDevice, path: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str
) -> dict[str, Any]:
    monkeypatch.setattr(ops, "open_device", lambda *_: device)
    quick = ["--device", "cuda", "--shape", "tiny", "--rounds", "1", "--threads", "1"]
    ops.main([*quick, *arguments, "--json", str(path / "ops.json")])
    return json.loads((path / "ops.json").read_text())


def test_every_case_is_right(
    device: CudaDevice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = ["--rows", "2", "--tokens", "3", "--context", "40"]
    report = report_of(device, tmp_path, monkeypatch, *sizes)
    assert {r["op"] for r in report["results"]} == set(device.ops)
    for result in report["results"]:
        allowed = 0.0 if result["op"] in devices.cuda_token_cases.OPS else 0.02
        assert result["max_error"] <= allowed, result
        assert result["milliseconds"]["median"] > 0
        streams = result["op"] not in ("rms_norm", "rope_store", "swiglu")
        assert ("fraction_of_ceiling" in result) == streams
    compared = {r["op"] for r in report["results"] if "torch_over_ours" in r}
    assert compared == {"linear", "attention", "rms_norm", "swiglu", "accept", "runners_up"}
    assert report["machine"]["ceiling"]["of"] == "copy"


def test_a_tree(device: CudaDevice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tree.json").write_text("[-1, 0, 0, 1]")
    arguments = ["--op", "attention", "--context", "40", "--tree", str(tmp_path / "tree.json")]
    report = report_of(device, tmp_path, monkeypatch, "--rows", "2", "--dtype", "f16", *arguments)
    names = [r["name"] for r in report["results"]]
    cases = ["attention 2x4@40 2/2 heads tree", "attention 2x4@40 2/1 heads tree"]
    assert names == [case + said(k) for case in cases for k in served_by(device._run, "attention")]
    assert max(r["max_error"] for r in report["results"]) < 0.003


@pytest.mark.parametrize("op", CudaDevice.ops)
def test_an_error_is_seen(op: str, run: Launcher, monkeypatch: pytest.MonkeyPatch) -> None:
    """A launcher that does nothing leaves what was there."""
    device = CudaDevice(1, graph=False, cold_l2=False, launcher=run)
    dtype = torch.bfloat16
    for case in device.cases(op, "tiny", dtype, [(2, 3)], [40], None):
        for way in ("__call__", "triton"):
            monkeypatch.setattr(Launcher, way, lambda *_, **__: None)
        assert not case.error() < 0.3, case.name
        monkeypatch.undo()


def test_bars_have_the_names_of_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bar for a case that is not there would never be judged. The real sizes, without memory."""
    sizes = dict.fromkeys(
        ("linear_workspace_floats", "linear_counters", "attention_partial_floats"), lambda *_: 1
    )
    module = SimpleNamespace(SAMPLER_BYTES=4, pack_sampler=lambda *_, **__: None, **sizes)
    monkeypatch.setattr(devices, "COPY_BYTES", 4)
    monkeypatch.setattr(cuda_draft_cases, "device_table", lambda *_: {})
    launcher: Any = Launcher(module, torch.device("meta"))  # type: ignore[arg-type]
    device = CudaDevice(1, graph=False, cold_l2=False, launcher=launcher)
    names = {
        case.name
        for op in device.ops
        for case in device.cases(
            op, device.shape, torch.bfloat16, device.sizes(op), device.contexts(op), None
        )
    }
    assert {bar.path[1] for bar in ops.CUDA_OPS_BARS} <= names


def test_runs_are_captured_once_and_timed_with_a_cold_cache(
    emulated: Launcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    log: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            log.append("event")

        def synchronize(self) -> None:
            log.append("wait")

        def elapsed_time(self, end: Event) -> float:
            return 2.0

    class Graph:
        def replay(self) -> None:
            log.append("replay")

    def capture(graph: Graph, **_: Any) -> contextlib.nullcontext[None]:
        log.append("capture")
        return contextlib.nullcontext()

    fakes = {"Event": Event, "CUDAGraph": Graph, "graph": capture, "synchronize": lambda: None}
    fakes |= {"device": contextlib.nullcontext, "Stream": lambda _: None}
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(devices, "COPY_BYTES", 1 << 12)
    device = CudaDevice(1, graph=True, cold_l2=True, launcher=emulated)
    monkeypatch.setattr(device._run, "device", SimpleNamespace(type="cuda"))
    monkeypatch.setattr(device, "_data", FlushedArray(log))
    monkeypatch.setattr(device, "_copy", SimpleNamespace(copy_=lambda _: log.append("copy")))
    times = device.times({"ours": lambda: log.append("run")}, rounds=2)
    assert times == {"ours": [0.002] * 2, "ceiling": [0.002] * 2}
    assert log[:5] == ["run"] * 3 + ["capture", "run"]
    assert log[5:10] == ["copy"] * 3 + ["capture", "copy"]
    timed = ["flush", "event", "replay", "event", "wait"]
    assert log[10:] == timed * 4


class FlushedArray:
    """Says when it is read."""

    def __init__(self, log: list[str]) -> None:
        self._log = log

    def view(self, dtype: torch.dtype) -> FlushedArray:
        return self

    def sum(self) -> None:
        self._log.append("flush")


def test_the_model_runs(run: Launcher, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"VOCABULARY": 64, "CONTEXT": 96, "LENGTH": 18}.items():
        monkeypatch.setattr(cuda_model, name, value)
    shape = {"hidden_size": 16, "intermediate_size": 24}
    shape |= {"num_hidden_layers": 1, "num_attention_heads": 2}
    graphs = run if run.captures else RecordingLauncher(run)
    backend = CudaBackend(threads=1, launcher=graphs)
    so_far: list[list[str]] = []
    results = cuda_model.measure_model(
        1e9, backend, shape, repeats=3, found=lambda r: so_far.append([each["op"] for each in r])
    )
    assert so_far == [["model"] * 2, ["model"] * 2 + ["cycle"] * 2]
    found = cuda_model.figures(results, [2.0, 1.0])
    assert results[0]["vs_decode"] == 1.0
    assert {path for bar in bars.MODEL_BARS for path in bar.path} <= found.keys()
    assert found["transformers_over_ours"] > 0
    assert found["outside_pass"] == results[2]["outside_pass"] < 1


def test_dependent_launches_are_decided_by_both_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = tmp_path / "model.json"
    times = {"plain": 10.0, "chain": 20.0}
    rows = [{"case": case, "us": {"median": us}} for case, us in times.items()]
    before.write_text(json.dumps({"results": rows}))
    for factor, told in ((0.9, "CASCADE_DEPENDENT_LAUNCH=1"), (1.1, "pay here: no")):
        later = [{"case": case, "us": {"median": us * factor}} for case, us in times.items()]
        ratios = cuda_model.show_decision(later, str(before))
        assert ratios == pytest.approx(dict.fromkeys(times, factor))
        assert told in capsys.readouterr().out


def test_transformers_decodes_with_a_static_cache() -> None:
    pytest.importorskip("transformers")
    shape = {"hidden_size": 16, "intermediate_size": 24}
    shape |= {"num_hidden_layers": 1, "num_attention_heads": 2}
    seconds = cuda_peers.transformers_decode(shape, 64, 32, 9, 2, device="cpu", compiled=False)
    assert seconds is not None
    assert len(seconds) == 2


def test_transformers_may_fail(capsys: pytest.CaptureFixture[str]) -> None:
    """With whatever: it is said, and what was measured beside it stays."""
    pytest.importorskip("transformers")
    shape = {"hidden_size": 15, "num_attention_heads": 2, "num_hidden_layers": 1}
    decode = cuda_peers.transformers_decode
    assert decode(shape, 64, 32, 9, 2, device="cpu", compiled=False) is None
    assert "transformers: " in capsys.readouterr().out


def test_flashinfer_gets_the_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fake on a fake device: what is planned covers all rows, pages and tokens."""
    planned: list[Any] = []

    class Wrapper:
        def __init__(self, workspace: torch.Tensor, layout: str) -> None:
            assert layout == "HND"

        def plan(self, *args: Any, **options: Any) -> None:
            planned.extend([*args, options])

        def run(self, q: torch.Tensor, cache: tuple[torch.Tensor, torch.Tensor]) -> str:
            assert cache[0].shape == (6, 2, 16, 8)
            return "ran"

    fake = SimpleNamespace(BatchPrefillWithPagedKVCacheWrapper=Wrapper)
    monkeypatch.setattr(cuda_peers, "optional", lambda name: fake)
    q, cache = torch.zeros(6, 4, 8), torch.zeros(2, 6, 2, 16, 8)
    assert cuda_peers.flashinfer_attention(q, cache, torch.zeros(2, 3), 3, 40) is None
    device = SimpleNamespace(device=torch.device("cpu"), shape=q.shape, dtype=q.dtype)
    device.device = type("D", (), {"type": "cuda"})()
    monkeypatch.setattr(torch, "empty", lambda *_, **__: None)
    arange, full = torch.arange, torch.full
    monkeypatch.setattr(torch, "arange", lambda n, **_: arange(n, dtype=torch.int32))
    monkeypatch.setattr(torch, "full", lambda *a, **k: Movable(full(*a, **k)))
    tables = torch.arange(6).view(2, 3)
    work = cuda_peers.flashinfer_attention(device, cache, tables, 3, 40)  # type: ignore[arg-type]
    assert work is not None
    assert work() == "ran"
    assert planned[0].tolist() == [0, 3, 6]
    assert planned[1].tolist() == [0, 3, 6]
    assert planned[2].tolist() == list(range(6))
    assert planned[3].tolist() == [8, 8]
    assert planned[4:8] == [4, 2, 8, 16]
    assert planned[8]["causal"]


class Movable:
    """A tensor that says it went to another device."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._tensor = tensor

    def to(self, _: object) -> torch.Tensor:
        return self._tensor
