"""Which kernels serve on a GPU: by head size, by what is installed, by measurement."""

from __future__ import annotations

import importlib.util

import pytest

from cascade_engine import build_info, gpu_kernels
from cascade_engine.errors import RequestError
from cascade_engine.gpu_kernels import attention_kernel, gpu_operations, measured_choices

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)


@needs_triton
def test_head_sizes() -> None:
    assert [attention_kernel(dim) for dim in (8, 64, 128)] == ["native"] * 3
    assert [attention_kernel(dim) for dim in (4, 100, 136, 256)] == ["triton"] * 4
    assert attention_kernel(64, "triton") == "triton"
    for dim in (33, 258):
        with pytest.raises(RequestError, match=f"even head_dim up to 256, got {dim}"):
            attention_kernel(dim)


def test_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_kernels, "MEASURED", {"a GPU": {"rms_norm": "triton"}})
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert attention_kernel(64) == "native"
    with pytest.raises(RequestError, match=r"head_dim 100 .* install triton"):
        attention_kernel(100)
    assert measured_choices("a GPU") == {}
    assert "triton is not installed" in gpu_operations("a GPU")["rms_norm"]


@needs_triton
def test_choices_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_kernels, "MEASURED", {"a GPU": {"rms_norm": "triton"}})
    assert measured_choices("a GPU") == {"rms_norm": "triton"}
    assert measured_choices("another") == {}
    assert gpu_operations("a GPU")["rms_norm"].startswith("triton")
    assert gpu_operations("another")["rms_norm"].startswith("native")
    assert "for head sizes other than multiples of 8" in build_info()["gpu_operations"]["attention"]
