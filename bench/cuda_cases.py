"""The operations of a forward pass on a GPU: launches with their memory, beside torch on the same
numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch.nn import functional

from bench.cuda_batch import batch_of, said, served_by
from bench.cuda_peers import flashinfer_attention
from bench.cuda_row_cases import rms_norm_cases, rope_store_cases, swiglu_cases
from bench.op_case import Case, Size, by_count, relative_error, sizes_of, tree_mask
from bench.shapes import vocabulary_of
from cascade_engine.gpu_kernels import TRITON
from cascade_engine.ops.cuda_batch import CHUNK, PAGE_TOKENS
from cascade_engine.ops.launch import ELEMENT, STORE, Launcher, pack_tiles

LINEAR_OUTPUTS, LINEAR_STEP = 128, 64


def linear_cases(
    run: Launcher, shape: str, dtype: torch.dtype, sizes: Sequence[Size]
) -> Iterator[Case]:
    """Matrices of a layer, and the head."""
    hidden, inner, _, _ = sizes_of(shape)
    for n, k in (
        (hidden, hidden),
        (inner, hidden),
        (hidden, inner),
        (vocabulary_of(shape), hidden),
    ):
        dense = torch.randn(n, k, device=run.device, dtype=dtype)
        packed = pack_tiles(dense, LINEAR_OUTPUTS, LINEAR_STEP)
        for rows, tokens in by_count(sizes):
            yield _linear_case(run, dense, packed, rows, tokens)


def _linear_case(
    run: Launcher, dense: torch.Tensor, packed: torch.Tensor, rows: int, tokens: int
) -> Case:
    (n, k), count = dense.shape, rows * tokens
    stride = -(-k // 8) * 8
    x = torch.zeros(count, stride, device=run.device, dtype=dense.dtype)
    x[:, :k] = torch.randn(count, k, device=run.device)
    y = torch.empty(count, n, device=run.device)
    sms, module = run.multiprocessors, run.module
    floats = module.linear_workspace_floats(n, k, count, sms)
    counters = module.linear_counters(n, count)
    arguments = {
        "weights": packed,
        "dtype": ELEMENT[dense.dtype],
        "n": n,
        "k": k,
        "x": x,
        "x_stride": stride,
        "rows": count,
        "bias": None,
        "output": STORE,
        "y": y,
        "y_stride": n,
        "y_cols": n,
        "workspace": torch.empty(floats + 1, device=run.device),
        "counters": torch.zeros(counters, dtype=torch.int32, device=run.device),
        "multiprocessors": sms,
    }

    def error() -> float:
        run("linear", **arguments)
        return relative_error(y, functional.linear(x[:, :k].float(), dense.float()))

    return Case(
        "linear",
        rows,
        tokens,
        0,
        lambda: run("linear", **arguments),
        lambda: functional.linear(x[:, :k], dense),
        n * k * dense.itemsize,
        2 * n * k * count,
        error,
        f"{n}x{k}",
    )


def attention_cases(
    run: Launcher,
    shape: str,
    dtype: torch.dtype,
    sizes: Sequence[Size],
    contexts: Sequence[int],
    parents: Sequence[int] | None,
) -> Iterator[Case]:
    """With as many heads of keys and values as queries, and a quarter of them. Sizes with more
    tokens than the context are left out."""
    heads = sizes_of(shape)[3]
    for kv_heads in dict.fromkeys((heads, max(1, heads // 4))):
        for context in contexts:
            for rows, tokens in sizes:
                if tokens <= context:
                    size = rows, tokens, context
                    for served in served_by(run, "attention"):
                        yield _attention_case(run, shape, dtype, kv_heads, size, parents, served)


def _attention_case(
    run: Launcher,
    shape: str,
    dtype: torch.dtype,
    kv_heads: int,
    size: tuple[int, int, int],
    parents: Sequence[int] | None,
    served: str,
) -> Case:
    """torch goes without a mask, which would cost it its fast kernels, and over dense keys."""
    hidden, _, _, heads = sizes_of(shape)
    rows, tokens, context = size
    dim, scale = hidden // heads, (hidden // heads) ** -0.5
    batch = batch_of(run, rows, tokens, context - tokens, parents)
    pages = batch["block_tables"].numel()
    cache = torch.randn(2, pages, kv_heads, PAGE_TOKENS, dim, device=run.device, dtype=dtype)
    chunks = -(-context // CHUNK)
    floats = run.module.attention_partial_floats(rows * tokens, heads, dim, chunks)
    q = torch.randn(rows * tokens, heads, dim, device=run.device, dtype=dtype)
    out = torch.empty_like(q)
    view = {"keys": cache[0], "values": cache[1], "dtype": ELEMENT[dtype]}
    arguments = {
        "batch": batch,
        "queries": q,
        "heads": heads,
        "scale": scale,
        "bias": None,
        "bias_reach": 0,
        "sources": None,
        "over_source": False,
        "cache": {**view, "kv_heads": kv_heads, "head_dim": dim},
        "out": out,
        "max_chunks": chunks,
        "partials": torch.empty(floats, device=run.device),
        "multiprocessors": run.multiprocessors,
        "shared_limit": run.shared_limit,
    }
    launch = partial(run, "attention", **arguments)
    if served == TRITON:
        launch = partial(run.triton, "attention", **arguments, out_stride=hidden)
    tables = batch["block_tables"].long()
    keys, values = (_dense(x, tables, context) for x in cache)
    queries = q.view(rows, tokens, heads, dim).transpose(1, 2)

    def error() -> float:
        """Of the first row: more in float32 would not fit."""
        launch()
        mask = tree_mask(tokens, context, parents).to(run.device)
        first = (x[:1].float() for x in (queries, keys, values))
        expected = functional.scaled_dot_product_attention(*first, mask, enable_gqa=True)
        found = out.view(rows, tokens, heads, dim)[:1].float()
        return relative_error(found, expected.transpose(1, 2))

    peer = flashinfer_attention(q, cache, batch["block_tables"], tokens, context)
    seen = int(tree_mask(tokens, context, parents).sum()) * rows
    attend = functional.scaled_dot_product_attention
    return Case(
        "attention",
        rows,
        tokens,
        context,
        launch,
        lambda: attend(queries, keys, values, enable_gqa=True),
        2 * rows * context * kv_heads * dim * dtype.itemsize,
        4 * seen * hidden,
        error,
        f"{heads}/{kv_heads} heads" + " tree" * (parents is not None) + said(served),
        {} if peer is None or parents is not None else {"flashinfer": peer},
    )


def _dense(cache: torch.Tensor, tables: torch.Tensor, context: int) -> torch.Tensor:
    """`[rows, kv_heads, context, dim]` of one layer's pages."""
    rows, _ = tables.shape
    _, heads, _, dim = cache.shape
    dense = cache[tables].transpose(1, 2).reshape(rows, heads, -1, dim)
    return dense[:, :, :context].contiguous()


def cases_of(
    op: str,
    run: Launcher,
    shape: str,
    dtype: torch.dtype,
    sizes: Sequence[Size],
    contexts: Sequence[int],
    parents: Sequence[int] | None,
) -> Iterator[Case]:
    if op == "attention":
        return attention_cases(run, shape, dtype, sizes, contexts, parents)
    makers = {
        "linear": linear_cases,
        "rms_norm": rms_norm_cases,
        "rope_store": rope_store_cases,
        "swiglu": swiglu_cases,
    }
    return makers[op](run, shape, dtype, sizes)
