"""Programmatic dependent launch: kernels may start before the one in front of them has ended, so
each must wait before it does anything."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cascade_engine import _C
from cascade_engine.errors import RequestError
from cascade_engine.ops.launch import Launcher
from tests.cuda.conftest import needs_gpu
from tests.cuda.emulation import CSRC, KERNELS
from tests.cuda.support import BF16, assert_same_bits, linear
from tests.cuda.test_backend import SHAPE, make_level, random_row
from tests.cuda.test_budget import NVCC
from tests.ops.support import random_weights


@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_waits_first(name: str) -> None:
    """Or loads what no launch writes, which the emulation watches, and then waits."""
    source = (CSRC / "cuda" / name).read_text()
    kernels = source.split("__global__")[1:]
    assert kernels
    for kernel in kernels:
        first = re.search(r"\{\s*(\w+\(\);)", kernel)
        assert first is not None
        if first[1] == "start_next_launch();":
            assert kernel.count("wait_for_previous_launch();") == 1
        else:
            assert first[1] == "after_previous_launch();"


@pytest.mark.parametrize(("rows", "n", "k"), [(17, 130, 64), (2, 16, 1024), (2, 1000, 300)])
def test_weights_come_ahead(run: Launcher, rows: int, n: int, k: int) -> None:
    """The same bits, with fewer stages than are loaded ahead, and with ranges of k."""
    if run.device.type == "cuda" and torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("compute capability 9.0 or newer")
    x, weight = torch.randn(rows, k).to(BF16), torch.randn(n, k).to(BF16)
    expected = linear(run, x, weight)
    run.set_dependent(True)
    try:
        ours = linear(run, x, weight)
    finally:
        run.set_dependent(False)
    assert_same_bits(ours, expected)


@pytest.mark.skipif(NVCC is None, reason="nvcc is not installed")
def test_machine_code_loads_weights_before_it_waits(tmp_path: Path) -> None:
    """And older GPUs' has nothing of the kind."""
    assert NVCC is not None
    for architecture in ("sm_80", "sm_90"):
        target = tmp_path / f"{architecture}.ptx"
        command = [NVCC, "-std=c++20", f"-I{CSRC}", f"-I{CSRC / 'include'}", "-ptx"]
        command += [f"-arch={architecture}", str(CSRC / "cuda" / "linear.cu"), "-o", str(target)]
        subprocess.run(command, check=True)
        for kernel in target.read_text().split(".entry ")[1:]:
            if architecture == "sm_80":
                assert "griddepcontrol" not in kernel
                continue
            start, ahead, rest = re.split(r"griddepcontrol\.\w+;", kernel)
            assert "cp.async" not in start
            assert ahead.count("cp.async.cg") >= 8
            assert ahead.count("cp.async.commit_group") >= 1
            assert "mma.sync" in rest


def test_older_gpus_are_told(emulated: Launcher, monkeypatch: pytest.MonkeyPatch) -> None:
    switched: list[bool] = []
    module: Any = SimpleNamespace(set_dependent_launch=switched.append)
    launcher = Launcher(module, torch.device("cpu"))
    launcher.set_dependent(True)
    monkeypatch.setattr(launcher, "device", torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 9))
    with pytest.raises(RequestError, match=r"need compute capability 9\.0 or newer, this is 8\.9"):
        launcher.set_dependent(True)
    launcher.set_dependent(False)
    assert switched == [True, False]


@pytest.mark.gpu
@needs_gpu
def test_dependent_launches_compute_the_same_bits() -> None:
    launcher = Launcher(_C.cuda, torch.device("cuda"))
    if torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("compute capability 9.0 or newer")
    torch.manual_seed(0)
    row, found = random_row(60), []
    for on in (False, True):
        launcher.set_dependent(on)
        level = make_level(launcher, random_weights(2, BF16, **SHAPE))
        level.rows.write(0, row)
        found.append(torch.cat([level.score(0, n, 1) for n in range(1, 60)]))
    launcher.set_dependent(False)
    assert_same_bits(found[0], found[1])
