"""The launches of a segment's rounds: what was reviewed is taken over, statistics draft, the level
passes, chooses and accepts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from cascade_engine.ops.cuda_action import MAX_MATCH, CudaAction
from cascade_engine.ops.cuda_action_data import Kind, Memory
from cascade_engine.ops.cuda_batch import MAX_NODES, Shape, bucket
from cascade_engine.ops.launch import Launcher

MAX_ROUNDS = 8
"""Of one action."""


@dataclass(frozen=True)
class SegmentKind(Kind):
    """Drafts and their review, `rounds` times."""

    rounds: int = 1
    capacity: int = 0
    """Drafts of a row under one review."""


class Told(NamedTuple):
    """What goes up: views of int32 `[TOLD, rows]`. The first three change there."""

    slots: torch.Tensor
    lengths: torch.Tensor
    confidences: torch.Tensor
    """float64, as `least_confidences`."""
    least_confidences: torch.Tensor
    addresses: torch.Tensor
    """int64, of predictions."""
    cached: torch.Tensor
    begins: torch.Tensor
    wanted: torch.Tensor
    most: torch.Tensor
    widths: torch.Tensor
    leasts: torch.Tensor
    predicted: torch.Tensor
    sources: torch.Tensor

    @classmethod
    def of(cls, memory: torch.Tensor) -> Told:
        sure, least, addresses = (memory[i : i + 2].view(-1) for i in (2, 4, 6))
        doubles = sure.view(torch.float64), least.view(torch.float64)
        return cls(memory[0], memory[1], *doubles, addresses.view(torch.int64), *memory[8:])


TOLD = len(Told._fields) + 3


class Heard(NamedTuple):
    """What comes back: views of a report."""

    rounds: torch.Tensor
    """`[MAX_ROUNDS, 4, rows]`: drafts under review, times that the statistics were asked for them,
    drafts kept (-1: the row was not under review), the own token or why there is none."""
    open: torch.Tensor
    """`[rows]`: whether it wants more."""
    gained: torch.Tensor
    """`[rows, tokens]`, and float32 their probabilities."""
    probs: torch.Tensor

    @staticmethod
    def gains(shape: Shape) -> int:
        """Tokens that a row can get."""
        return MAX_ROUNDS * shape.logits

    @classmethod
    def of(cls, memory: torch.Tensor, shape: Shape) -> Heard:
        rows, gains = shape.rows, cls.gains(shape)
        sizes = (4 * MAX_ROUNDS * rows, rows, gains * rows, gains * rows)
        rounds, wanting, gained, probs = memory.split(sizes)
        probs = probs.view(torch.float32).view(rows, gains)
        return cls(rounds.view(MAX_ROUNDS, 4, rows), wanting, gained.view(rows, gains), probs)


class SegmentMemory(Memory):
    def __init__(self, run: Launcher, shape: Shape) -> None:
        rows, device = shape.rows, run.device
        super().__init__(run, shape, TOLD, 4 * MAX_ROUNDS + 1 + 2 * Heard.gains(shape))
        self.drafted = torch.zeros(rows, dtype=torch.int32, device=device)
        self.nodes = torch.zeros(rows, MAX_NODES, dtype=torch.int32, device=device)
        self.decided = torch.zeros(2, rows, dtype=torch.int32, device=device)
        self.kept_probs = torch.zeros(rows, MAX_NODES + 1, device=device)


class SegmentAction(CudaAction):
    """The launches of some rounds."""

    def launch(self, kind: Kind, memory: Memory) -> None:
        assert isinstance(kind, SegmentKind)
        assert isinstance(memory, SegmentMemory)
        rows = kind.shape.rows
        told, heard = Told.of(memory.asked), Heard.of(memory.report, kind.shape)
        shapes = [kind.shape, Shape(rows, bucket(kind.capacity + 1), kind.shape.logits)]
        on_device = self.program.on_device
        place = {
            "rows": rows,
            "slots": told.slots,
            "lengths": told.lengths,
            "tokens": on_device.tokens,
            "token_stride": on_device.tokens.shape[1],
        }
        for number in range(kind.rounds):
            self._draft_round(kind, memory, told, heard, number, place)
            batch = self._pass(
                shapes[min(number, 1)],
                memory,
                **place,
                cached=None if number else told.cached,
                frontiers=None,
                ends=None,
                drafted=memory.drafted,
                parents=None,
                nodes=memory.nodes,
            )
            self._decide(
                kind,
                memory,
                batch,
                num_accepted=memory.decided[0],
                own=memory.decided[1],
                lengths=told.lengths,
                paths=None,
                path_lengths=None,
                kept_probs=memory.kept_probs,
            )
        self._draft_round(kind, memory, told, heard, kind.rounds, place)

    def _draft_round(
        self,
        kind: SegmentKind,
        memory: SegmentMemory,
        told: Told,
        heard: Heard,
        number: int,
        place: dict[str, Any],
    ) -> None:
        """Takes over the review before, and drafts for the next one where there is one."""
        self._run(
            "draft_segment",
            self._table,
            **place,
            round=number,
            drafts=number < kind.rounds,
            begins=told.begins,
            wanted=told.wanted,
            most=told.most,
            widths=told.widths,
            leasts=told.leasts,
            least_confidences=told.least_confidences,
            confidences=told.confidences,
            max_match=MAX_MATCH,
            corpora=told.addresses if kind.predicts else None,
            corpus_lengths=told.predicted if kind.predicts else None,
            samplers=memory.samplers["samplers"],
            stop_ids=memory.samplers["stop_ids"],
            num_accepted=memory.decided[0],
            own=memory.decided[1],
            kept_probs=memory.kept_probs,
            kept_stride=memory.kept_probs.shape[1],
            capacity=kind.capacity,
            drafted=memory.drafted,
            rounds=heard.rounds,
            open=heard.open,
            gained=heard.gained,
            gained_probs=heard.probs,
            gained_stride=heard.gained.shape[1],
        )
