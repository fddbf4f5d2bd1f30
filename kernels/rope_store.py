"""Rotary embedding of queries and keys, and the store of keys and values into cache pages, with the
arguments of the native operation (RopeStoreArgs of csrc/include/ce/cuda_kernels.h)."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

PAGE_TOKENS = 16
VARYING = ("slots", "starts", "counts", "tables", "width")
"""What differs from pass to pass: one compiled kernel serves whatever they are divisible by."""


@triton.jit(do_not_specialize=VARYING)
def rope_store_kernel(
    qkv, cos, sin, slots, starts, counts, tables, keys, values, queries, width, table_stride,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, DIM: tl.constexpr, HALF: tl.constexpr,
    ROTATES: tl.constexpr, PAGE: tl.constexpr,
):  # fmt: skip
    """One program an activation row and head: query heads, key heads, value heads. HALF is a power
    of two that holds DIM / 2. What turns is in cos and sin; the place is the index in the row."""
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    slot = tl.load(slots + row // width).to(tl.int64)
    token = (row % width).to(tl.int32)
    if (slot >= 0) & (token < tl.load(counts + row // width)):
        i = tl.arange(0, HALF)
        inside = i < DIM // 2
        source = qkv + (row * (HEADS + 2 * KV_HEADS) + head) * DIM
        first = tl.load(source + i, mask=inside, other=0.0)
        second = tl.load(source + DIM // 2 + i, mask=inside, other=0.0)
        if ROTATES and head < HEADS + KV_HEADS:
            c = tl.load(cos + row * (DIM // 2) + i, mask=inside, other=0.0)
            s = tl.load(sin + row * (DIM // 2) + i, mask=inside, other=0.0)
            turned = first * c - second * s
            second = second * c + first * s
            first = turned
        if head < HEADS:
            target = queries + (row * HEADS + head) * DIM
        else:
            index = tl.load(starts + row // width) + token
            page = tl.load(tables + slot * table_stride + index // PAGE).to(tl.int64)
            kv_head = (head - HEADS) % KV_HEADS
            offset = ((page * KV_HEADS + kv_head) * PAGE + index % PAGE) * DIM
            target = (keys if head < HEADS + KV_HEADS else values) + offset
        tl.store(target + i, first.to(queries.dtype.element_ty), mask=inside)
        tl.store(target + DIM // 2 + i, second.to(queries.dtype.element_ty), mask=inside)


def rope_store(
    batch: dict[str, Any],
    qkv: torch.Tensor,
    cos: torch.Tensor | None,
    sin: torch.Tensor | None,
    heads: int,
    cache: dict[str, Any],
    queries: torch.Tensor,
) -> None:
    """As the native `rope_store`."""
    rows, width = batch["rows"], batch["width"]
    dim, kv_heads = cache["head_dim"], cache["kv_heads"]
    if rows == 0 or width == 0:
        return
    rope_store_kernel[(rows * width, heads + 2 * kv_heads)](
        qkv,
        qkv if cos is None else cos,
        qkv if sin is None else sin,
        batch["slots"],
        batch["starts"],
        batch["counts"],
        batch["block_tables"],
        cache["keys"],
        cache["values"],
        queries,
        width,
        batch["table_stride"],
        HEADS=heads,
        KV_HEADS=kv_heads,
        DIM=dim,
        HALF=triton.next_power_of_2(dim // 2),
        ROTATES=cos is not None,
        PAGE=PAGE_TOKENS,
    )
