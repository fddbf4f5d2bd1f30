"""Which implementation of an operation serves on a GPU, and why: the native kernels of csrc/cuda,
or those of kernels/ where Triton is installed and was measured to be faster there."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import math
import os
import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from cascade_engine import cache_files
from cascade_engine.errors import RequestError

NATIVE, TRITON = "native", "triton"
NATIVE_HEAD_DIM = 128
"""The native attention takes multiples of 8 up to this."""
TRITON_HEAD_DIM = 256
"""Triton's takes even sizes up to this."""
ALTERNATIVES = {
    "attention": "attention",
    "rms_norm": "fused_norm",
    "rope_store": "rope_store",
    "swiglu": "swiglu",
}
"""Operations with an implementation of either kind, and the file in kernels/."""
OVERRIDE = "CASCADE_GPU_KERNELS"
"""Names an implementation for all of them ("native") or for some ("rms_norm=triton,...")."""
FASTER = 0.9
"""Triton's kernel is chosen below this share of the native one's time: what is about equal does not
change hands from one measurement to the next."""
FORMAT = 1


class Timing(NamedTuple):
    """Microseconds of an operation's kernels on some shapes, or why Triton's does not serve."""

    native: list[float]
    triton: list[float]
    failure: str = ""

    @property
    def ratio(self) -> float:
        """Triton's times over the native ones, their geometric mean."""
        logs = [math.log(t / n) for n, t in zip(self.native, self.triton, strict=True)]
        return math.exp(sum(logs) / len(logs))

    @property
    def served(self) -> str:
        return TRITON if not self.failure and self.ratio < FASTER else NATIVE

    @property
    def why(self) -> str:
        if self.failure:
            return f"triton's failed here: {self.failure}"
        return f"triton's takes {self.ratio:.2f} x the native one's time as measured here"


Timings = Mapping[str, Timing]


def gpu_name(native: Mapping[str, Any], index: int = 0) -> str | None:
    """Of a device in the extension's `build_info`, for all that is kept or said about it; None
    where there is no such device."""
    devices = native["cuda_devices"]
    return str(devices[index]["name"]) if index < len(devices) else None


def triton_version() -> str | None:
    """None where Triton is not installed."""
    if importlib.util.find_spec("triton") is None:
        return None
    version: str = importlib.import_module("triton").__version__
    return version


def overrides() -> dict[str, str]:
    """What the environment says. Raises RequestError for what it cannot say."""
    said = os.environ.get(OVERRIDE, "").replace(" ", "")
    if said in (NATIVE, TRITON):
        return dict.fromkeys(ALTERNATIVES, said)
    pairs = [part.partition("=") for part in said.split(",") if part]
    for name, _, kind in pairs:
        if name not in ALTERNATIVES or kind not in (NATIVE, TRITON):
            raise RequestError(
                f"{OVERRIDE} must be native, triton or a list like rms_norm=triton of "
                f"{', '.join(ALTERNATIVES)}, got {said!r}"
            )
    return {name: kind for name, _, kind in pairs}


def timing_key(gpu: str) -> str:
    """Times are of one machine, device and set of versions."""
    versions = [f"{name} {_version(name)}" for name in ("cascade_engine", "torch")]
    return "\n".join([platform.node(), gpu, *versions, f"triton {triton_version()}"])


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def saved_timings(gpu: str, cache: Path | str | None = "auto") -> tuple[Timings, str]:
    """What was measured before on this GPU, and a note where there is a file of no use."""
    key = timing_key(gpu)
    path = cache_files.cache_file(cache, "kernels", key)
    if path is None:
        return {}, ""
    try:
        content = cache_files.read(path, FORMAT, key)
        timings = {} if content is None else content["timings"]
        return {name: _checked(timings[name]) for name in ALTERNATIVES if name in timings}, ""
    except (OSError, ValueError, KeyError, TypeError) as error:
        return {}, f"what was measured before, in {path}, is ignored: {error}"


def save_timings(gpu: str, timings: Timings, cache: Path | str | None = "auto") -> None:
    key = timing_key(gpu)
    path = cache_files.cache_file(cache, "kernels", key)
    if path is not None:
        content = {name: list(timing) for name, timing in timings.items()}
        cache_files.write(path, {"format": FORMAT, "key": key, "timings": content})


def _checked(content: Any) -> Timing:
    native, triton, failure = content
    timing = Timing([float(t) for t in native], [float(t) for t in triton], str(failure))
    times = [*timing.native, *timing.triton]
    if not all(0.0 < t < math.inf for t in times) or len(timing.native) != len(timing.triton):
        raise ValueError("its times are not pairs of numbers > 0")
    if not times and not failure:
        raise ValueError("it has no times")
    return timing


def choices(timings: Timings) -> dict[str, str]:
    """By operation, who serves: what the environment says, then what was measured. What is not
    named is native. Raises RequestError for Triton where it is not installed."""
    forced = overrides()
    if triton_version() is None:
        if TRITON in forced.values():
            raise RequestError(f"{OVERRIDE} asks for triton, which is not installed; install it")
        return {}
    return {name: timing.served for name, timing in timings.items()} | forced


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
    timings, note = ({}, "") if gpu is None else saved_timings(gpu)
    forced, said = overrides(), {}
    for name in ALTERNATIVES:
        served, why = NATIVE, "measured by the first engine on a GPU" + f"; {note}" * bool(note)
        if name in timings:
            served, why = timings[name].served, timings[name].why
        if name in forced:
            served, why = forced[name], f"{OVERRIDE} says so"
        said[name] = f"{served if served == NATIVE else f'triton {version}'}: {why}"
    said["attention"] += (
        f"; triton {version} for head sizes other than multiples of 8 up to {NATIVE_HEAD_DIM}"
    )
    return said
