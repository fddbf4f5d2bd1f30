"""Which implementation of an operation serves on a GPU, and why: the native kernels of csrc/cuda,
or those of kernels/ where Triton is installed."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

from cascade_engine.errors import RequestError

NATIVE, TRITON = "native", "triton"
NATIVE_HEAD_DIM = 128
"""The native attention takes multiples of 8 up to this."""
TRITON_HEAD_DIM = 256
"""Triton's takes even sizes up to this."""
ALTERNATIVES = {"attention": "attention", "rms_norm": "fused_norm"}
"""Operations with an implementation of either kind, and the file in kernels/."""
MEASURED: dict[str, dict[str, str]] = {}
"""By name of a GPU, operations for which Triton's kernel was the faster one there in
`python -m bench.ops --device cuda`, as {"rms_norm": "triton"}; what is not named is native."""


def triton_version() -> str | None:
    """None where Triton is not installed."""
    if importlib.util.find_spec("triton") is None:
        return None
    version: str = importlib.import_module("triton").__version__
    return version


def measured_choices(gpu: str) -> dict[str, str]:
    """What MEASURED says of a GPU, as far as it can be had."""
    return MEASURED.get(gpu, {}) if triton_version() is not None else {}


def attention_kernel(head_dim: int, chosen: str = NATIVE) -> str:
    """Who serves attention with heads of `head_dim`, `chosen` where both can. Raises RequestError,
    with the way out, for sizes that none can."""
    has_native = head_dim % 8 == 0 and head_dim <= NATIVE_HEAD_DIM
    if has_native and chosen == NATIVE:
        return NATIVE
    if head_dim % 2 != 0 or head_dim > TRITON_HEAD_DIM:
        raise RequestError(
            f"device 'cuda' needs an even head_dim up to {TRITON_HEAD_DIM}, got {head_dim}; use "
            "device='cpu'"
        )
    if triton_version() is None:
        raise RequestError(
            f"head_dim {head_dim} is no multiple of 8 up to {NATIVE_HEAD_DIM}: on device 'cuda' "
            "Triton serves such models, which is not installed; install triton, or use "
            "device='cpu'"
        )
    return TRITON


def triton_operation(name: str) -> Callable[..., Any]:
    """Triton's implementation of an operation, with the arguments of the native one."""
    module = importlib.import_module(f"cascade_engine.kernels.{ALTERNATIVES[name]}")
    operation: Callable[..., Any] = getattr(module, name)
    return operation


def gpu_operations(gpu: str | None = None) -> dict[str, str]:
    """For people: which kernels serve the operations that have two, on a GPU of this name."""
    version = triton_version()
    if version is None:
        why = "native: triton is not installed"
        other = f"{why}; other head sizes than multiples of 8 up to {NATIVE_HEAD_DIM} are refused"
        return {name: other if name == "attention" else why for name in ALTERNATIVES}
    chosen = {} if gpu is None else measured_choices(gpu)
    said = {}
    for name in ALTERNATIVES:
        said[name] = "native: no measurement speaks for triton"
        if chosen.get(name) == TRITON:
            said[name] = f"triton {version}: the faster one as measured on {gpu}"
    said["attention"] += (
        f"; triton {version} for head sizes other than multiples of 8 up to {NATIVE_HEAD_DIM}"
    )
    return said
