"""Memory of a loaded engine, measured in a process of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import memory


@pytest.mark.skipif(not memory.CLEAR_REFS.exists(), reason="needs /proc")
def test_an_engine_holds_its_weights_once(tmp_path: Path) -> None:
    # 15m: large enough that pages of the allocator do not matter.
    from bench.shapes import write_shape

    target = write_shape("15m", "bf16", tmp_path)
    found = memory.measure_memory(target, "bfloat16", 1, 64)
    assert found is not None
    layer = 4 * 288 * 288 + 3 * 288 * 768
    assert found["weight_bytes"] >= 2 * (32000 * 288 + 6 * layer)
    assert found["cache_bytes"] == 2 * 2 * 6 * 288 * 64
    assert 0.9 < found["over_weights_and_cache"] < 1.5
    assert found["resident_bytes"] <= found["peak_bytes"]


def test_without_proc_nothing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "CLEAR_REFS", tmp_path / "absent")
    assert memory.measure_memory(tmp_path, "bfloat16", 1, 64) is None
