"""The launches of one action of the device: drafts by statistics, the pass over them, choice,
acceptance and commit; or passes of a level that drafts on its own, each behind the last one's
token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from cascade_engine.ops.cuda_action_data import Asked, Kind, Memory, Report
from cascade_engine.ops.cuda_batch import MAX_NODES, Shape
from cascade_engine.ops.cuda_program import CudaProgram
from cascade_engine.ops.device_learned import DeviceLearned
from cascade_engine.ops.device_table import NO_TABLE
from cascade_engine.ops.launch import Launcher

TREE_DOUBTS = 3 * 2 * 8
"""Numbers of the native Drafter's doubts that are about trees."""
MAX_MATCH = 32
"""Longest suffix that Max-Gram tells apart."""


class CudaAction:
    """Launches actions for the level whose passes `program` runs. What they look at beside a
    shape's Memory: the table, the weights of trees above the path probability `least`, and what was
    learnt of finished requests."""

    def __init__(
        self,
        launcher: Launcher,
        program: CudaProgram,
        logits: int,
        vocab: int,
        table: dict[str, Any] | None,
        doubts: Sequence[float],
        least: float,
    ) -> None:
        self.program, self.vocab = program, vocab
        device = launcher.device
        self.learned = DeviceLearned(launcher)
        self._run, self._logits, self._least = launcher, logits, least
        self._fills_up = table is not None
        self._table = NO_TABLE if table is None else table
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
        asked, report = Asked.of(memory.asked), Report.of(memory.report, kind.shape.rows)
        rows = {
            "rows": kind.shape.rows,
            "slots": asked.slots,
            "lengths": asked.lengths,
            "tokens": self.program.on_device.tokens,
            "token_stride": self.program.on_device.tokens.shape[1],
        }
        if kind.alone:
            self._launch_passes(kind, memory, asked, report, rows)
        else:
            self._launch_review(kind, memory, asked, report, rows)

    def _launch_review(
        self, kind: Kind, memory: Memory, asked: Asked, report: Report, rows: dict[str, Any]
    ) -> None:
        """Drafts behind each row, and the review of what the row has from its frontier on."""
        (self._draft_trees if kind.trees else self._draft_chains)(kind, memory, asked, report, rows)
        batch = self._pass(
            kind.shape,
            memory,
            **rows,
            cached=asked.cached,
            frontiers=asked.frontiers,
            ends=None,
            drafted=report.numbers[4],
            parents=report.lists[1] if kind.trees else None,
            nodes=report.lists[2],
        )
        paths = report.lists[0] if kind.trees else None
        self._decide(
            kind,
            memory,
            batch,
            num_accepted=report.numbers[0],
            own=report.numbers[1],
            lengths=report.numbers[2],
            paths=paths,
            path_lengths=report.numbers[3] if kind.trees else None,
            kept_probs=report.kept_probs,
        )
        if paths is not None:
            self.program.launch_commit(batch, paths, report.numbers[3], MAX_NODES)

    def _launch_passes(
        self, kind: Kind, memory: Memory, asked: Asked, report: Report, rows: dict[str, Any]
    ) -> None:
        """Each row's next tokens, one a pass, until it is as long as was asked for."""
        own = report.lists[0].view(-1)
        for i in range(kind.alone):
            first = i == 0
            shape = kind.shape if first else Shape(kind.shape.rows, 1, 1)
            batch = self._pass(
                shape,
                memory,
                **{**rows, "lengths": asked.lengths if first else report.numbers[2]},
                cached=asked.cached if first else None,
                frontiers=None,
                ends=asked.ends,
                drafted=None,
                parents=None,
                nodes=None,
            )
            self._decide(
                kind,
                memory,
                batch,
                i,
                num_accepted=report.numbers[0],
                own=own[i * shape.rows :],
                lengths=report.numbers[2],
                paths=None,
                path_lengths=None,
                kept_probs=report.kept_probs[:, i:],
            )

    def _pass(self, shape: Shape, memory: Memory, **drafted: Any) -> dict[str, Any]:
        """The pass over the batch that `drafted_batch` makes of these arguments."""
        starts, fed, bases, wanted = memory.batch
        self._run(
            "drafted_batch",
            width=shape.width,
            starts=starts,
            counts=fed,
            bases=bases,
            wanted=wanted,
            ancestors=memory.words,
            **drafted,
        )
        batch = self.program.batch_of(shape, drafted["slots"], starts, fed, bases, memory.words)
        self.program.launch(shape, batch, wanted, memory.asked[-1])
        return batch

    def _draft_trees(
        self, kind: Kind, memory: Memory, asked: Asked, report: Report, rows: dict[str, Any]
    ) -> None:
        self._run(
            "draft_tree",
            self._table,
            **rows,
            searched=asked.lengths,
            budgets=asked.counts,
            depths=asked.depths,
            least=self._least,
            doubts=self._doubts,
            **self.learned.arguments(),
            finished_length=asked.learned,
            predictions=asked.addresses if kind.predicts else None,
            prediction_lengths=asked.predicted if kind.predicts else None,
            parents=report.lists[1],
            probs=report.path_probs,
            drafted=report.numbers[4],
        )

    def _draft_chains(
        self, kind: Kind, memory: Memory, asked: Asked, report: Report, rows: dict[str, Any]
    ) -> None:
        arguments = {
            **rows,
            "counts": asked.counts,
            "draft_probs": None,
            "max_match": MAX_MATCH,
            "corpora": asked.addresses if kind.predicts else None,
            "corpus_lengths": asked.predicted if kind.predicts else None,
            "matches": memory.matches,
            "drafted": report.numbers[4],
        }
        self._run("max_gram", **arguments)
        if self._fills_up:
            self._run("ngram_chain", self._table, **arguments)

    def _decide(
        self, kind: Kind, memory: Memory, batch: dict[str, Any], number: int = 0, **outcome: Any
    ) -> None:
        """Choice and acceptance over the logits of the last pass, `number` of the action's."""
        program = self.program
        shared = {
            "batch": batch,
            "wanted": memory.batch[3],
            "logit_width": program.shape.logits,
            "best": memory.best,
            "probs": memory.choice_probs if kind.probs else None,
        }
        chosen = {
            "logits": program.data(self._logits),
            "logits_stride": program.cols(self._logits),
            "vocab": self.vocab,
            "allowed": None,
            "edits": kind.edits,
            "filters": kind.filters or kind.probs,
            "processed": self._scratch["processed"] if kind.edits else None,
            "seen": self._scratch["seen"] if kind.edits else None,
            "distributions": memory.rejection.distributions if kind.rejects else None,
            **memory.samplers,
            **shared,
        }
        accepted = {
            "tokens": program.on_device.tokens,
            "draft_probs": None,
            "lenience": kind.lenience,
            "kept_stride": MAX_NODES + 1,
            "samplers": memory.samplers["samplers"],
            **outcome,
            **shared,
        }
        self._run("choose", **chosen)
        self._run("accept", **accepted)
        if kind.rejects:
            self._run("rejection", chosen, accepted, **memory.rejection.arguments(number))
