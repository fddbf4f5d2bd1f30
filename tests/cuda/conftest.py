"""Every kernel test runs under the host emulation, and once more on a GPU where there is one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from cascade_engine import _C
from cascade_engine.ops.launch import Launcher
from tests.cuda import emulation
from tests.cuda.support import RecordingLauncher

HAS_GPU = torch.cuda.is_available() and hasattr(_C, "cuda")
needs_gpu = pytest.mark.skipif(not HAS_GPU, reason="no NVIDIA GPU, or built without CUDA")


@pytest.fixture(autouse=True, scope="package")
def one_torch_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def emulated() -> Launcher:
    if emulation.compiler() is None:
        pytest.skip("the emulation of the CUDA kernels needs g++")
    return Launcher(emulation.built(), torch.device("cpu"))


@pytest.fixture(params=["emulated", pytest.param("gpu", marks=[pytest.mark.gpu, needs_gpu])])
def run(request: pytest.FixtureRequest) -> Launcher:
    """The launchers under test; each test gets the same random numbers and thread orders."""
    torch.manual_seed(0)
    if request.param == "gpu":
        return Launcher(_C.cuda, torch.device("cuda"))
    launcher: Launcher = request.getfixturevalue("emulated")
    launcher.module.set_seed(1)
    return launcher


@pytest.fixture
def graphs(run: Launcher) -> Launcher:
    """A launcher that can capture."""
    return run if run.captures else RecordingLauncher(run)
