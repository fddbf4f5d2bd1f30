"""Rotary embedding of queries and keys, and the store of keys and values into cache pages."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

PAGE_TOKENS = 16


@triton.jit
def rope_store_kernel(
    qkv, positions, slots, inv_freq, keys, values, queries,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, DIM: tl.constexpr, HALF: tl.constexpr,
    PAGE: tl.constexpr,
):  # fmt: skip
    """One program a row and head: query heads, key heads, value heads. HALF is a power of two that
    holds DIM / 2."""
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    slot = tl.load(slots + row).to(tl.int64)
    if slot >= 0:
        i = tl.arange(0, HALF)
        inside = i < DIM // 2
        source = qkv + (row * (HEADS + 2 * KV_HEADS) + head) * DIM
        first = tl.load(source + i, mask=inside, other=0.0)
        second = tl.load(source + DIM // 2 + i, mask=inside, other=0.0)
        if head < HEADS + KV_HEADS:
            position = tl.load(positions + row).to(tl.float32)
            angle = position * tl.load(inv_freq + i, mask=inside, other=0.0)
            cos, sin = tl.cos(angle), tl.sin(angle)
            turned = first * cos - second * sin
            second = second * cos + first * sin
            first = turned
        if head < HEADS:
            target = queries + (row * HEADS + head) * DIM
        else:
            kv_head = (head - HEADS) % KV_HEADS
            offset = ((slot // PAGE * KV_HEADS + kv_head) * PAGE + slot % PAGE) * DIM
            target = (keys if head < HEADS + KV_HEADS else values) + offset
        tl.store(target + i, first.to(queries.dtype.element_ty), mask=inside)
        tl.store(target + DIM // 2 + i, second.to(queries.dtype.element_ty), mask=inside)


def rope_store(
    qkv: torch.Tensor,
    positions: torch.Tensor,
    slots: torch.Tensor,
    inv_freq: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    queries: torch.Tensor,
) -> None:
    """`qkv` float32 `[rows, (heads + 2 kv_heads) * dim]`; `positions`, `slots` int32 `[rows]`
    (slot = page * 16 + place, -1: a hole); `keys`, `values` `[pages, kv_heads, 16, dim]` and
    `queries` `[rows, heads, dim]` of one dtype are written."""
    rows, heads, dim = queries.shape
    if rows == 0:
        return
    kv_heads = keys.shape[1]
    rope_store_kernel[(rows, heads + 2 * kv_heads)](
        qkv,
        positions,
        slots,
        inv_freq,
        keys,
        values,
        queries,
        HEADS=heads,
        KV_HEADS=kv_heads,
        DIM=dim,
        HALF=triton.next_power_of_2(dim // 2),
        PAGE=PAGE_TOKENS,
    )
