"""Planted bugs: each is a textual change of one kernel source, and each must be caught by the check
named with it. What no check catches is not tested. The lists are in the test_..._mutations.py."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from cascade_engine.ops.launch import Launcher
from tests.cuda import emulation

Check = Callable[[Launcher], None]
FOLDER = emulation.CSRC / "cuda"
KERNELS = emulation.KERNELS


class Bug(NamedTuple):
    name: str
    file: str
    old: str
    new: str
    check: Check


def mutated(bug: Bug) -> dict[str, str]:
    """A header is changed inside every source that reaches it."""
    text = (FOLDER / bug.file).read_text()
    assert bug.old in text, f"{bug.name}: {bug.file} has no {bug.old!r}"
    text = text.replace(bug.old, bug.new)
    if bug.file.endswith(".cu"):
        return {bug.file: text}
    found = {name: with_header((FOLDER / name).read_text(), bug.file, text) for name in KERNELS}
    return {name: changed for name, changed in found.items() if changed is not None}


def with_header(source: str, header: str, text: str) -> str | None:
    """A source in which an included header reads otherwise; None where it is not reached."""
    for other in re.findall(r'#include "cuda/(.+)"', source):
        inner = text if other == header else None
        inner = inner or with_header((FOLDER / other).read_text(), header, text)
        if inner is not None:
            return source.replace(f'#include "cuda/{other}"', inner)
    return None


def modules_of(bugs: Sequence[Bug]) -> Any:
    """A fixture: a module for each bug, two compilations at a time."""

    @pytest.fixture(scope="module")
    def modules(emulated: Launcher) -> dict[str, Path]:
        paths = emulation.build_all([mutated(bug) for bug in bugs], warnings=False)
        return {bug.name: path for bug, path in zip(bugs, paths, strict=True)}

    return modules


def check(bug: Bug, modules: dict[str, Path]) -> None:
    """The bug is caught."""
    module = emulation.load(modules[bug.name])
    module.set_seed(1)
    torch.manual_seed(0)
    # Wrong results fail assertions, misuse of the thread model raises ValueError.
    with pytest.raises((AssertionError, ValueError)):
        bug.check(Launcher(module, torch.device("cpu")))
