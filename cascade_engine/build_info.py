"""Whether the native extension is there, and what it can do on this machine."""

from __future__ import annotations

import importlib.util
import platform
from typing import Any

from cascade_engine.gpu_kernels import gpu_name, gpu_operations, triton_version


def require_native() -> None:
    """Raises ImportError with the way out when this copy of the package has no extension: the usual
    case is running from a clone whose package was installed elsewhere."""
    if importlib.util.find_spec("cascade_engine._C") is None:
        raise ImportError(
            "cascade_engine._C is not built in this folder: run `pip install -e .` here, or run "
            "from another directory to use the installed package"
        )


def build_info() -> dict[str, Any]:
    """What was compiled and what this machine can run: `cpu_default` is the instruction set in
    force (CASCADE_CPU names another), `cpu_supported` all that work here, best first;
    `cuda_compiled` the CUDA version or None; `cuda_devices` the devices found; `triton` its
    version or None; `gpu_operations` which kernels serve the operations that have two, and why."""
    from cascade_engine import _C

    info: dict[str, Any] = _C.build_info()
    info["triton"] = triton_version()
    info["gpu_operations"] = gpu_operations(gpu_name(info))
    info["platform"] = platform.platform()
    return info
