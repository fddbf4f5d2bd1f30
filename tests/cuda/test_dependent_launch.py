"""Programmatic dependent launch: kernels may start before the one in front of them has ended, so
each must wait before it does anything."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cascade_engine import _C
from cascade_engine.errors import RequestError
from cascade_engine.ops.launch import Launcher
from tests.cuda.conftest import needs_gpu
from tests.cuda.emulation import CSRC, KERNELS
from tests.cuda.support import BF16, assert_same_bits
from tests.cuda.test_backend import SHAPE, make_level, random_row
from tests.ops.support import random_weights


@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_waits_first(name: str) -> None:
    source = (CSRC / "cuda" / name).read_text()
    kernels = re.findall(r"__global__[^{;]*\{\s*(\w+\(\);)?", source)
    assert len(kernels) == source.count("__global__") > 0
    assert set(kernels) == {"after_previous_launch();"}


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
