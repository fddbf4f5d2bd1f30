"""The cases of bench.cuda_ops: launches with their memory, and what torch does instead."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from cascade_engine.ops.device_samplers import DeviceSamplers
from cascade_engine.ops.launch import ELEMENT, STORE, Launcher

NEUTRAL: dict[str, Any] = {
    "temperature": 0.0,
    "top_k": 0,
    "top_p": 1.0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "logit_bias": [],
    "min_tokens": 0,
    "stop_ids": [],
    "seed": 7,
    "sample_index": 0,
    "prompt_length": 0,
}


@dataclass
class Case:
    """`ours` and `torch` are without arguments and wait for nothing."""

    op: str
    name: str
    ours: Callable[[], object]
    torch: Callable[[], object] | None = None
    read_bytes: int = 0


@dataclass(frozen=True)
class Sizes:
    """Small ones prove that the script runs, under the emulation."""

    matrices: tuple[tuple[int, int], ...] = (
        (4096, 4096),
        (11008, 4096),
        (4096, 11008),
        (32000, 4096),
    )
    rows: tuple[int, ...] = (1, 16, 64)
    heads: int = 32
    kv_heads: tuple[int, ...] = (32, 8)
    head_dim: int = 128
    batch: int = 16
    contexts: tuple[int, ...] = (4096, 32768)
    queries: tuple[int, ...] = (1, 16)
    draft_rows: int = 64
    draft_tokens: int = 32768
    vocab: int = 32000
    layers: int = 32


SMALL = Sizes(((128, 64),), (1,), 2, (1,), 64, 2, (40,), (1, 2), 2, 50, 130, 2)


def batch_of(
    run: Launcher, rows: int, width: int, start: int, bases: torch.Tensor | None = None
) -> dict[str, Any]:
    """`rows` rows that feed `width` tokens at positions start.. ."""
    blocks = -(-(start + width) // 16)

    def ints(values: list[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int32, device=run.device)

    pages = torch.randperm(rows * blocks, dtype=torch.int32).view(rows, blocks)
    words = torch.zeros(rows, width, dtype=torch.int64, device=run.device)
    return {
        "rows": rows,
        "width": width,
        "slots": ints(list(range(rows))),
        "starts": ints([start] * rows),
        "counts": ints([width] * rows),
        "bases": bases,
        "ancestors": None if bases is None else words,
        "tokens": torch.zeros(rows, start + width + 64, dtype=torch.int32, device=run.device),
        "token_stride": start + width + 64,
        "block_tables": pages.to(run.device),
        "table_stride": blocks,
    }


def linear_cases(run: Launcher, sizes: Sizes) -> Iterator[Case]:
    for n, k in sizes.matrices:
        dense = torch.randn(n, k, device=run.device, dtype=torch.bfloat16)
        tiles = -(-n // 128) * 8 * -(-k // 64) * 4
        packed = torch.randn(tiles, 32, 8, device=run.device, dtype=torch.bfloat16)
        for rows in sizes.rows:
            x = torch.randn(rows, k, device=run.device, dtype=torch.bfloat16)
            y = torch.empty(rows, n, device=run.device)
            size = run.module.linear_workspace_floats(n, k, rows, run.multiprocessors)
            counters = run.module.linear_counters(n, rows)
            arguments = {
                "weights": packed,
                "dtype": ELEMENT[torch.bfloat16],
                "n": n,
                "k": k,
                "x": x,
                "x_stride": k,
                "rows": rows,
                "bias": None,
                "output": STORE,
                "y": y,
                "y_stride": n,
                "y_cols": n,
                "workspace": torch.empty(size + 1, device=run.device),
                "counters": torch.zeros(counters, dtype=torch.int32, device=run.device),
                "multiprocessors": run.multiprocessors,
            }
            yield Case(
                "linear",
                f"{n} x {k}, {rows} rows",
                lambda a=arguments: run("linear", **a),
                lambda x=x, w=dense: torch.matmul(x, w.T),
                2 * n * k,
            )


def attention_cases(run: Launcher, sizes: Sizes) -> Iterator[Case]:
    dim, dtype = sizes.head_dim, torch.bfloat16
    for kv_heads in sizes.kv_heads:
        for context in sizes.contexts:
            for width in sizes.queries:
                batch = batch_of(run, sizes.batch, width, context - width)
                pages = batch["block_tables"].numel()
                cache = torch.randn(2, pages, kv_heads, 16, dim, device=run.device, dtype=dtype)
                rows, chunks = sizes.batch * width, -(-context // 256)
                size = run.module.attention_partial_floats(rows, sizes.heads, dim, chunks)
                q = torch.randn(rows, sizes.heads, dim, device=run.device, dtype=dtype)
                layer = {"keys": cache[0], "values": cache[1], "dtype": ELEMENT[dtype]}
                arguments = {
                    "batch": batch,
                    "queries": q,
                    "heads": sizes.heads,
                    "scale": dim**-0.5,
                    "bias": None,
                    "bias_distances": 0,
                    "kv_lengths": None,
                    "cache": {**layer, "kv_heads": kv_heads, "head_dim": dim},
                    "out": torch.empty_like(q),
                    "max_chunks": chunks,
                    "partials": torch.empty(size, device=run.device),
                    "multiprocessors": run.multiprocessors,
                    "shared_limit": run.shared_limit,
                }
                shape = (sizes.batch, kv_heads, context, dim)
                keys, values = cache.view(2, -1)[:, : torch.Size(shape).numel()].view(2, *shape)
                queries = q.view(sizes.batch, width, sizes.heads, dim).transpose(1, 2)
                yield Case(
                    "attention",
                    f"{sizes.heads}/{kv_heads} heads, {sizes.batch} x {context}, {width} queries",
                    lambda a=arguments: run("attention", **a),
                    lambda q=queries, k=keys, v=values: (
                        torch.nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)
                    ),
                    4 * torch.Size(shape).numel(),
                )


def draft_case(run: Launcher, sizes: Sizes) -> Iterator[Case]:
    rows, length, width = sizes.draft_rows, sizes.draft_tokens, 10
    tokens = torch.randint(0, 30000, (rows, length + width), dtype=torch.int32).to(run.device)

    def ints(value: int) -> torch.Tensor:
        return torch.full((rows,), value, dtype=torch.int32, device=run.device)

    arguments = {
        "rows": rows,
        "slots": torch.arange(rows, dtype=torch.int32, device=run.device),
        "lengths": ints(length),
        "counts": ints(width),
        "tokens": tokens,
        "draft_probs": None,
        "token_stride": length + width,
        "max_match": 32,
        "corpora": None,
        "corpus_lengths": None,
        "matches": torch.zeros(rows, 2, dtype=torch.int64, device=run.device),
        "drafted": ints(0),
    }
    name = f"{rows} rows x {length} tokens"
    yield Case("max_gram", name, lambda: run("max_gram", **arguments), None, 4 * rows * length)


def review_cases(run: Launcher, sizes: Sizes) -> Iterator[Case]:
    rows, vocab = sizes.draft_rows, sizes.vocab
    batch = batch_of(run, rows, 1, 20)
    logits = torch.randn(rows, vocab, device=run.device)

    def ints(value: int) -> torch.Tensor:
        return torch.full((rows,), value, dtype=torch.int32, device=run.device)

    shared = {
        "batch": batch,
        "wanted": ints(1),
        "logit_width": 1,
        "best": torch.zeros(rows, dtype=torch.int64, device=run.device),
        "probs": None,
    }
    results = ints(0)
    variants: dict[str, dict[str, float]] = {"greedy": {}, "temperature": {"temperature": 0.8}}
    variants["top-p"] = {"temperature": 0.8, "top_p": 0.9}
    for name, change in variants.items():
        samplers = DeviceSamplers(run, [{**NEUTRAL, **change}] * rows, vocab)

        def review(samplers: DeviceSamplers = samplers) -> None:
            run(
                "choose",
                logits=logits,
                logits_stride=vocab,
                vocab=vocab,
                allowed=None,
                edits=False,
                filters=samplers.filters,
                processed=None,
                seen=None,
                **samplers.arguments(),
                **shared,
            )
            run(
                "accept",
                tokens=batch["tokens"],
                draft_probs=None,
                lenience=1.0,
                paths=None,
                path_lengths=None,
                num_accepted=results,
                own=results,
                lengths=results,
                **shared,
            )

        yield Case(
            "sample+accept", f"{rows} rows x {vocab}, {name}", review, None, 4 * rows * vocab
        )


def commit_case(run: Launcher, sizes: Sizes) -> Iterator[Case]:
    heads, dim, planes, depth = sizes.heads, sizes.head_dim, 2 * sizes.layers, 4
    bases = torch.full((1,), 20, dtype=torch.int32, device=run.device)
    batch = batch_of(run, 1, 16, 20, bases)
    pages = batch["block_tables"].numel()
    cache = torch.zeros(planes, pages, heads, 16, dim, device=run.device, dtype=torch.bfloat16)
    arguments = {
        "batch": batch,
        "paths": torch.tensor([[1, 4, 7, 9]], dtype=torch.int32, device=run.device),
        "path_lengths": torch.tensor([depth], dtype=torch.int32, device=run.device),
        "path_stride": depth,
        "cache": cache,
        "planes": planes,
        "plane_elements": cache[0].numel(),
        "kv_heads": heads,
        "head_dim": dim,
    }
    name = f"{depth} tokens, {sizes.layers} layers, {heads} x {dim}"
    yield Case("commit", name, lambda: run("commit_path", **arguments))


def all_cases(run: Launcher, sizes: Sizes) -> Iterator[Case]:
    yield from linear_cases(run, sizes)
    yield from attention_cases(run, sizes)
    yield from draft_case(run, sizes)
    yield from review_cases(run, sizes)
    yield from commit_case(run, sizes)
