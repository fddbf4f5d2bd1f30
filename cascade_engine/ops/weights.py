"""Weights in the layouts of the native kernels, and their element types."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from cascade_engine import _C
from cascade_engine.ops.launch import unpack_tiles

NATIVE_DTYPE = {
    torch.float32: _C.DType.f32,
    torch.bfloat16: _C.DType.bf16,
    torch.int8: _C.DType.i8,
}
SOURCE_DTYPE = {
    torch.float32: _C.SourceDType.f32,
    torch.bfloat16: _C.SourceDType.bf16,
    torch.float16: _C.SourceDType.f16,
}


def activation_dtype(weights: torch.dtype) -> torch.dtype:
    """What weights of a dtype are multiplied with, and what their cache and embedding table hold:
    int8 is for matrices alone."""
    return torch.bfloat16 if weights == torch.int8 else weights


def scale_count(n: int, dtype: torch.dtype) -> int:
    """float32 scales of a packed weight of `n` rows, padding included."""
    return -(-n // _C.BLOCK_COLUMNS) * _C.BLOCK_COLUMNS if dtype == torch.int8 else 0


@dataclass
class PackedTiles:
    """The shape of a weight in the layout of csrc/include/ce/cuda_kernels.h. `gated`: the two
    halves of its rows are interleaved by eights, for the fused gate."""

    n: int
    k: int
    gated: bool = False


@dataclass(frozen=True)
class LinearWeight:
    """A weight `[n, k]` in the packed layout of csrc/include/ce/types.h (or, with PackedTiles, of
    ce/cuda_kernels.h), with its bias `[n]`; in int8 with the scale of each row, `[n, padded]`.
    Compressed bfloat16 is memory of uint8."""

    handle: Any
    memory: torch.Tensor
    bias: torch.Tensor | None = None
    scales: torch.Tensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        return self.handle.n, self.handle.k


def unpack_linear(weight: LinearWeight) -> torch.Tensor:
    """The dense `[n, k]` matrix of a packed weight; of int8, what it stands for, in float64."""
    n, k = weight.shape
    if isinstance(weight.handle, PackedTiles):
        dense = unpack_tiles(weight.memory, n, k)
        if weight.handle.gated:
            dense = dense.view(n // 16, 2, 8, k).transpose(0, 1).reshape(n, k)
        return dense
    memory = weight.memory
    if memory.dtype == torch.uint8:
        memory = torch.zeros(_C.packed_elements(n, k, _C.DType.bf16), dtype=torch.bfloat16)
        _C.decode(weight.handle, memory.data_ptr())
    if memory.dtype == torch.float32:
        blocks = memory.view(-1, k, _C.BLOCK_COLUMNS).transpose(1, 2)
    else:
        if memory.dtype == torch.int8:
            halves = memory.view(-1, (k + 1) // 2, 2, 2, _C.BLOCK_COLUMNS // 2)
            pairs = halves.permute(0, 2, 4, 1, 3)
        else:
            pairs = memory.view(-1, (k + 1) // 2, _C.BLOCK_COLUMNS, 2).transpose(1, 2)
        blocks = pairs.reshape(-1, _C.BLOCK_COLUMNS, (k + 1) // 2 * 2)
    dense = blocks.reshape(-1, blocks.shape[-1])[:n, :k]
    return dense if weight.scales is None else dense * weight.scales[:n, None].double()
