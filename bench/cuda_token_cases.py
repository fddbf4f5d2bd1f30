"""The operations on tokens on a GPU: drafting, choosing and accepting (by either rule), what was
next to be chosen, commit.
Their error is the share of rows that are not what the CPU backend (for commit: a copy) makes of
them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from bench.cuda_batch import batch_of
from bench.cuda_rejection_cases import ints, rejection_cases
from bench.cuda_runners_up_cases import runners_up_cases
from bench.op_case import Case, Size, sizes_of
from bench.shapes import vocabulary_of
from cascade_engine import tables
from cascade_engine.ops import CpuBackend, Sampler
from cascade_engine.ops.device_samplers import DeviceSamplers
from cascade_engine.ops.device_table import device_table
from cascade_engine.ops.launch import Launcher

OPS = ("max_gram", "ngram", "segment", "accept", "rejection", "runners_up", "commit")
TABLE = Path(tables.__file__).parent / "prebuilt" / "llama2.safetensors"
DRAFTED, MAX_MATCH, START = 10, 32, 20
FREQUENT = 278  # " the"
SAMPLERS: dict[str, dict[str, float]] = {
    "greedy": {"temperature": 0.0},
    "temperature": {"temperature": 0.8},
    "top-p": {"temperature": 0.8, "top_p": 0.9},
}


@lru_cache(maxsize=1)
def host_table(path: Path) -> Any:
    """The same table for the CPU backend."""
    info = tables.read_info(path)
    tokenizer = SimpleNamespace(fingerprint=lambda: info.fingerprint)
    return tables.load_table(path, tokenizer, info.vocab_size)


def draft_cases(
    op: str, run: Launcher, host: CpuBackend, sizes: Sequence[Size], contexts: Sequence[int]
) -> Iterator[Case]:
    """Max-Gram over the rows' own tokens; `ngram` fills up from the table, and so does `segment`,
    the first round of a segment. Every other row ends as it began; the others end with a token that
    is nowhere else in them, so that all their drafts are the table's."""
    table = None if op == "max_gram" else device_table(host_table(TABLE), run.device)
    vocab = tables.read_info(TABLE).vocab_size
    for length in contexts:
        for rows, _ in sizes:
            tokens = torch.randint(FREQUENT + 1, vocab, (rows, length + DRAFTED), dtype=torch.int32)
            tokens[::2, length - 1] = FREQUENT
            tokens[1::2, length - 1] = tokens[1::2, 0]
            yield _draft_case(op, run, host, tokens, table)


def _draft_case(
    op: str, run: Launcher, host: CpuBackend, tokens: torch.Tensor, table: dict[str, Any] | None
) -> Case:
    rows, stride = tokens.shape
    length, on_device = stride - DRAFTED, tokens.clone().to(run.device)
    drafted = ints(run, rows, 0)
    arguments = {
        "rows": rows,
        "slots": torch.arange(rows, dtype=torch.int32, device=run.device),
        "lengths": ints(run, rows, length),
        "counts": ints(run, rows, DRAFTED),
        "tokens": on_device,
        "draft_probs": None,
        "token_stride": stride,
        "max_match": MAX_MATCH,
        "corpora": None,
        "corpus_lengths": None,
        "matches": torch.zeros(rows, 2, dtype=torch.int64, device=run.device),
        "drafted": drafted,
    }

    segment = _segment(run, arguments) if op == "segment" else {}

    def ours() -> None:
        if segment:
            run("draft_segment", table, **segment)
            return
        run("max_gram", **arguments)
        if table is not None:
            run("ngram_chain", table, **arguments)

    def error() -> float:
        ours()
        counts = host.propose(
            tokens=tokens.data_ptr(),
            token_stride=stride,
            probs=0,
            rows=list(range(rows)),
            lengths=[length] * rows,
            counts=[DRAFTED] * rows,
            max_match=MAX_MATCH,
            table=None if table is None else host_table(TABLE),
        )
        found, number = on_device.cpu(), drafted.tolist()
        wrong = [
            number[r] != n or not torch.equal(found[r, : length + n], tokens[r, : length + n])
            for r, n in enumerate(counts)
        ]
        return sum(wrong) / rows

    return Case(op, rows, 1, length, ours, None, 4 * rows * length, 0, error)


def _segment(run: Launcher, drafts: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a first round that makes the same drafts: there is no review before it."""
    rows = drafts["rows"]
    common = ("rows", "slots", "lengths", "tokens", "token_stride", "max_match", "drafted")
    samplers = DeviceSamplers(run, [Sampler().params] * rows, 1).arguments()
    return {
        **{name: drafts[name] for name in common},
        "round": 0,
        "drafts": True,
        "begins": drafts["lengths"],
        "wanted": ints(run, rows, DRAFTED + 1),
        "most": ints(run, rows, DRAFTED + 1),
        "widths": drafts["counts"],
        "leasts": ints(run, rows, 1),
        "least_confidences": torch.zeros(rows, dtype=torch.float64, device=run.device),
        "confidences": torch.ones(rows, dtype=torch.float64, device=run.device),
        "corpora": None,
        "corpus_lengths": None,
        "samplers": samplers["samplers"],
        "stop_ids": samplers["stop_ids"],
        "capacity": DRAFTED,
        "rounds": torch.zeros(1, 4, rows, dtype=torch.int32, device=run.device),
        "open": ints(run, rows, 0),
        "kept_stride": 0,
        "gained_stride": 0,
        **dict.fromkeys(("num_accepted", "own", "kept_probs", "gained", "gained_probs")),
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
    shared = {
        "batch": {**batch, "bases": None, "ancestors": None},
        "wanted": ints(run, rows, 1),
        "logit_width": 1,
        "best": torch.zeros(rows, dtype=torch.int64, device=run.device),
        "probs": None,
    }
    choose = {
        "logits": logits,
        "logits_stride": vocab,
        "vocab": vocab,
        "allowed": None,
        "edits": False,
        "filters": samplers.filters,
        "processed": None,
        "seen": None,
        "distributions": None,
        **samplers.arguments(),
        **shared,
    }
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
    return draft_cases(op, run, host, sizes, contexts)
