"""What goes up to the device for an action, what stays there, and what comes back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from cascade_engine.ops.cuda_batch import MAX_NODES, Shape
from cascade_engine.ops.cuda_rejection import RejectionMemory
from cascade_engine.ops.launch import Launcher

MAX_ALONE = 16
"""Passes of a level on its own in one action."""


@dataclass(frozen=True)
class Kind:
    """What one graph is for."""

    shape: Shape
    trees: bool = False
    edits: bool = False
    filters: bool = False
    rejects: bool = False
    predicts: bool = False
    probs: bool = False
    """Of the tokens that rows gain."""
    lenience: float = 1.0
    alone: int = 0
    """Passes of the level on its own; 0: it reviews what the statistics draft."""


class Report(NamedTuple):
    """What comes back, on the device or the host."""

    numbers: torch.Tensor
    """`[5, rows]`: accepted, own, lengths, path lengths, drafted."""
    lists: torch.Tensor
    """`[3, rows, nodes]`: paths (of a level on its own: `[passes, rows]`, the tokens), parents,
    tokens drafted."""
    kept_probs: torch.Tensor
    """float32 `[rows, nodes + 1]`: of accepted tokens, then of the own one."""
    path_probs: torch.Tensor
    """float32 `[rows, nodes]`: of a tree's nodes, each with those above it."""

    @classmethod
    def of(cls, memory: torch.Tensor, rows: int) -> Report:
        sizes = (5 * rows, 3 * MAX_NODES * rows, (MAX_NODES + 1) * rows, MAX_NODES * rows)
        numbers, lists, *probs = memory.split(sizes)
        kept, paths = (part.view(torch.float32).view(rows, -1) for part in probs)
        return cls(numbers.view(5, rows), lists.view(3, rows, MAX_NODES), kept, paths)


class Asked(NamedTuple):
    """What goes up, int32: two rows of addresses of predictions, then one each."""

    addresses: torch.Tensor
    slots: torch.Tensor
    lengths: torch.Tensor
    counts: torch.Tensor
    depths: torch.Tensor
    predicted: torch.Tensor
    learned: torch.Tensor
    cached: torch.Tensor
    frontiers: torch.Tensor
    ends: torch.Tensor
    sources: torch.Tensor

    @classmethod
    def of(cls, memory: torch.Tensor) -> Asked:
        return cls(memory[:2], *memory[2:])


ASKED = len(Asked._fields) + 1


class Memory:
    """Of one shape, at addresses that stay: `asked` int32 `[asked, rows]` goes up, the sources
    last; `report` int32 `[report * rows]` comes back."""

    def __init__(
        self,
        run: Launcher,
        shape: Shape,
        asked: int = ASKED,
        report: int = 5 + 3 * MAX_NODES + MAX_NODES + 1 + MAX_NODES,
    ) -> None:
        rows, device = shape.rows, run.device
        self.asked_host = run.staging(asked, rows, dtype=torch.int32)
        self.asked = torch.zeros(asked, rows, dtype=torch.int32, device=device)
        self.report_host = run.staging(report * rows, dtype=torch.int32)
        self.report = torch.zeros(report * rows, dtype=torch.int32, device=device)
        self.batch = torch.zeros(4, rows, dtype=torch.int32, device=device)
        self.words = torch.zeros(rows, shape.width, dtype=torch.int64, device=device)
        self.matches = torch.zeros(rows, 2, dtype=torch.int64, device=device)
        self.best = torch.zeros(rows * shape.logits, dtype=torch.int64, device=device)
        self.choice_probs = torch.zeros(rows * shape.logits, 2, device=device)
        self.samplers: dict[str, torch.Tensor] = {}
        self.sampled: list[Any] = []
        self.edits = self.filters = self.rejects = False
        passes = MAX_ALONE if shape.logits == 1 else 1
        self.rejection = RejectionMemory(run, rows, shape.logits, passes)
