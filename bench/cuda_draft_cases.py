"""Drafting on a GPU: Max-Gram and a table over rows that lie there, in a segment as well. The error
is the share of rows that are not what the CPU backend makes of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from bench.cuda_batch import ints
from bench.op_case import Case, Size
from cascade_engine import tables
from cascade_engine.ops import CpuBackend, Sampler
from cascade_engine.ops.device_samplers import DeviceSamplers
from cascade_engine.ops.device_table import device_table
from cascade_engine.ops.launch import Launcher

OPS = ("max_gram", "ngram", "segment")
TABLE = Path(tables.__file__).parent / "prebuilt" / "llama2.safetensors"
DRAFTED, MAX_MATCH = 10, 32
GAINED = 3
"""Tokens that the review in front of a segment's round leaves."""
FREQUENT = 278  # " the"


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
    which takes over a review of the round before. Every other row ends as it began; the others end
    with a token that is nowhere else in them, so that all their drafts are the table's."""
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

    segment = _segment(run, arguments) if op == "segment" else None

    def ours() -> None:
        if segment is not None:
            run("draft_segment", table, **segment)
            return
        run("max_gram", **arguments)
        if table is not None:
            run("ngram_chain", table, **arguments)

    def error() -> float:
        if segment is not None:
            segment["confidences"].fill_(1.0)
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
        if segment is not None:
            told = _told(segment, tokens[:, length - GAINED : length])
            wrong = [a or b for a, b in zip(wrong, told, strict=True)]
        return sum(wrong) / rows

    return Case(op, rows, 1, length, ours, None, 4 * rows * length, 0, error)


def _segment(run: Launcher, drafts: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a second round that makes the same drafts. All but the first of the tokens
    that the review before it left were drafts; the level gave each of them one half."""
    rows, device = drafts["rows"], run.device
    common = ("rows", "slots", "lengths", "tokens", "token_stride", "max_match", "drafted")
    samplers = DeviceSamplers(run, [Sampler().params] * rows, 1).arguments()
    return {
        **{name: drafts[name] for name in common},
        "round": 1,
        "drafts": True,
        "begins": drafts["lengths"] - GAINED,
        "wanted": ints(run, rows, GAINED + DRAFTED + 1),
        "most": ints(run, rows, GAINED + DRAFTED + 1),
        "widths": drafts["counts"],
        "leasts": ints(run, rows, 1),
        "least_confidences": torch.zeros(rows, dtype=torch.float64, device=device),
        "confidences": torch.ones(rows, dtype=torch.float64, device=device),
        "corpora": None,
        "corpus_lengths": None,
        "samplers": samplers["samplers"],
        "stop_ids": samplers["stop_ids"],
        "num_accepted": ints(run, rows, GAINED - 1),
        "own": drafts["tokens"][:, -DRAFTED - 1].contiguous(),
        "kept_probs": torch.full((rows, GAINED), 0.5, device=device),
        "kept_stride": GAINED,
        "capacity": DRAFTED,
        "rounds": torch.zeros(2, 4, rows, dtype=torch.int32, device=device),
        "open": ints(run, rows, 0),
        "gained": torch.zeros(rows, GAINED, dtype=torch.int32, device=device),
        "gained_probs": torch.zeros(rows, GAINED, device=device),
        "gained_stride": GAINED,
    }


def _told(segment: dict[str, Any], gained: torch.Tensor) -> list[bool]:
    """By row, whether what a round tells of the review before it is wrong."""
    kept, own = segment["rounds"][0, 2:].cpu()
    right = (segment["gained"].cpu() == gained).all(1) & (own == gained[:, -1])
    right &= (kept == GAINED - 1) & (segment["open"].cpu() == 1)
    right &= (segment["gained_probs"].cpu() == 0.5).all(1)
    right &= segment["confidences"].cpu() == 0.5**GAINED
    return (~right).tolist()
