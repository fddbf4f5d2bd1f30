"""Residual addition and root-mean-square norm in one pass over the row."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl


@triton.jit
def fused_norm_kernel(
    x, delta, weight, out, cols, x_stride, out_stride, eps, ADDS: tl.constexpr, BLOCK: tl.constexpr
):
    """One program a row; the row fits one block, so that its sum has one order."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < cols
    value = tl.load(x + row * x_stride + column, mask=inside, other=0.0)
    if ADDS:
        value += tl.load(delta + row * x_stride + column, mask=inside, other=0.0)
        tl.store(x + row * x_stride + column, value, mask=inside)
    scale = 1.0 / tl.sqrt(tl.sum(value * value, axis=0) / cols + eps)
    normed = value * scale * tl.load(weight + column, mask=inside, other=0.0)
    tl.store(out + row * out_stride + column, normed.to(out.dtype.element_ty), mask=inside)


def rms_norm(
    x: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    rows: int,
    cols: int,
    out: torch.Tensor,
    **native: Any,
) -> None:
    """As the native `rms_norm`: the leading `rows` rows of `x` `[.., cols]` into those of `out`."""
    fused_norm(x[:rows], weight, eps, out[:rows, :cols])


def fused_norm(
    x: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    out: torch.Tensor,
    delta: torch.Tensor | None = None,
) -> None:
    """`x += delta`, then `out = x / sqrt(mean(x^2) + eps) * weight`.

    `x` and `delta` float32 `[rows, cols]` (x is changed where there is a delta), `out`
    `[rows, cols]` of float16, bfloat16 or float32 with any row stride.
    """
    rows, cols = x.shape
    if rows == 0:
        return
    fused_norm_kernel[(rows,)](
        x,
        x if delta is None else delta,
        weight,
        out,
        cols,
        x.stride(0),
        out.stride(0),
        eps,
        ADDS=delta is not None,
        BLOCK=triton.next_power_of_2(cols),
    )
