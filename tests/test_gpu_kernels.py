"""Which kernels serve on a GPU: by head size, by what is installed, by measurement, by order."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from cascade_engine import build_info, gpu_kernels
from cascade_engine.errors import RequestError
from cascade_engine.gpu_kernels import (
    ALTERNATIVES,
    OVERRIDE,
    Timing,
    attention_kernel,
    choices,
    gpu_name,
    gpu_operations,
    save_timings,
    saved_timings,
)

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)
TIMINGS = {
    "rms_norm": Timing([4.0, 6.0], [2.0, 6.0]),
    "swiglu": Timing([4.0, 4.0], [3.8, 3.7]),
    "attention": Timing([], [], "RuntimeError: no compiler"),
}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CASCADE_CACHE", str(tmp_path))
    monkeypatch.delenv(OVERRIDE, raising=False)
    return tmp_path


@needs_triton
def test_head_sizes() -> None:
    assert [attention_kernel(dim) for dim in (8, 64, 128)] == ["native"] * 3
    assert [attention_kernel(dim) for dim in (4, 100, 136, 256)] == ["triton"] * 4
    assert attention_kernel(64, "triton") == "triton"
    for dim in (33, 258):
        with pytest.raises(RequestError, match=f"even head_dim up to 256, got {dim}"):
            attention_kernel(dim)


def test_without_triton(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_timings("a GPU", TIMINGS)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert attention_kernel(64) == "native"
    with pytest.raises(RequestError, match=r"head_dim 100 .* install triton"):
        attention_kernel(100)
    assert choices(TIMINGS) == {}
    assert "triton is not installed" in gpu_operations("a GPU")["rms_norm"]
    monkeypatch.setenv(OVERRIDE, "swiglu=triton")
    with pytest.raises(RequestError, match="asks for triton, which is not installed"):
        choices({})


@needs_triton
def test_clearly_faster_kernels_serve(cache: Path) -> None:
    """By the geometric mean of their times; a little faster is not enough, nor is a failure."""
    assert choices(TIMINGS) == {"rms_norm": "triton", "swiglu": "native", "attention": "native"}


@needs_triton
def test_times_are_kept_for_the_device_and_told(cache: Path) -> None:
    save_timings("a GPU", TIMINGS)
    assert saved_timings("a GPU") == (TIMINGS, "")
    assert saved_timings("another") == ({}, "")
    said = gpu_operations("a GPU")
    assert said["rms_norm"].startswith("triton ")
    assert "0.71 x the native one's time as measured here" in said["rms_norm"]
    assert said["swiglu"].startswith("native: triton's takes 0.94 x")
    assert "native: triton's failed here: RuntimeError: no compiler" in said["attention"]
    assert "measured by the first engine" in gpu_operations("another")["rms_norm"]
    assert set(said) == set(ALTERNATIVES)
    assert "for head sizes other than multiples of 8" in build_info()["gpu_operations"]["attention"]


@needs_triton
@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"format": 1, "key": "another machine", "timings": {}}',
        '{"format": 1, "key": KEY, "timings": {"rms_norm": [[0.0], [1.0], ""]}}',
        '{"format": 1, "key": KEY, "timings": {"rms_norm": [[1.0, 2.0], [1.0], ""]}}',
        '{"format": 1, "key": KEY, "timings": {"rms_norm": [[], [], ""]}}',
        '{"format": 1, "key": KEY, "timings": {"rms_norm": 3}}',
        '{"format": 1, "key": KEY}',
    ],
)
def test_files_of_no_use_are_ignored_with_a_note(cache: Path, text: str) -> None:
    save_timings("a GPU", TIMINGS)
    [path] = cache.iterdir()
    key = json.dumps(gpu_kernels.timing_key("a GPU"))
    path.write_text(text.replace("KEY", key))
    timings, note = saved_timings("a GPU")
    assert timings == {}
    assert str(path) in note
    assert note in gpu_operations("a GPU")["rms_norm"]


@needs_triton
def test_the_environment_decides(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(OVERRIDE, "rms_norm=native, rope_store=triton")
    expected = {"rms_norm": "native", "rope_store": "triton"}
    assert choices(TIMINGS) == {"swiglu": "native", "attention": "native", **expected}
    assert gpu_operations("a GPU")["rope_store"].endswith(f"{OVERRIDE} says so")
    monkeypatch.setenv(OVERRIDE, "native")
    assert choices(TIMINGS) == dict.fromkeys(ALTERNATIVES, "native")
    for wrong in ("linear=triton", "rms_norm=fast", "fast"):
        monkeypatch.setenv(OVERRIDE, wrong)
        with pytest.raises(RequestError, match=f"{OVERRIDE} must be native, triton or a list"):
            choices({})


def test_a_gpu_is_named_as_the_runtime_names_it() -> None:
    found = {"cuda_devices": [{"name": "A"}, {"name": "B", "memory_bytes": 1}]}
    assert [gpu_name(found, i) for i in range(3)] == ["A", "B", None]
    assert gpu_name({"cuda_devices": []}) is None
