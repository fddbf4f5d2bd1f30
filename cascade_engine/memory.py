"""Memory in huge pages for what is streamed: a page of 2 MB costs the processor one translation
where it would cost 512."""

from __future__ import annotations

import contextlib
import math
import mmap
from collections.abc import Sequence

import torch

ALIGNMENT = 64
CHUNK_BYTES = 64 << 20
"""Asked from the system at a time; what is not used is never touched."""


class Arena:
    """Zeroed tensors side by side in memory that asks for huge pages, so that small ones share
    them too. A tensor lives as long as it is referred to, and with it the chunk it lies in. Where
    the system has no huge pages it is memory like any other."""

    def __init__(self) -> None:
        self._chunk = torch.empty(0, dtype=torch.uint8)
        self._used = 0

    def zeros(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """A tensor of zeros at an address that is a multiple of `ALIGNMENT`."""
        size = math.prod(shape) * dtype.itemsize
        if self._used + size > len(self._chunk):
            self._chunk, self._used = _map(max(size, CHUNK_BYTES)), 0
        piece = self._chunk[self._used : self._used + size]
        self._used += (size + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT
        return piece.view(dtype).view(tuple(shape))


def _map(size: int) -> torch.Tensor:
    """Zeroed bytes of the process's own."""
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.zeros(size, dtype=torch.uint8)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel built without them
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.uint8)
