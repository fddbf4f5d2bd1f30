"""The Triton kernels under Triton's interpreter, and compiled for the GPUs they are meant for.

The interpreter is chosen when triton is imported, so the checks run in a process of their own.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.cuda import emulation

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None or emulation.compiler() is None,
    reason="triton is not installed, or no g++ for the emulation of the native kernels",
)
ROOT = Path(__file__).resolve().parents[2]


def run(module: str, **environment: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", module],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]


def test_results_are_the_references() -> None:
    run("tests.kernels.interpreted", TRITON_INTERPRET="1")


def test_models_that_the_native_attention_lacks() -> None:
    run("tests.kernels.interpreted_model", TRITON_INTERPRET="1")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU")
def test_results_are_the_references_on_a_gpu() -> None:
    run("tests.kernels.interpreted", TRITON_INTERPRET="0")
    run("tests.kernels.interpreted_model", TRITON_INTERPRET="0")


@pytest.mark.slow
def test_kernels_compile_without_a_gpu() -> None:
    run("tests.kernels.compiled", TRITON_INTERPRET="0")
