"""How levels are loaded, as people ask for it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from cascade_engine.errors import RequestError
from cascade_engine.levels import Drafter, check_drafter
from cascade_engine.models.checkpoint import Checkpoint
from cascade_engine.ops import CpuBackend, CudaBackend

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "int8": torch.int8,
}
DEVICE_DTYPES = {"cpu": ("float32", "bfloat16", "int8"), "cuda": ("bfloat16", "float16")}
LEARN_TOKENS = (64, 2**24)
"""Fewest and most tokens that the statistical level keeps of complete answers, if any."""
UNUSED = (
    "{} is for the built-in statistics, which the drafter replaces: leave it out, or pass "
    "drafter_fallback=True"
)


@dataclass(frozen=True)
class LoadOptions:
    """Keyword arguments of `Engine.load`."""

    device: str = "auto"
    dtype: str = "auto"
    threads: int | None = None
    max_rows: int = 16
    max_context: int | None = None
    kv_cache_bytes: int | None = None
    padding: str | None = None
    learn_tokens: int = 0
    drafter: Drafter | None = None
    drafter_fallback: bool = False
    compress_weights: bool | str = "auto"
    prefill_tokens: int = 512

    def __post_init__(self) -> None:
        if self.device not in ("auto", *DEVICE_DTYPES):
            raise RequestError(f"device must be 'auto', 'cpu' or 'cuda', got {self.device!r}")
        if self.dtype not in ("auto", *DEVICE_DTYPES[self.place]):
            names = ", ".join(map(repr, DEVICE_DTYPES[self.place]))
            raise RequestError(
                f"dtype must be 'auto' or one of {names}, got {self.dtype!r} for device "
                f"{self.place!r}"
            )
        self._check_compression()
        if self.padding not in (None, "left"):
            raise RequestError(f"padding must be None or 'left', got {self.padding!r}")
        for name in ("max_rows", "prefill_tokens", "threads", "max_context", "kv_cache_bytes"):
            value = getattr(self, name)
            optional = value is None and name in ("threads", "max_context", "kv_cache_bytes")
            if not optional and (type(value) is not int or value < 1):
                raise RequestError(f"{name} must be an integer >= 1, got {value!r}")
        self._check_drafting()

    def _check_drafting(self) -> None:
        learnt, (least, most) = self.learn_tokens, LEARN_TOKENS
        if type(learnt) is not int or (learnt != 0 and not least <= learnt <= most):
            allowed = f"0 (off) or an integer in {least}..{most}"
            raise RequestError(f"learn_tokens must be {allowed}, got {learnt!r}")
        if self.drafter is not None:
            check_drafter(self.drafter)
        elif self.drafter_fallback:
            raise RequestError("drafter_fallback=True is for what a drafter leaves: give a drafter")
        if learnt and self.drafter is not None and not self.drafter_fallback:
            raise RequestError(UNUSED.format(f"learn_tokens={learnt}"))

    def _check_compression(self) -> None:
        wanted = self.compress_weights
        if wanted != "auto" and not isinstance(wanted, bool):
            raise RequestError(f"compress_weights must be 'auto', True or False, got {wanted!r}")
        if wanted is True and (self.place != "cpu" or self.dtype not in ("auto", "bfloat16")):
            raise RequestError(
                "compress_weights=True is for bfloat16 on the CPU, got "
                f"dtype={self.dtype!r} on {self.place!r}: leave it out"
            )

    def compresses(
        self,
        model: str,
        dtype: torch.dtype,
        checkpoint: Checkpoint,
        backend: CpuBackend | CudaBackend,
    ) -> bool:
        """Whether the matrices of a model, loaded as `dtype`, are to be compressed. Raises
        RequestError where they are and cannot be."""
        if self.compress_weights is True and dtype != torch.bfloat16:
            raise RequestError(
                f"compress_weights=True is for bfloat16, and {model} is loaded as "
                f"{str(dtype).removeprefix('torch.')}: pass dtype='bfloat16' or leave it out"
            )
        if dtype != torch.bfloat16 or not isinstance(backend, CpuBackend):
            return False
        if self.compress_weights == "auto":
            numbers = sum(math.prod(entry.shape) for entry in checkpoint.entries.values())
            return backend.gains_by_compression(dtype.itemsize * numbers)
        return bool(self.compress_weights)

    @property
    def place(self) -> str:
        """ "auto" is the CPU: a GPU is used where it is asked for."""
        return "cpu" if self.device == "auto" else self.device
