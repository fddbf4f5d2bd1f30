"""The operations on tokens on a GPU: drafting, choosing and accepting (by either rule), what was
next to be chosen, commit.
Their error is the share of rows that are not what the CPU backend (for commit: a copy) makes of
them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from bench import cuda_draft_cases
from bench.cuda_batch import START, batch_of, choosing, ints, shared_arguments
from bench.cuda_rejection_cases import rejection_cases
from bench.cuda_runners_up_cases import runners_up_cases
from bench.op_case import Case, Size, sizes_of
from bench.shapes import vocabulary_of
from cascade_engine.ops import CpuBackend, Sampler
from cascade_engine.ops.device_samplers import DeviceSamplers
from cascade_engine.ops.launch import Launcher

OPS = (*cuda_draft_cases.OPS, "accept", "rejection", "runners_up", "commit")
SAMPLERS: dict[str, dict[str, float]] = {
    "greedy": {"temperature": 0.0},
    "temperature": {"temperature": 0.8},
    "top-p": {"temperature": 0.8, "top_p": 0.9},
}


def accept_cases(
    run: Launcher, host: CpuBackend, shape: str, sizes: Sequence[Size]
) -> Iterator[Case]:
    """Choosing a token from each row of logits, and accepting it. torch: argmax alone."""
    vocab = vocabulary_of(shape)
    for rows, _ in sizes:
        for name, params in SAMPLERS.items():
            yield _accept_case(run, host, vocab, rows, name, Sampler(seed=7, **params))


def _accept_case(
    run: Launcher, host: CpuBackend, vocab: int, rows: int, name: str, sampler: Any
) -> Case:
    batch = batch_of(run, rows, 1, START)
    logits = torch.randn(rows, vocab, device=run.device)
    samplers = DeviceSamplers(run, [sampler.params] * rows, vocab)
    results = torch.zeros(3, rows, dtype=torch.int32, device=run.device)
    shared = shared_arguments(run, batch, rows, 1)
    choose = choosing(logits, samplers, shared)
    accept = {
        "tokens": batch["tokens"],
        "draft_probs": None,
        "lenience": 1.0,
        "paths": None,
        "path_lengths": None,
        "kept_probs": None,
        "kept_stride": 0,
        "samplers": None,
        "num_accepted": results[0],
        "own": results[1],
        "lengths": results[2],
        **shared,
    }

    def ours() -> None:
        run("choose", **choose)
        run("accept", **accept)

    def error() -> float:
        ours()
        on_host, tokens = logits.cpu(), torch.zeros(batch["tokens"].shape, dtype=torch.int32)
        verdicts = host.accept(
            logits=on_host.data_ptr(),
            logits_stride=vocab,
            vocab=vocab,
            tokens=tokens.data_ptr(),
            token_stride=tokens.shape[1],
            probs=0,
            rows=list(range(rows)),
            frontiers=[START + 1] * rows,
            lengths=[START + 1] * rows,
            samplers=[sampler] * rows,
        )
        own = results[1].tolist()
        return sum(own[r] != token for r, (_, token, _) in enumerate(verdicts)) / rows

    theirs = (lambda: logits.argmax(-1)) if name == "greedy" else None
    return Case("accept", rows, 1, 0, ours, theirs, 4 * rows * vocab, 0, error, name)


def commit_cases(
    run: Launcher, shape: str, dtype: torch.dtype, sizes: Sequence[Size]
) -> Iterator[Case]:
    """Paths of `tokens` nodes, of which every other one was drafted beside the path, in all
    layers."""
    hidden, _, layers, heads = sizes_of(shape)
    dim, planes = hidden // heads, 2 * layers
    for rows, depth in sizes:
        path = [2 * i + 1 for i in range(depth)]
        width = path[-1] + 1
        batch = batch_of(run, rows, width, START, [i - 1 for i in range(width)])
        pages = batch["block_tables"].numel()
        cache = torch.randn(planes, pages, heads, 16, dim, device=run.device).to(dtype)
        arguments = {
            "batch": batch,
            "paths": torch.tensor([path] * rows, dtype=torch.int32, device=run.device),
            "path_lengths": ints(run, rows, depth),
            "path_stride": depth,
            "cache": cache,
            "planes": planes,
            "plane_elements": cache[0].numel(),
            "kv_heads": heads,
            "head_dim": dim,
        }

        def error(
            arguments: dict[str, Any] = arguments, path: list[int] = path, depth: int = depth
        ) -> float:
            cache, tables = arguments["cache"], arguments["batch"]["block_tables"].long()

            def places(nodes: Sequence[int]) -> torch.Tensor:
                at = torch.tensor([START + node for node in nodes], device=run.device)
                return cache[:, tables[:, at // 16], :, at % 16].clone()

            before = places(path)
            run("commit_path", **arguments)
            same = places(range(depth)) == before  # [rows, depth, planes, heads, dim]
            return 1 - float(same.flatten(1).all(1).float().mean())

        moved = 2 * planes * rows * depth * heads * dim * dtype.itemsize
        yield Case(
            "commit",
            rows,
            depth,
            0,
            lambda arguments=arguments: run("commit_path", **arguments),
            None,
            moved,
            0,
            error,
        )


def cases_of(
    op: str,
    run: Launcher,
    host: CpuBackend,
    shape: str,
    dtype: torch.dtype,
    sizes: Sequence[Size],
    contexts: Sequence[int],
) -> Iterator[Case]:
    if op == "accept":
        return accept_cases(run, host, shape, sizes)
    if op == "rejection":
        return rejection_cases(run, host, shape, sizes)
    if op == "runners_up":
        return runners_up_cases(run, shape, sizes)
    if op == "commit":
        return commit_cases(run, shape, dtype, sizes)
    return cuda_draft_cases.draft_cases(op, run, host, sizes, contexts)
