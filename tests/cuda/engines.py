"""Engines of a small model whose kernels are those of a launcher."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cascade_engine import Engine
from cascade_engine.engine import loading
from cascade_engine.ops import CudaBackend
from cascade_engine.ops.launch import Launcher

MODEL: dict[str, Any] = {
    "head_dim": 8,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 1,
    "intermediate_size": 40,
    "vocab_size": 40,
}
GREEDY = {"temperature": 0.0}
DRAWN = {"temperature": 0.8, "seed": 3, "top_k": 7, "repetition_penalty": 1.3}


def make_engine(
    path: Path, launcher: Launcher, monkeypatch: pytest.MonkeyPatch, **options: Any
) -> Engine:
    backend = CudaBackend("cuda", 1, launcher)
    monkeypatch.setattr(loading, "make_backend", lambda _: backend)
    monkeypatch.setattr(loading, "_memory", lambda place: 1 << 26)
    return Engine.load(path, device="cuda", dtype="bfloat16", max_rows=3, **options)
