"""The rejection rule for reviews on a device: judged on the host, over a copy of the logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from cascade_engine import _C
from cascade_engine.ops.cuda_program import CudaProgram

PER_ROW = ("rows", "frontiers", "lengths", "samplers", "allowed", "trees", "rejections")
"""Arguments of `_C.accept` with an entry for each row, or empty."""


def logits_of(
    program: CudaProgram, logits: int, chosen: Sequence[int] | None = None
) -> torch.Tensor:
    """float32 `[logit rows, cols]` on the host: what lies at device address `logits`, of all rows
    of the last pass or of the chosen ones."""
    buffer = next(i for i in range(len(program.buffers)) if program.data(i) == logits)
    return program.read(buffer, chosen).contiguous()


def accept_on_host(
    context: Any, program: CudaProgram, chosen: Sequence[int], given: dict[str, Any]
) -> list[tuple[int, int, list[int]]]:
    """`_C.accept` for rows `chosen` of a review with its arguments `given`, whose logits are the
    device's. Reads and writes the host's token rows, as every review does."""
    copy = logits_of(program, given["logits"], chosen)
    parts = {name: [given[name][i] for i in chosen] if given.get(name) else [] for name in PER_ROW}
    shared = {"logits": copy.data_ptr(), "logits_stride": copy.shape[1], "logit_rows": len(copy)}
    return _C.accept(context, **{**given, **parts, **shared})
