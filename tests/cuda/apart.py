"""Memory of the emulated device kept apart from the host's, as a GPU's is: what would fail there
fails here. Under the emulation both are the host's, so that a tensor of the one may take part in
operations on the other, and nobody sees it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from cascade_engine.cache.storage import KVStorage
from cascade_engine.ops.launch import Launcher
from tests.cuda.support import RecordingLauncher

DEVICE = torch.device("cpu", 0)
"""The device, where `torch.device("cpu")` is the host: torch takes them for the same."""
COPIES = {"aten::copy_", "aten::_to_copy", "aten::lift_fresh"}
"""Between host and device."""
PICKS = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}
"""Whose indices may be on the host."""


class ApartError(AssertionError):
    """What a GPU would refuse, or must not be done while a graph is captured."""


_held: dict[int, StorageWeakRef] = {}


def is_on_device(x: torch.Tensor) -> bool:
    held = _held.get(x.untyped_storage()._cdata)
    return held is not None and not held.expired()


def put_on_device(x: torch.Tensor) -> torch.Tensor:
    storage = x.untyped_storage()
    _held[storage._cdata] = StorageWeakRef(storage)
    return x


def named_device(values: Any) -> torch.device | None:
    for value in values:
        if isinstance(value, (torch.device, str)):
            return torch.device(value)
    return None


class Apart(TorchDispatchMode):
    """Operations whose tensors are not all in one place are errors, but for copies; so is any on
    the device, `capturing`, that does more than name a part of a tensor."""

    capturing = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name, kwargs = func.name().split(".")[0], kwargs or {}
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        here = any(map(is_on_device, given))
        if name in PICKS:
            given = [x for i, x in enumerate(args) if i != 1 and isinstance(x, torch.Tensor)]
        if here and name not in COPIES:
            lost = [tuple(x.shape) for x in given if x.dim() and x.numel() and not is_on_device(x)]
            if lost:
                raise ApartError(f"{name}: {lost} on the host, others on the device")
        if here and self.capturing and not func.is_view and name != "aten::lift_fresh":
            raise ApartError(f"{name} while a graph is captured")
        out = func(*args, **kwargs)
        device = kwargs.get("device")
        if here if device is None else device.index == 0:
            for x in tree_leaves(out):
                if isinstance(x, torch.Tensor) and name != "aten::copy_":
                    put_on_device(x)
        return out


def on_host(x: torch.Tensor) -> torch.Tensor:
    with _disable_current_modes():
        return x.clone()


@contextmanager
def apart(monkeypatch: pytest.MonkeyPatch) -> Iterator[Apart]:
    """All within: what torch would not tell apart is said here."""
    _held.clear()
    mode = Apart()
    device, to, make, number = (
        torch._C.TensorBase.device, torch.Tensor.to, torch.tensor, torch.Tensor.numpy,
    )  # fmt: skip
    value, store, capture = Launcher._value, KVStorage.__init__, RecordingLauncher.capture

    def moved(x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        target = named_device([*args, *kwargs.values()])
        if target is None or (target.index == 0) == is_on_device(x):
            return to(x, *args, **kwargs)
        found = to(on_host(x), *args, **kwargs)
        return found if target.index is None else put_on_device(found)

    def made(*args: Any, **kwargs: Any) -> torch.Tensor:
        target = kwargs.get("device")
        found = make(*args, **kwargs)
        return put_on_device(found) if target is not None and target.index == 0 else found

    def numbers(x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if is_on_device(x):
            raise ApartError("numpy of a tensor on the device")
        return number(x, *args, **kwargs)

    def launched(this: Launcher, given: Any) -> Any:
        if isinstance(given, torch.Tensor) and given.numel() and not is_on_device(given):
            raise ApartError(f"a tensor {tuple(given.shape)} on the host goes to a kernel")
        return value(this, given)

    def stored(this: KVStorage, *args: Any, **kwargs: Any) -> None:
        store(this, *args, **kwargs)
        if DEVICE in (*args, *kwargs.values()):
            put_on_device(this.data)

    def captured(this: RecordingLauncher, work: Any) -> Any:
        mode.capturing = True
        try:
            return capture(this, work)
        finally:
            mode.capturing = False

    with monkeypatch.context() as patch:
        where = property(lambda x: DEVICE if is_on_device(x) else device.__get__(x))
        for owner, name, fake in (
            (torch.Tensor, "device", where),
            (torch.Tensor, "to", moved),
            (torch.Tensor, "cpu", lambda x: moved(x, torch.device("cpu"))),
            (torch.Tensor, "numpy", numbers),
            (torch, "tensor", made),
            (Launcher, "_value", launched),
            (Launcher, "fetch", lambda _, x: moved(x, torch.device("cpu"))),
            (KVStorage, "__init__", stored),
            (RecordingLauncher, "capture", captured),
        ):
            patch.setattr(owner, name, fake, raising=False)
        with mode:
            yield mode
