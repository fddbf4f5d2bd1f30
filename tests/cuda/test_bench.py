"""The GPU benchmarks build and run their cases; what they measure only a GPU can tell."""

from __future__ import annotations

import pytest

from bench import cuda_model, cuda_ops
from bench.cuda_cases import SMALL, all_cases
from cascade_engine.ops import CudaBackend
from cascade_engine.ops.launch import Launcher


def test_every_case_runs(emulated: Launcher) -> None:
    seen = set()
    for case in all_cases(emulated, SMALL):
        case.ours()
        if case.torch is not None:
            case.torch()
        seen.add(case.op)
    assert callable(cuda_ops.main)
    assert seen == {"linear", "attention", "max_gram", "sample+accept", "commit"}


def test_the_model_runs(emulated: Launcher, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"VOCABULARY": 64, "CONTEXT": 96, "LENGTH": 18}.items():
        monkeypatch.setattr(cuda_model, name, value)
    shape = {"hidden_size": 16, "intermediate_size": 24}
    shape |= {"num_hidden_layers": 1, "num_attention_heads": 2}
    backend = CudaBackend(threads=1, launcher=emulated)
    plain, sixteen = cuda_model.measure_model(1e9, backend, shape, repeats=2)
    assert plain["vs_decode"] == 1.0
    assert sixteen["us"]["median"] > 0
