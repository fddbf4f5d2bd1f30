"""Imports go down only: outside, engine, policy and levels, models and cache, ops, native code."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "cascade_engine"

# Layer of each first component of a module's path inside the package. A module may import from
# lower layers and from its own component.
LAYERS = {
    "errors": 0,
    "cache_files": 0,
    "memory": 0,
    "trace": 1,
    "_C": 0,
    "kernels": 0,
    "params": 1,
    "prompt_files": 1,
    "gpu_kernels": 1,
    "build_info": 2,
    "ops": 2,
    "models": 3,
    "cache": 3,
    "sampling": 3,
    "stops": 4,
    "detokenizer": 3,
    "tokenizer_files": 4,
    "tokenizer_json": 5,
    "tokenizer_sentencepiece": 5,
    "tokenizer": 6,
    "chat": 7,
    "tables": 7,
    "levels": 7,
    "policy": 7,
    "engine": 8,
    "argument_values": 9,
    "arguments": 9,
    "console": 9,
    "async_stream": 9,
    "serve": 10,
    "training": 8,
    "demo": 9,
    "distill": 10,
    "tune": 10,
    "sot": 10,
    "generate": 11,
    "info": 10,
}
# Imported by everything, importing nothing of ours.
WITHOUT_TORCH = ("policy", "errors", "params", "gpu_kernels", "cache_files")


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def component(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0].removesuffix(".py")


def imported_names(path: Path) -> set[str]:
    """Absolute names that a file imports anywhere, `from a import b` as `a.b`."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parent = ".".join(("cascade_engine", *path.relative_to(PACKAGE).parent.parts))
            assert node.level <= 1, f"{path}: relative import beyond its own folder"
            module = node.module if node.level == 0 else f"{parent}.{node.module or ''}"
            names |= {f"{module}.{alias.name}" for alias in node.names}
    return names


def own_components(path: Path) -> set[str]:
    return {
        name.split(".")[1]
        for name in imported_names(path)
        if name.startswith("cascade_engine.") and name.split(".")[1] != "__init__"
    }


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down(path: Path) -> None:
    own = component(path)
    if own == "__init__":
        return
    assert own in LAYERS, f"give {own} a layer in this test"
    for other in own_components(path):
        assert other in LAYERS, f"{path.name} imports unknown component {other}"
        allowed = other == own or LAYERS[other] < LAYERS[own]
        assert allowed, f"{own} (layer {LAYERS[own]}) imports {other} (layer {LAYERS[other]})"


def test_native_code_is_reached_through_ops_only() -> None:
    users = {component(path) for path in modules() if "_C" in own_components(path)}
    assert users <= {"ops", "build_info", "tables", "policy"}


@pytest.mark.parametrize("name", WITHOUT_TORCH)
def test_pure_modules_do_without_torch(name: str) -> None:
    files = [path for path in modules() if component(path) == name]
    assert files
    for path in files:
        assert not {n for n in imported_names(path) if n.split(".")[0] == "torch"}, path


def test_a_policy_does_not_import_levels_or_the_engine() -> None:
    for path in modules():
        if component(path) == "policy":
            native = {"_C"} if path.name == "planning.py" else set()
            assert own_components(path) <= {"policy", "errors", "cache_files", *native}, path
