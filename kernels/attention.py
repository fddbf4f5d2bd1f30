"""Attention over cache pages for any even head_dim up to 256, with the arguments of the native
operation (AttentionArgs of csrc/include/ce/cuda_kernels.h), flash style (Dao, arXiv 2307.08691).

Tiles of keys are aligned to absolute positions and visited in ascending order, and the tile of
queries has one size for all passes. What follows a query in its tile, or the tiles that others
need, changes none of its sums; nodes of a tree gather their path. So a query's bits depend on what
it sees alone.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

PAGE_TOKENS = 16
BIAS_MARGIN = 15
QUERIES, POSITIONS = 16, 64
VARYING = ("slots", "starts", "counts", "bases", "ancestors", "tables", "sources", "width")
"""What differs from pass to pass: one compiled kernel serves whatever they are divisible by."""


@triton.jit(do_not_specialize=VARYING)
def attention_kernel(
    queries, keys, values, out, slots, starts, counts, bases, ancestors, tables, sources, bias,
    width, table_stride, out_stride, bias_reach, scale,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, DIM: tl.constexpr, WIDE: tl.constexpr,
    TREES: tl.constexpr, SOURCES: tl.constexpr, OVER: tl.constexpr, BIAS: tl.constexpr,
    MARGIN: tl.constexpr, PAGE: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """One program for M query rows (tokens x heads of the group) of a row and key/value head; where
    there is a tree, for one token's. WIDE is a power of two that holds DIM."""
    r, g, kv_head = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    group: tl.constexpr = HEADS // KV_HEADS
    parts: tl.constexpr = (group + M - 1) // M
    slot = tl.load(slots + r).to(tl.int64)
    start = tl.load(starts + r)
    count = tl.where(slot < 0, 0, tl.load(counts + r))
    source = 0
    if SOURCES:
        source = tl.load(sources + r)
    token = g // parts  # of a tree's program
    word = tl.zeros((), tl.int64)
    base = start + count
    if TREES:
        base = tl.minimum(tl.load(bases + r), base)
        node = (token < count) & (start + token >= base)
        word = tl.load(ancestors + r * width + token, mask=node, other=0)
    tree = (base < start + count) & (not OVER)
    i = tl.arange(0, M)
    t = tl.where(tree, token, (g * M + i) // group)
    member = tl.where(tree, g % parts * M + i, (g * M + i) % group)
    fed = (t < count) & (member < group)
    position = start + t
    end = tl.minimum(start + count, start + ((g + 1) * M - 1) // group + 1)
    end = tl.where(g * M // group < count, end, 0)
    if TREES:
        depth = -1
        for b in range(64):
            depth += ((word >> b) & 1).to(tl.int32)
        position = tl.where(word != 0, base + depth, position)
        end = tl.where(tree, tl.where(token < count, tl.max(position), -1) + 1, end)
    begin = source
    limit = position
    if OVER:
        begin = 0
        end = tl.where(end > 0, source, 0)
        limit = tl.zeros((M,), tl.int32) + source - 1
    head = kv_head * group + member
    d = tl.arange(0, WIDE)
    rows = (r * width + t).to(tl.int64)
    real = fed[:, None] & (d < DIM)[None, :]
    place = (rows * HEADS + head)[:, None] * DIM + d[None, :]
    q = tl.load(queries + place, mask=real, other=0.0)
    highest = tl.full((M,), float("-inf"), tl.float32)
    total = tl.zeros((M,), tl.float32)
    sums = tl.zeros((M, WIDE), tl.float32)
    for first in range(begin // N * N, end, N):
        p = first + tl.arange(0, N)
        index = p
        if TREES and tree & (first + N > base) & (word != 0):
            above = 0
            for b in range(64):
                bit = ((word >> b) & 1).to(tl.int32)
                index = tl.where((bit == 1) & (p == base + above), base + b, index)
                above += bit
        there = (p >= begin) & (p < end)
        page = tl.load(tables + slot * table_stride + index // PAGE, mask=there, other=0)
        lines = (page.to(tl.int64) * KV_HEADS + kv_head) * PAGE + index % PAGE
        lines = lines[:, None] * DIM + d[None, :]
        loaded = there[:, None] & (d < DIM)[None, :]
        k = tl.load(keys + lines, mask=loaded, other=0.0)
        v = tl.load(values + lines, mask=loaded, other=0.0)
        scores = tl.dot(q, tl.trans(k)) * scale
        seen = there[None, :] & (p[None, :] <= limit[:, None]) & fed[:, None]
        if BIAS:
            offset = p[None, :] - position[:, None]
            offset = tl.minimum(tl.maximum(offset, -bias_reach), bias_reach)
            columns = head[:, None] * (2 * (bias_reach + MARGIN) + 1) + bias_reach + MARGIN
            scores += tl.load(bias + columns + offset, mask=seen, other=0.0)
        scores = tl.where(seen, scores, float("-inf"))
        higher = tl.maximum(highest, tl.max(scores, axis=1))
        shift = tl.where(higher == float("-inf"), 0.0, higher)
        weights = tl.exp(scores - shift[:, None])
        shrink = tl.exp(highest - shift)
        total = total * shrink + tl.sum(weights, axis=1)
        sums = sums * shrink[:, None] + tl.dot(weights.to(v.dtype), v)
        highest = higher
    result = tl.where(fed[:, None], sums / tl.where(total > 0, total, 1.0)[:, None], 0.0)
    written = ((t < width) & (member < group))[:, None] & (d < DIM)[None, :]
    target = out + rows[:, None] * out_stride + head[:, None] * DIM + d[None, :]
    tl.store(target, result.to(out.dtype.element_ty), mask=written)


def attention(
    batch: dict[str, Any],
    queries: torch.Tensor,
    heads: int,
    scale: float,
    bias: torch.Tensor | None,
    bias_reach: int,
    sources: torch.Tensor | None,
    over_source: bool,
    cache: dict[str, Any],
    out: torch.Tensor,
    out_stride: int,
    **native: Any,
) -> None:
    """As the native `attention`; `out` has rows of `out_stride` elements. What else that one takes
    (partials, ...) is not needed."""
    rows, width, dim = batch["rows"], batch["width"], cache["head_dim"]
    if rows == 0 or width == 0:
        return
    group = heads // cache["kv_heads"]
    parts = triton.cdiv(group, QUERIES)
    unused = batch["slots"]
    attention_kernel[(rows, width * parts, cache["kv_heads"])](
        queries,
        cache["keys"],
        cache["values"],
        out,
        batch["slots"],
        batch["starts"],
        batch["counts"],
        unused if batch["bases"] is None else batch["bases"],
        unused if batch["bases"] is None else batch["ancestors"],
        batch["block_tables"],
        unused if sources is None else sources,
        out if bias is None else bias,
        width,
        batch["table_stride"],
        out_stride,
        bias_reach,
        scale,
        HEADS=heads,
        KV_HEADS=cache["kv_heads"],
        DIM=dim,
        WIDE=max(16, triton.next_power_of_2(dim)),
        TREES=batch["bases"] is not None,
        SOURCES=sources is not None,
        OVER=over_source,
        BIAS=bias is not None,
        MARGIN=BIAS_MARGIN,
        PAGE=PAGE_TOKENS,
        M=QUERIES,
        N=POSITIONS,
        num_stages=2,
    )
