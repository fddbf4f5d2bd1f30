"""The launches of one action of the device: drafts by statistics, the pass over them, choice,
acceptance and commit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from cascade_engine._C import NgramTable
from cascade_engine.ops.cuda_program import MAX_NODES, CudaProgram, Shape
from cascade_engine.ops.device_table import device_table
from cascade_engine.ops.launch import Launcher

TREE_DOUBTS = 3 * 2 * 8
"""Numbers of the native Drafter's doubts that are about trees."""
MAX_MATCH = 32
"""Longest suffix that Max-Gram tells apart."""


@dataclass(frozen=True)
class Kind:
    """What one graph is for."""

    shape: Shape
    trees: bool
    edits: bool
    filters: bool
    predicts: bool


class Memory:
    """Of one shape, at addresses that stay."""

    def __init__(self, run: Launcher, shape: Shape) -> None:
        rows, device = shape.rows, run.device
        self.asked_host = run.staging(8, rows, dtype=torch.int32)
        """Two rows of addresses of predictions, then slots, lengths, counts, depths, lengths of
        predictions, and the number of tokens learnt."""
        self.asked = torch.zeros(8, rows, dtype=torch.int32, device=device)
        size = (5 + 3 * MAX_NODES) * rows
        self.report_host = run.staging(size, dtype=torch.int32)
        self.report = torch.zeros(size, dtype=torch.int32, device=device)
        self.batch = torch.zeros(4, rows, dtype=torch.int32, device=device)
        self.words = torch.zeros(rows, shape.width, dtype=torch.int64, device=device)
        self.matches = torch.zeros(rows, 2, dtype=torch.int64, device=device)
        self.best = torch.zeros(rows * shape.logits, dtype=torch.int64, device=device)
        self.probs = torch.zeros(rows, MAX_NODES, device=device)
        self.samplers: dict[str, torch.Tensor] = {}
        self.sampled: list[Any] = []
        self.edits = self.filters = False

    def parts(self, report: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """`[5, rows]`: accepted, own, lengths, path lengths, drafted; `[3, rows, nodes]`: paths,
        parents, tokens."""
        rows = self.asked.shape[1]
        return report[: 5 * rows].view(5, rows), report[5 * rows :].view(3, rows, MAX_NODES)


class CudaAction:
    """Launches actions for the level whose passes `program` runs. What they look at beside a
    shape's Memory: the table, the weights of trees above the path probability `least`, and the
    first tokens of `learned`, as many as Memory says."""

    def __init__(
        self,
        launcher: Launcher,
        program: CudaProgram,
        logits: int,
        vocab: int,
        table: NgramTable | None,
        doubts: Sequence[float],
        least: float,
        learned: int,
    ) -> None:
        self.program, self.vocab = program, vocab
        device = launcher.device
        self.learned = torch.zeros(max(learned, 1), dtype=torch.int32, device=device)
        self._run, self._logits, self._least = launcher, logits, least
        self._fills_up = table is not None
        self._table = device_table(table, device)
        self._doubts = torch.tensor(doubts[:TREE_DOUBTS], dtype=torch.float32, device=device)
        self._scratch: dict[str, torch.Tensor] = {}

    def reserve(self, kind: Kind) -> bool:
        """Scratch memory for penalties, where somebody has any; True where it has moved."""
        size = kind.shape.rows * kind.shape.logits * self.vocab if kind.edits else 0
        if size == 0 or ("seen" in self._scratch and self._scratch["seen"].numel() >= size):
            return False
        device = self._run.device
        self._scratch["processed"] = torch.zeros(size, device=device)
        self._scratch["seen"] = torch.zeros(size, dtype=torch.int32, device=device)
        return True

    def launch(self, kind: Kind, memory: Memory) -> None:
        shape, program = kind.shape, self.program
        slots, lengths = memory.asked[2:4]
        numbers, lists = memory.parts(memory.report)
        rows = {
            "rows": shape.rows,
            "slots": slots,
            "lengths": lengths,
            "tokens": program.tokens,
            "token_stride": program.tokens.shape[1],
        }
        (self._draft_trees if kind.trees else self._draft_chains)(kind, memory, rows)
        starts, fed, bases, wanted = memory.batch
        self._run(
            "drafted_batch",
            **rows,
            width=shape.width,
            drafted=numbers[4],
            parents=lists[1] if kind.trees else None,
            starts=starts,
            counts=fed,
            bases=bases,
            wanted=wanted,
            ancestors=memory.words,
            nodes=lists[2],
        )
        batch = {
            "rows": shape.rows,
            "width": shape.width,
            "slots": slots,
            "starts": starts,
            "counts": fed,
            "bases": bases,
            "ancestors": memory.words,
            "tokens": program.tokens,
            "token_stride": program.tokens.shape[1],
            "block_tables": program.tables,
            "table_stride": program.tables.shape[1],
        }
        program.launch(shape, batch, wanted)
        self._launch_review(kind, memory, batch, wanted)

    def _draft_trees(self, kind: Kind, memory: Memory, rows: dict[str, Any]) -> None:
        counts, depths, predicted, learned = memory.asked[4:]
        numbers, lists = memory.parts(memory.report)
        self._run(
            "draft_tree",
            self._table,
            **rows,
            searched=rows["lengths"],
            budgets=counts,
            depths=depths,
            least=self._least,
            doubts=self._doubts,
            finished=self.learned,
            finished_length=learned,
            predictions=memory.asked if kind.predicts else None,
            prediction_lengths=predicted if kind.predicts else None,
            parents=lists[1],
            probs=memory.probs,
            drafted=numbers[4],
        )

    def _draft_chains(self, kind: Kind, memory: Memory, rows: dict[str, Any]) -> None:
        arguments = {
            **rows,
            "counts": memory.asked[4],
            "draft_probs": None,
            "max_match": MAX_MATCH,
            "corpora": memory.asked if kind.predicts else None,
            "corpus_lengths": memory.asked[6] if kind.predicts else None,
            "matches": memory.matches,
            "drafted": memory.parts(memory.report)[0][4],
        }
        self._run("max_gram", **arguments)
        if self._fills_up:
            self._run("ngram_chain", self._table, **arguments)

    def _launch_review(
        self, kind: Kind, memory: Memory, batch: dict[str, Any], wanted: torch.Tensor
    ) -> None:
        program = self.program
        numbers, lists = memory.parts(memory.report)
        shared = {
            "batch": batch,
            "wanted": wanted,
            "logit_width": kind.shape.logits,
            "best": memory.best,
            "probs": None,
        }
        self._run(
            "choose",
            logits=program.data(self._logits),
            logits_stride=program.cols(self._logits),
            vocab=self.vocab,
            allowed=None,
            edits=kind.edits,
            filters=kind.filters,
            processed=self._scratch["processed"] if kind.edits else None,
            seen=self._scratch["seen"] if kind.edits else None,
            **memory.samplers,
            **shared,
        )
        self._run(
            "accept",
            tokens=program.tokens,
            draft_probs=None,
            lenience=1.0,
            num_accepted=numbers[0],
            own=numbers[1],
            lengths=numbers[2],
            paths=lists[0] if kind.trees else None,
            path_lengths=numbers[3] if kind.trees else None,
            **shared,
        )
        if kind.trees:
            program.launch_commit(batch, lists[0], numbers[3], MAX_NODES)
