"""SwiGLU gate (Shazeer, arXiv 2002.05202): silu(gate) * up."""

from __future__ import annotations

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


def swiglu(gate_up: torch.Tensor, out: torch.Tensor) -> None:
    """`gate_up` float32 `[rows, 2 cols]`, gate first; `out` `[rows, cols]` of any row stride."""
    rows, cols = gate_up.shape[0], gate_up.shape[1] // 2
    if rows == 0:
        return
    grid = (rows, triton.cdiv(cols, BLOCK))
    swiglu_kernel[grid](gate_up, out, cols, gate_up.stride(0), out.stride(0), BLOCK=BLOCK)
