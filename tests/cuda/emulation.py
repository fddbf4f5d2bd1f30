"""Builds csrc/cuda for the host emulation and loads it as a Python module.

Objects are named by what they are made from, so that an unchanged source is compiled once, and a
module with one changed source costs one compilation.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pybind11

ROOT = Path(__file__).resolve().parents[2]
CSRC = ROOT / "csrc"
BUILD = ROOT / "build" / "emulation"
JOBS = 2
# Without a kernel of their own that could be emulated: they talk to the CUDA runtime.
HOST_ONLY = {"device.cu", "stream.cu"}
KERNELS = sorted(p.name for p in (CSRC / "cuda").glob("*.cu") if p.name not in HOST_ONLY)
FLAGS = [
    *("-std=c++20", "-O1", "-g1", "-fPIC", "-Wall", "-Wextra", "-Werror", "-ffp-contract=off"),
    *("-Wno-unknown-pragmas", "-DCE_EMULATION", "-fvisibility=hidden"),
    *(f"-I{CSRC}", f"-I{CSRC / 'include'}"),
]
# Planted bugs are looked for in kernels that compile fast: nothing is optimised, and what every
# source includes is read once for all.
MUTANT_FLAGS = [*FLAGS, "-O0", "-g0", "-w"]
PREFIX = ("ce/check.h", "ce/cuda_kernels.h", "emulation/cuda_emulation.h", "emulation/half.h")
PYTHON_FLAGS = [f"-isystem{sysconfig.get_paths()['include']}", f"-isystem{pybind11.get_include()}"]


def compiler() -> list[str] | None:
    """The C++ compiler's command, through ccache where it is there."""
    found = os.environ.get("CXX") or shutil.which("g++")
    if found is None:
        return None
    return ["ccache", found] if shutil.which("ccache") else [found]


def _included(text: str, seen: dict[Path, str]) -> dict[Path, str]:
    """The project's headers that a source reaches, with their contents."""
    for name in re.findall(r'#include "(.+)"', text):
        for path in (CSRC / name, CSRC / "include" / name):
            if path.exists() and path not in seen:
                seen[path] = path.read_text()
                _included(seen[path], seen)
    return seen


def _prefix() -> list[str]:
    """Flags that put a precompiled header in front of a mutant."""
    text = "".join(f'#include "{name}"\n' for name in PREFIX)
    compiled = _compile("prefix.h", text, MUTANT_FLAGS, "c++-header", ".h.gch")
    header = compiled.with_suffix("")  # the compiler looks for NAME.gch beside NAME
    if not header.exists():
        header.write_text(text)
    return ["-include", str(header)]


def _compile(
    name: str, text: str, flags: list[str], language: str = "c++", suffix: str = ".o"
) -> Path:
    headers = sorted(_included(text, {}).values())
    key = hashlib.sha256(repr((name, text, headers, flags)).encode()).hexdigest()[:20]
    target = BUILD / f"{Path(name).stem}-{key}{suffix}"
    if target.exists():
        return target
    source = BUILD / f"{target.name}-{os.getpid()}{Path(name).suffix}"
    source.write_text(f'#line 1 "{name}"\n{text}')
    part = BUILD / f"{target.name}.{os.getpid()}.part"
    command = compiler()
    assert command is not None
    run = [*command, *flags, "-x", language, "-c", str(source), "-o", str(part)]
    done = subprocess.run(run, capture_output=True, text=True)
    source.unlink()
    assert done.returncode == 0, f"{name} does not compile for the emulation:\n{done.stderr}"
    part.rename(target)
    return target


def build_all(
    variants: Iterable[dict[str, str]],
    sanitize: str = "",
    warnings: bool = True,
    jobs: int = JOBS,
) -> list[Path]:
    """One module per variant: kernel sources by file name that replace those of csrc/cuda. Without
    warnings they are mutants: planted bugs may leave things unused. `sanitize` is about the kernels
    and the emulation; what takes their arguments from Python is built as always."""
    BUILD.mkdir(parents=True, exist_ok=True)
    extra = []
    if sanitize:
        extra = [f"-fsanitize={sanitize}", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]
    common = {
        "emulation/fiber.cpp": [*FLAGS, *extra],
        "emulation/cuda_emulation.cpp": [*FLAGS, "-O2", *extra],
        "emulation/module.cpp": [*FLAGS, *PYTHON_FLAGS],
        "bindings/cuda.cpp": [*FLAGS, "-O0", *PYTHON_FLAGS],
    }

    mutant = [*FLAGS, "-w", *extra]
    if not (warnings or sanitize):
        mutant = [*MUTANT_FLAGS, *_prefix()]

    def build(variant: dict[str, str]) -> Path:
        objects = [_compile(n, (CSRC / n).read_text(), f) for n, f in common.items()]
        for name in KERNELS:
            flags, text = [*FLAGS, *extra], (CSRC / "cuda" / name).read_text()
            if name in variant:
                flags, text = flags if warnings else mutant, variant[name]
            objects.append(_compile(f"cuda/{name}", text, flags))
        return _link(objects, extra)

    plan = list(variants)
    with ThreadPoolExecutor(jobs) as pool:
        if not plan[0]:  # the unchanged objects first, and each once
            names = [(n, (CSRC / n).read_text(), f) for n, f in common.items()]
            kernels = [*FLAGS, *extra]
            names += [(f"cuda/{n}", (CSRC / "cuda" / n).read_text(), kernels) for n in KERNELS]
            list(pool.map(lambda item: _compile(*item), names))
        return list(pool.map(build, plan))


def _link(objects: list[Path], extra: list[str]) -> Path:
    key = hashlib.sha256("".join(o.name for o in objects).encode()).hexdigest()[:20]
    target = BUILD / key / "cuda_emulation.so"
    if target.exists():
        return target
    target.parent.mkdir(exist_ok=True)
    part = target.with_suffix(f".{os.getpid()}.part")
    command = compiler()
    assert command is not None
    run = [command[-1], "-shared", *extra, *map(str, objects), "-o", str(part)]
    subprocess.run(run, check=True)
    part.rename(target)
    return target


def load(path: Path) -> ModuleType:
    """Several variants live side by side, under names of their own."""
    name = f"variant_{path.parent.name}.cuda_emulation"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def built() -> ModuleType:
    """The kernels as they are; CE_EMULATION_MODULE names another build of them."""
    other = os.environ.get("CE_EMULATION_MODULE")
    return load(Path(other) if other else build_all([{}])[0])
