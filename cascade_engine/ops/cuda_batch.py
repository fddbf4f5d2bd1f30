"""What passes on a GPU are described with: shapes, buffers, trees, views of host memory."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from cascade_engine.errors import CapacityError

CHUNK = 256
PAGE_TOKENS = 16
MAX_NODES = 64
"""Tokens that a tree may have."""
NO_TREE = 2**31 - 1
Tree = tuple[Sequence[int], Sequence[int]]
"""Tokens and parents; empty: none."""


def bucket(size: int) -> int:
    """Shapes are rounded up to powers of two, so that few graphs serve all."""
    return 0 if size <= 0 else 1 << (size - 1).bit_length()


def logit_bucket(size: int) -> int:
    """The same, but a review of the largest tree fits what the kernels take."""
    return size if size == MAX_NODES + 1 else bucket(size)


@dataclass(frozen=True)
class Shape:
    """Rows of a batch, tokens a row, wanted logits a row: the buckets."""

    rows: int
    width: int
    logits: int


@dataclass
class Buffer:
    """An activation matrix; `memory` is `[activation or logit rows, stride]`, which grows."""

    dtype: torch.dtype
    cols: int
    per_logit: bool
    memory: torch.Tensor | None = None

    @property
    def stride(self) -> int:
        """Matrix operands start at multiples of 16 bytes."""
        return self.cols if self.dtype == torch.float32 else -(-self.cols // 8) * 8


def ancestor_words(parents: Sequence[int]) -> torch.Tensor:
    """int64 `[nodes]`: for each node the bits of its ancestors and of itself."""
    if len(parents) > MAX_NODES:
        raise CapacityError(f"a tree has at most {MAX_NODES} nodes, got {len(parents)}")
    words: list[int] = []
    for node, parent in enumerate(parents):
        if not -1 <= parent < node:
            raise ValueError(f"parents[{node}] must be in -1..{node - 1}, got {parent}")
        words.append((words[parent] if parent >= 0 else 0) | 1 << node)
    return torch.tensor([w - (w >> 63 << 64) for w in words], dtype=torch.int64)


def host_ints(address: int, count: int) -> torch.Tensor:
    """Host memory as an int32 tensor that shares it."""
    memory = (ctypes.c_int32 * count).from_address(address)
    return torch.frombuffer(memory, dtype=torch.int32)


def host_floats(address: int, count: int) -> torch.Tensor:
    """Likewise as a float32 tensor."""
    memory = (ctypes.c_float * count).from_address(address)
    return torch.frombuffer(memory, dtype=torch.float32)
