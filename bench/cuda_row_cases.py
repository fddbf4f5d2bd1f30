"""Operations of a forward pass on a GPU that go over rows once: norm, gate, rotate, store."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch.nn import functional

from bench.cuda_batch import batch_of, said, served_by
from bench.op_case import EPS, Case, Size, by_count, relative_error, sizes_of
from cascade_engine.gpu_kernels import NATIVE
from cascade_engine.ops.cuda_batch import PAGE_TOKENS
from cascade_engine.ops.launch import ELEMENT, Launcher


def rms_norm_cases(
    run: Launcher, shape: str, dtype: torch.dtype, sizes: Sequence[Size]
) -> Iterator[Case]:
    hidden = sizes_of(shape)[0]
    weight = torch.randn(hidden, device=run.device)
    for rows, tokens in by_count(sizes):
        count = rows * tokens
        x = torch.randn(count, hidden, device=run.device)
        arguments = {"x": x, "weight": weight, "eps": EPS, "rows": count, "cols": hidden}
        exact = partial(functional.rms_norm, x, (hidden,), weight, EPS)
        for served in served_by(run, "rms_norm"):
            yield _elementwise(
                run, "rms_norm", rows, tokens, hidden, dtype, arguments, exact, 4, served
            )


def swiglu_cases(
    run: Launcher, shape: str, dtype: torch.dtype, sizes: Sequence[Size]
) -> Iterator[Case]:
    inner = sizes_of(shape)[1]
    for rows, tokens in by_count(sizes):
        count = rows * tokens
        x = torch.randn(count, 2 * inner, device=run.device)
        gate, up = (half.contiguous() for half in x.chunk(2, dim=1))
        arguments = {"gate_up": x, "rows": count, "cols": inner}

        def exact(gate: torch.Tensor = gate, up: torch.Tensor = up) -> torch.Tensor:
            return functional.silu(gate).mul_(up)

        for served in served_by(run, "swiglu"):
            yield _elementwise(
                run, "swiglu", rows, tokens, inner, dtype, arguments, exact, 5, served
            )


def rope_store_cases(
    run: Launcher, shape: str, dtype: torch.dtype, sizes: Sequence[Size]
) -> Iterator[Case]:
    """Of one layer; the rows stand at positions far apart. torch has nothing of the kind."""
    for size in sizes:
        for served in served_by(run, "rope_store"):
            yield _rope_case(run, shape, dtype, size, served)


def _rope_case(run: Launcher, shape: str, dtype: torch.dtype, size: Size, served: str) -> Case:
    hidden, _, _, heads = sizes_of(shape)
    (rows, tokens), dim, start = size, hidden // heads, 100
    count, half = rows * tokens, hidden // heads // 2
    batch = batch_of(run, rows, tokens, start)
    qkv = torch.randn(count, 3 * heads, dim, device=run.device)
    angles = torch.randn(count, half, device=run.device)
    pages = batch["block_tables"].numel()
    keys, values = torch.zeros(2, pages, heads, PAGE_TOKENS, dim, device=run.device, dtype=dtype)
    queries = torch.empty(count, heads, dim, device=run.device, dtype=dtype)
    view = {"keys": keys, "values": values, "dtype": ELEMENT[dtype]}
    arguments = {
        "batch": batch,
        "qkv": qkv,
        "cos": angles.cos(),
        "sin": angles.sin(),
        "heads": heads,
        "cache": {**view, "kv_heads": heads, "head_dim": dim},
        "queries": queries,
    }
    launch = partial(run if served == NATIVE else run.triton, "rope_store", **arguments)

    def error() -> float:
        launch()
        first, second = qkv[:, : 2 * heads].chunk(2, -1)
        cos, sin = angles.cos()[:, None], angles.sin()[:, None]
        turned = torch.cat([first * cos - second * sin, second * cos + first * sin], -1)
        position = torch.arange(start, start + tokens, device=run.device)
        places = batch["block_tables"].long()[:, position // PAGE_TOKENS], position % PAGE_TOKENS
        stored = [part.transpose(1, 2)[places].view(count, heads, dim) for part in (keys, values)]
        found = torch.cat([queries, *stored], 1).float()
        return relative_error(found, torch.cat([turned, qkv[:, 2 * heads :]], 1))

    return Case(
        "rope_store", rows, tokens, 0, launch, None, 0, 12 * count * heads * half, error,
        said(served).strip(),
    )  # fmt: skip


def _elementwise(
    run: Launcher,
    op: str,
    rows: int,
    tokens: int,
    cols: int,
    dtype: torch.dtype,
    arguments: dict[str, Any],
    exact: Any,
    flops: int,
    served: str = NATIVE,
) -> Case:
    """What it reads lies in the L2 cache; `flops` for each element."""
    stride = -(-cols // 8) * 8
    out = torch.empty(rows * tokens, stride, dtype=dtype, device=run.device)
    arguments = {**arguments, "out": out, "out_stride": stride, "dtype": ELEMENT[dtype]}

    launch = partial(run if served == NATIVE else run.triton, op, **arguments)

    def error() -> float:
        launch()
        return relative_error(out[:, :cols].float(), exact())

    return Case(
        op,
        rows,
        tokens,
        0,
        launch,
        lambda: exact().to(dtype),
        0,
        flops * rows * tokens * cols,
        error,
        said(served).strip(),
    )
