"""The launcher's dealings with torch's devices and streams, on a machine that says it has two."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cascade_engine.ops import launch
from cascade_engine.ops.launch import Launcher


class TwoDevices:
    """What torch says of them: which is current, and on which a stream is capturing."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.log = 1, []
        self.streams: list[Any] = []
        properties = SimpleNamespace(multi_processor_count=8, shared_memory_per_block_optin=1 << 16)
        fakes: dict[str, Any] = {
            "current_device": lambda: self.now,
            "device": self.device,
            "current_stream": lambda d: SimpleNamespace(cuda_stream=100 + d.index),
            "get_device_properties": lambda _: properties,
            "Stream": lambda d: self.streams.append(d) or f"stream of {d}",
            "CUDAGraph": lambda: SimpleNamespace(replay=lambda: self.log.append("replay")),
            "graph": self.graph,
        }
        for name, fake in fakes.items():
            monkeypatch.setattr(torch.cuda, name, fake)

    @contextlib.contextmanager
    def device(self, device: torch.device) -> Iterator[None]:
        before, self.now = self.now, device.index
        yield
        self.now = before

    @contextlib.contextmanager
    def graph(self, graph: Any, stream: str, capture_error_mode: str) -> Iterator[None]:
        self.log.append((stream, capture_error_mode, self.now))
        yield

    def launched(self, stream: int, **values: Any) -> None:
        self.log.append((stream, self.now, values))


@pytest.fixture
def devices(monkeypatch: pytest.MonkeyPatch) -> TwoDevices:
    return TwoDevices(monkeypatch)


@pytest.fixture
def launcher(devices: TwoDevices) -> Launcher:
    module: Any = SimpleNamespace(norm=devices.launched)
    return Launcher(module, torch.device("cuda"))


def test_launches_go_to_the_device_of_the_beginning(
    devices: TwoDevices, launcher: Launcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another thread, or the same one later, may have another current device."""
    devices.now = 0
    launcher("norm", rows=3)
    assert devices.log == [(101, 1, {"rows": 3})]
    monkeypatch.setattr(launch, "triton_operation", lambda name: lambda **v: devices.launched(0))
    launcher.triton("norm")
    assert devices.log[1:] == [(0, 1, {})]
    assert devices.now == 0


def test_captures_on_its_own_device(devices: TwoDevices, launcher: Launcher) -> None:
    """On one stream, while other threads may do what a capture of theirs would forbid."""
    devices.now = 0
    other = Launcher(launcher.module, torch.device("cuda", 0))
    for this, index in ((launcher, 1), (other, 0), (launcher, 1)):
        devices.log.clear()
        replay = this.capture(lambda this=this: this("norm"))
        begun = (f"stream of cuda:{index}", "thread_local", index)
        assert devices.log == [begun, (100 + index, index, {})]
        replay()
        assert devices.log[2:] == ["replay"]
    assert devices.streams == [torch.device("cuda", 1), torch.device("cuda", 0)]
