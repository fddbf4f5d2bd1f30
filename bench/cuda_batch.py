"""Batches that operations on a GPU are measured with, and which kernels those have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from cascade_engine.gpu_kernels import ALTERNATIVES, NATIVE, TRITON, triton_version
from cascade_engine.ops.cuda_program import NO_TREE, PAGE_TOKENS, ancestor_words
from cascade_engine.ops.launch import Launcher


def batch_of(
    run: Launcher, rows: int, width: int, start: int, parents: Sequence[int] | None = None
) -> dict[str, Any]:
    """`rows` rows that feed `width` tokens at positions start.. ; with `parents` these are nodes of
    a tree. Pages lie in random order."""
    blocks = -(-(start + width) // PAGE_TOKENS)

    def ints(value: int) -> torch.Tensor:
        return torch.full((rows,), value, dtype=torch.int32, device=run.device)

    words = torch.zeros(rows, width, dtype=torch.int64)
    if parents is not None:
        words[:] = ancestor_words(parents)
    pages = torch.randperm(rows * blocks, dtype=torch.int32).view(rows, blocks)
    return {
        "rows": rows,
        "width": width,
        "slots": torch.arange(rows, dtype=torch.int32, device=run.device),
        "starts": ints(start),
        "counts": ints(width),
        "bases": ints(NO_TREE if parents is None else start),
        "ancestors": words.to(run.device),
        "tokens": torch.zeros(rows, start + width + 64, dtype=torch.int32, device=run.device),
        "token_stride": start + width + 64,
        "block_tables": pages.to(run.device),
        "table_stride": blocks,
    }


def served_by(run: Launcher, op: str) -> tuple[str, ...]:
    """The kernels that an operation has here."""
    other = op in ALTERNATIVES and run.device.type == "cuda" and triton_version() is not None
    return (NATIVE, TRITON) if other else (NATIVE,)


def said(served: str) -> str:
    """What of a case's name tells kernels apart."""
    return "" if served == NATIVE else f" {served}"
