"""Drafts by statistics, their review, acceptance and commit as one action of the device, with one
wait for it; or the tokens that a level drafts on its own. One CUDA graph for each number of rows
and drafts, rounded up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from cascade_engine.ops.cuda_action import CudaAction
from cascade_engine.ops.cuda_action_data import ASKED, MAX_ALONE, Asked, Kind, Memory, Report
from cascade_engine.ops.cuda_batch import PAGE_TOKENS, Shape, bucket, logit_bucket
from cascade_engine.ops.cuda_program import CudaProgram
from cascade_engine.ops.cuda_rejection import RowRejection
from cascade_engine.ops.cuda_review_data import REASONS
from cascade_engine.ops.device_actions import DeviceActions, halves
from cascade_engine.ops.launch import Launcher

NOBODY = [0, 0, -1, *[0] * (ASKED - 3)]


@dataclass(frozen=True, slots=True)
class Ask:
    """Up to `count` drafts behind the `length` tokens of a row, of which `cached` are cached and
    those from the frontier on are reviewed as well; with trees (of rows all of whose tokens are
    reviewed) `count` nodes, at most `depth` deep."""

    row: int
    length: int
    count: int
    depth: int
    sampler: Any
    cached: int
    frontier: int
    prediction: torch.Tensor | None = None
    rejection: RowRejection | None = None
    brings_logits: bool = False
    """What the row is reviewed by comes back as well."""


class Reviewed(NamedTuple):
    """The drafts (parents: of a tree), the tokens from the frontier on that were accepted with the
    level's own behind them, their probabilities where they are asked for and, of a tree, the nodes
    accepted and what the statistics give each drafted path. Where they are asked for, the logits:
    float32 `[places, columns]`, behind the token before the frontier first, then behind each under
    review; they are there until the next action."""

    tokens: list[int]
    parents: list[int]
    gained: list[int]
    path: list[int]
    probs: list[float]
    path_probs: list[float]
    logits: torch.Tensor | None = None


class Drafted(NamedTuple):
    """What a level drafted on its own for a row."""

    tokens: list[int]
    probs: list[float]


class CudaSpeculation(DeviceActions):
    """Drafts from `table` (or Max-Gram alone) for the level whose passes `program` runs, or of that
    level on its own.

    Rows stay on the device: what is there is never sent again. `doubts` as those of the native
    Drafter. Nodes of trees are drafted above the path probability `least`.
    """

    def __init__(
        self,
        launcher: Launcher,
        program: CudaProgram,
        logits: int,
        vocab: int,
        table: dict[str, Any] | None = None,
        doubts: Sequence[float] = (),
        least: float = 0.0,
        graphs: bool = True,
    ) -> None:
        action = CudaAction(launcher, program, logits, vocab, table, doubts, least)
        super().__init__(launcher, program, action, graphs)
        self._logits = logits
        self._staged = torch.empty(0, program.cols(logits))

    def learn(self, version: int, text: Callable[[], bytes]) -> None:
        """The tokens of finished requests, taken where `version` has changed."""
        moved = self._action.learned.learn(version, text)
        if moved and self._graphs is not None:
            self._graphs.clear()

    def run(
        self, asks: Sequence[Ask], trees: bool, lenience: float = 1.0, probs: bool = False
    ) -> list[Reviewed]:
        """Drafts, reviews and commits for rows whose pages reach over the drafts. Afterwards all is
        cached up to the last token accepted. Raises ValueError when a row's logits allow no
        token."""
        width = logit_bucket(max(ask.length - ask.cached + ask.count for ask in asks))
        logits = logit_bucket(max(ask.length - ask.frontier + ask.count + 1 for ask in asks))
        predicts = any(ask.prediction is not None for ask in asks)
        shape = Shape(bucket(len(asks)), width, logits)
        kind = Kind(shape, trees, predicts=predicts, probs=probs, lenience=lenience)
        bringing = [i for i, ask in enumerate(asks) if ask.brings_logits]
        report = self._report(kind, asks, lambda: self._bring_logits(logits, bringing))
        brought = dict(zip(bringing, self._staged.split(logits), strict=False))
        return [
            each._replace(logits=brought.get(i))
            for i, each in enumerate(self._reviewed(report, asks, trees, probs))
        ]

    def draft(self, asks: Sequence[Ask], most: int | None = None) -> list[Drafted]:
        """Appends up to `count` tokens to each row, those that as many reviews of nothing would
        append: at most `most` at a time (MAX_ALONE), and fewer behind logits that allow none.
        Raises ValueError when the first token of a row is not to be had."""
        width = bucket(max(ask.length - ask.cached for ask in asks))
        passes = min(max(ask.count for ask in asks), most or MAX_ALONE)
        shape = Shape(bucket(len(asks)), width, 1)
        report = self._report(Kind(shape, probs=True, alone=passes), asks)
        own = report.lists[0].view(-1)[: passes * shape.rows].view(passes, shape.rows)
        drafted = []
        for i, ask in enumerate(asks):
            tokens = own[: min(ask.count, passes), i].tolist()
            gained = next((j for j, token in enumerate(tokens) if token < 0), len(tokens))
            if gained == 0:
                raise ValueError(REASONS[tokens[0]].format(ask.length))
            self._program.on_device.wrote(ask.row, ask.length, tokens[:gained])
            drafted.append(Drafted(tokens[:gained], report.kept_probs[i, :gained].tolist()))
        return drafted

    def _report(
        self, kind: Kind, asks: Sequence[Ask], download: Callable[[], None] | None = None
    ) -> Report:
        report = self._act(kind, asks, lambda memory: self._upload(memory, asks), download)
        return Report.of(report, kind.shape.rows)

    def _bring_logits(self, width: int, bringing: Sequence[int]) -> None:
        """Downloads the logits of these rows of the pass, `width` places each."""
        if not bringing:
            return
        if len(self._staged) < len(bringing) * width:
            sizes = (bucket(len(bringing) * width), self._program.cols(self._logits))
            self._staged = self._run.staging(*sizes, dtype=torch.float32)
        memory = self._program.buffers[self._logits].memory
        assert memory is not None
        for target, i in zip(self._staged.split(width), bringing, strict=False):
            self._run.download(target, memory[i * width : (i + 1) * width])

    def _upload(self, memory: Memory, asks: Sequence[Ask]) -> None:
        told, rows = [], self._program.on_device
        for ask in asks:
            self._program.check_source(ask.row, ask.cached, ask.length - ask.cached)
            text = self._prediction(ask)
            words = (0, 0, 0) if text is None else (*halves(text.data_ptr()), len(text))
            sizes = (ask.row, ask.length, ask.count, ask.depth, words[2], 0)
            ends = (ask.cached, ask.frontier, ask.length + ask.count)
            told.append([*words[:2], *sizes, *ends, self._program.source(ask.row)])
            rows.send_tokens(ask.row, ask.length)
            rows.send_table(ask.row, -(-(ask.length + ask.count) // PAGE_TOKENS))
            rows.forget(ask.row, ask.frontier, ask.length + ask.count + 1)
        told += [NOBODY] * (memory.asked.shape[1] - len(told))
        host = torch.tensor(told, dtype=torch.int32)
        memory.asked_host[:2] = host[:, :2].reshape(2, -1)
        memory.asked_host[2:] = host[:, 2:].T
        if memory.rejects:
            memory.rejection.upload([ask.rejection for ask in asks])
        Asked.of(memory.asked_host).learned[0] = self._action.learned.size
        self._run.upload(memory.asked, memory.asked_host)

    def _reviewed(
        self, report: Report, asks: Sequence[Ask], trees: bool, probs: bool
    ) -> list[Reviewed]:
        """What came back; the rows' tokens are on the device already."""
        accepted, own, _, _, drafted = report.numbers.tolist()
        paths, parents, tokens = report.lists.tolist()
        for ask, n, token in zip(asks, accepted, own, strict=False):
            if token < 0:
                raise ValueError(REASONS[token].format(ask.frontier + n))
        found = []
        for i, ask in enumerate(asks):
            n, k = accepted[i], drafted[i]
            if ask.rejection is not None:
                ask.rejection.settle(n + 1)
            above, path = (parents[i][:k], paths[i][:n]) if trees else ([], range(n))
            host = self._program.host_tokens[ask.row, ask.frontier : ask.length].tolist()
            reviewed = [*host, *tokens[i][:k]]
            gained = [*(reviewed[node] for node in path), own[i]]
            self._program.on_device.wrote(ask.row, ask.frontier, gained)
            sure = report.kept_probs[i, : n + 1].tolist() if probs else []
            likely = report.path_probs[i, :k].tolist() if trees else []
            found.append(Reviewed(tokens[i][:k], above, gained, list(path), sure, likely))
        return found
