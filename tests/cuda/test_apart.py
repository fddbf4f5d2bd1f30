"""Whole engines, and what a GPU is measured with, where host and device are told apart: no tensor
of the one takes part in what is done on the other, and a captured graph holds launches alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import devices
from bench.devices import CudaDevice
from cascade_engine.ops.launch import Launcher
from tests.cuda import (
    test_backend,
    test_bench,
    test_rejection,
    test_runners_up,
    test_segments,
    test_speculation,
)
from tests.cuda.apart import DEVICE, Apart, ApartError, apart, is_on_device
from tests.cuda.support import RecordingLauncher


@pytest.fixture
def mode(monkeypatch: pytest.MonkeyPatch) -> Iterator[Apart]:
    with apart(monkeypatch) as mode:
        yield mode


@pytest.fixture
def run(emulated: Launcher, mode: Apart) -> Launcher:
    torch.manual_seed(0)
    emulated.module.set_seed(1)
    return RecordingLauncher(Launcher(emulated.module, DEVICE))


def bench_cases(run: Launcher, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "COPY_BYTES", 1 << 12)
    device = CudaDevice(1, graph=False, cold_l2=True, launcher=run)
    test_bench.test_every_case_is_right(device, path, monkeypatch)


BODIES: dict[str, Callable[..., None]] = {
    "engine": test_backend.test_the_engine_decodes,
    "chains": lambda run, *_: test_speculation.test_drafts_are_the_hosts(run, False),
    "trees": lambda run, *_: test_speculation.test_drafts_are_the_hosts(run, True),
    "segments": lambda run, *_: test_segments.test_segments_are_what_calls_leave(run, 1),
    "rejection": lambda *given: test_rejection.test_an_engine_rejects_as_the_host(*given, "trees"),
    "branches": test_runners_up.test_an_engine_keeps_its_tokens,
    "model": lambda run, _, patch: test_bench.test_the_model_runs(run, patch),
    "bench": bench_cases,
}


@pytest.mark.parametrize("name", BODIES)
def test_host_and_device_are_apart(
    run: Launcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    BODIES[name](run, tmp_path, monkeypatch)


def test_what_is_refused(run: Launcher, mode: Apart) -> None:
    """And what is not: copies, numbers, indices of the host."""
    here, there = torch.zeros(4), torch.zeros(4, device=DEVICE)
    for wrong in (
        lambda: there + here,
        lambda: torch.cat([there, here]),
        lambda: torch.equal(there, here),
        lambda: there.index_copy_(0, torch.arange(4), there.clone()),
        lambda: there.numpy(),
        lambda: run("rms_norm", x=here),
    ):
        with pytest.raises(ApartError):
            wrong()
    assert is_on_device(there[1:].view(3, 1) + there.sum() + torch.tensor(3.0))
    assert is_on_device(there[torch.tensor([1, 2])])
    assert is_on_device(here.to(DEVICE))
    assert not is_on_device(there.cpu())
    there[1:3] = here[1:3]
    here.copy_(there)
    assert not is_on_device(here)
    mode.capturing = True
    there.view(2, 2)[0]
    with pytest.raises(ApartError, match="captured"):
        there.add_(1)
    mode.capturing = False


def test_a_mistake_is_found(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is to be sent stays on the host."""
    monkeypatch.setattr(Launcher, "send", lambda _, x: x.clone())
    with pytest.raises(ApartError):
        test_backend.test_the_engine_decodes(run, tmp_path, monkeypatch)
