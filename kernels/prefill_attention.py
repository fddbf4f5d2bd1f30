"""Causal attention of a prompt chunk over cache pages: many queries of one sequence, flash style
(Dao, arXiv 2307.08691). Tiles of keys are aligned to absolute positions and visited in ascending
order, so a query's result does not depend on where the chunk began."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

PAGE_TOKENS = 16
QUERIES, POSITIONS = 64, 64


@triton.jit
def prefill_attention_kernel(
    queries, keys, values, block_table, out, start, count, scale,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, DIM: tl.constexpr, WIDE: tl.constexpr,
    PAGE: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """One program for M queries of a head; WIDE is a power of two that holds DIM."""
    t = tl.program_id(0) * M + tl.arange(0, M)
    head = tl.program_id(1)
    kv_head = head // (HEADS // KV_HEADS)
    d = tl.arange(0, WIDE)
    wide = d < DIM
    fed = t < count
    rows = (t.to(tl.int64)[:, None] * HEADS + head) * DIM + d[None, :]
    q = tl.load(queries + rows, mask=fed[:, None] & wide[None, :], other=0.0)
    position = start + t
    highest = tl.full((M,), float("-inf"), tl.float32)
    total = tl.zeros((M,), tl.float32)
    sums = tl.zeros((M, WIDE), tl.float32)
    last = tl.minimum(start + count, start + (tl.program_id(0) + 1) * M)
    for first in range(0, last, N):
        p = first + tl.arange(0, N)
        there = p < last
        page = tl.load(block_table + p // PAGE, mask=there, other=0).to(tl.int64)
        place = ((page * KV_HEADS + kv_head) * PAGE + p % PAGE)[:, None] * DIM + d[None, :]
        seen = there[:, None] & wide[None, :]
        k = tl.load(keys + place, mask=seen, other=0.0)
        v = tl.load(values + place, mask=seen, other=0.0)
        scores = tl.dot(q, tl.trans(k)) * scale
        scores = tl.where(p[None, :] <= position[:, None], scores, float("-inf"))
        higher = tl.maximum(highest, tl.max(scores, axis=1))
        weights = tl.exp(scores - higher[:, None])
        shrink = tl.exp(highest - higher)
        total = total * shrink + tl.sum(weights, axis=1)
        sums = sums * shrink[:, None] + tl.dot(weights.to(v.dtype), v)
        highest = higher
    result = (sums / total[:, None]).to(out.dtype.element_ty)
    tl.store(out + rows, result, mask=fed[:, None] & wide[None, :])


def prefill_attention(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    block_table: torch.Tensor,
    start: int,
    scale: float,
    out: torch.Tensor,
) -> None:
    """`queries`, `out` `[count, heads, dim]`: the tokens at positions start.. of a sequence whose
    pages are `block_table` int32; `keys`, `values` `[pages, kv_heads, 16, dim]` hold everything up
    to them. Any head_dim."""
    count, heads, dim = queries.shape
    if count == 0:
        return
    grid = (triton.cdiv(count, QUERIES), heads)
    prefill_attention_kernel[grid](
        queries,
        keys,
        values,
        block_table,
        out,
        start,
        count,
        scale,
        HEADS=heads,
        KV_HEADS=keys.shape[1],
        DIM=dim,
        WIDE=max(16, triton.next_power_of_2(dim)),
        PAGE=PAGE_TOKENS,
        M=QUERIES,
        N=POSITIONS,
    )
