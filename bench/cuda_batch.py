"""Batches that operations on a GPU are measured with, and which kernels those have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from cascade_engine.gpu_kernels import ALTERNATIVES, NATIVE, TRITON, triton_version
from cascade_engine.ops.cuda_batch import NO_TREE, PAGE_TOKENS, ancestor_words
from cascade_engine.ops.device_samplers import DeviceSamplers
from cascade_engine.ops.launch import Launcher

START = 20
"""Position of the first token that rows feed, where it does not matter."""


def ints(run: Launcher, rows: int, value: int) -> torch.Tensor:
    return torch.full((rows,), value, dtype=torch.int32, device=run.device)


def batch_of(
    run: Launcher, rows: int, width: int, start: int, parents: Sequence[int] | None = None
) -> dict[str, Any]:
    """`rows` rows that feed `width` tokens at positions start.. ; with `parents` these are nodes of
    a tree. Pages lie in random order."""
    blocks = -(-(start + width) // PAGE_TOKENS)
    words = torch.zeros(rows, width, dtype=torch.int64)
    if parents is not None:
        words[:] = ancestor_words(parents)
    pages = torch.randperm(rows * blocks, dtype=torch.int32).view(rows, blocks)
    return {
        "rows": rows,
        "width": width,
        "slots": torch.arange(rows, dtype=torch.int32, device=run.device),
        "starts": ints(run, rows, start),
        "counts": ints(run, rows, width),
        "bases": ints(run, rows, NO_TREE if parents is None else start),
        "ancestors": words.to(run.device),
        "tokens": torch.zeros(rows, start + width + 64, dtype=torch.int32, device=run.device),
        "token_stride": start + width + 64,
        "block_tables": pages.to(run.device),
        "table_stride": blocks,
    }


def shared_arguments(run: Launcher, batch: dict[str, Any], rows: int, width: int) -> dict[str, Any]:
    """What `choose` and `accept` both take, of rows without trees that want all their logits."""
    return {
        "batch": {**batch, "bases": None, "ancestors": None},
        "wanted": ints(run, rows, width),
        "logit_width": width,
        "best": torch.zeros(rows * width, dtype=torch.int64, device=run.device),
        "probs": None,
    }


def choosing(
    logits: torch.Tensor,
    samplers: DeviceSamplers,
    shared: dict[str, Any],
    distributions: torch.Tensor | None = None,
) -> dict[str, Any]:
    """The arguments of `choose`; it leaves `distributions` where they are asked for."""
    vocab = logits.shape[-1]
    return {
        "logits": logits,
        "logits_stride": vocab,
        "vocab": vocab,
        "allowed": None,
        "edits": False,
        "filters": samplers.filters if distributions is None else True,
        "processed": None,
        "seen": None,
        "distributions": distributions,
        **samplers.arguments(),
        **shared,
    }


def served_by(run: Launcher, op: str) -> tuple[str, ...]:
    """The kernels that an operation has here."""
    other = op in ALTERNATIVES and run.device.type == "cuda" and triton_version() is not None
    return (NATIVE, TRITON) if other else (NATIVE,)


def said(served: str) -> str:
    """What of a case's name tells kernels apart."""
    return "" if served == NATIVE else f" {served}"
