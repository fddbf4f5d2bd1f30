"""SwiGLU gate (Shazeer, arXiv 2002.05202): silu(gate) * up."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

BLOCK = 1024


@triton.jit
def swiglu_kernel(gate_up, out, cols, in_stride, out_stride, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < cols
    gate = tl.load(gate_up + row * in_stride + column, mask=inside, other=0.0)
    up = tl.load(gate_up + row * in_stride + cols + column, mask=inside, other=0.0)
    value = gate / (1.0 + tl.exp(-gate)) * up
    tl.store(out + row * out_stride + column, value.to(out.dtype.element_ty), mask=inside)


def swiglu(
    gate_up: torch.Tensor, rows: int, cols: int, out: torch.Tensor, out_stride: int, **native: Any
) -> None:
    """As the native `swiglu`: `gate_up` float32 `[rows, 2 cols]`, gate first; `out` has rows of
    `out_stride` elements."""
    if rows == 0:
        return
    grid = (rows, triton.cdiv(cols, BLOCK))
    swiglu_kernel[grid](gate_up, out, cols, 2 * cols, out_stride, BLOCK=BLOCK)
