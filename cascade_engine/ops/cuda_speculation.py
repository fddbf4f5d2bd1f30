"""Drafts by statistics, their review, acceptance and commit as one action of the device, with one
wait for it: one CUDA graph for each number of rows and drafts, rounded up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from cascade_engine._C import NgramTable
from cascade_engine.ops.cuda_action import CudaAction, Kind, Memory
from cascade_engine.ops.cuda_program import (
    PAGE_TOKENS,
    CudaProgram,
    Shape,
    bucket,
    logit_bucket,
)
from cascade_engine.ops.cuda_review import REASONS
from cascade_engine.ops.device_samplers import DeviceSamplers
from cascade_engine.ops.launch import Launcher


@dataclass(frozen=True, slots=True)
class Ask:
    """Up to `count` drafts behind the `length` tokens of a row, all of which are final; with trees
    `count` nodes, at most `depth` deep. `started` tells apart the rows that a slot holds one after
    the other."""

    row: int
    started: int
    length: int
    count: int
    depth: int
    sampler: Any
    prediction: torch.Tensor | None = None


class Reviewed(NamedTuple):
    """The drafts (parents: of a tree), how many of them were accepted, the target's own token
    behind these and, of a tree, the nodes accepted."""

    tokens: list[int]
    parents: list[int]
    num_accepted: int
    own: int
    path: list[int]


class CudaSpeculation:
    """Drafts from `table` (or Max-Gram alone) for the level whose passes `program` runs.

    The rows' final tokens stay on the device: what acceptance wrote there is never sent again.
    `doubts` as those of the native Drafter. Nodes of trees are drafted above the path probability
    `least`. `learned` tokens of finished requests at most.
    """

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
        graphs: bool,
    ) -> None:
        self._run, self._program = launcher, program
        self._action = CudaAction(launcher, program, logits, vocab, table, doubts, least, learned)
        self._learned_size, self._learned_version = 0, -1
        self._memory: dict[Shape, Memory] = {}
        self._graphs: dict[Kind, Callable[[], object] | None] | None = {} if graphs else None
        self._moves = 0
        rows = len(program.tokens)
        self._known: list[tuple[int, int]] = [(-1, 0)] * rows
        """For each row: which of those that the slot has held, and how many of its tokens."""
        self._tables = launcher.staging(*program.tables.shape, dtype=torch.int32)
        self._tables_of = -1
        self._predictions: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def learn(self, version: int, text: Callable[[], bytes]) -> None:
        """The tokens of finished requests, taken where `version` has changed."""
        if version == self._learned_version:
            return
        tokens = torch.frombuffer(bytearray(text()) or bytearray(4), dtype=torch.int32)
        learned = self._action.learned
        size = min(len(tokens), len(learned))
        learned[:size] = self._run.send(tokens[:size])
        self._learned_size, self._learned_version = size, version

    def run(self, asks: Sequence[Ask], trees: bool) -> list[Reviewed]:
        """Drafts, reviews and commits for rows of which all but the last token are cached and whose
        pages reach over the drafts. Afterwards as many tokens more are cached as were accepted, and
        one. Raises ValueError when a row's logits allow no token."""
        width = logit_bucket(1 + max(ask.count for ask in asks))
        shape = Shape(bucket(len(asks)), width, width)
        moves = self._program.prepare(shape)
        memory = self._memory.get(shape)
        if memory is None:
            memory = self._memory[shape] = Memory(self._run, shape)
        moved = self._fill_samplers(memory, [ask.sampler for ask in asks])
        kind = self._kind(shape, memory, asks, trees)
        moved = self._action.reserve(kind) or moved
        if self._graphs is not None and (moved or moves != self._moves):
            self._graphs.clear()
        self._moves = moves
        self._upload(memory, asks)
        self._execute(kind, memory)
        self._run.download(memory.report_host, memory.report)
        self._run.wait()
        return self._reviewed(memory, asks, trees)

    def _kind(self, shape: Shape, memory: Memory, asks: Sequence[Ask], trees: bool) -> Kind:
        predicts = any(ask.prediction is not None for ask in asks)
        return Kind(shape, trees, memory.edits, memory.filters, predicts)

    def _fill_samplers(self, memory: Memory, samplers: list[Any]) -> bool:
        """Kept while the same requests are reviewed; True where memory has moved."""
        same = len(samplers) == len(memory.sampled)
        if same and all(a is b for a, b in zip(samplers, memory.sampled, strict=True)):
            return False
        params = [s.params for s in samplers]
        params += [params[0]] * (memory.asked.shape[1] - len(params))
        new, moved = DeviceSamplers(self._run, params, self._action.vocab), False
        for name, tensor in new.arguments().items():
            kept = memory.samplers.get(name)
            if kept is None or kept.numel() < tensor.numel():
                size = tensor.numel() if tensor.dim() > 1 else bucket(max(tensor.numel(), 16))
                memory.samplers[name] = kept = torch.zeros(
                    size, dtype=tensor.dtype, device=tensor.device
                )
                moved = True
            kept[: tensor.numel()] = tensor.view(-1)
        memory.sampled, memory.edits, memory.filters = samplers, new.edits, new.filters
        return moved

    def _upload(self, memory: Memory, asks: Sequence[Ask]) -> None:
        program = self._program
        told = []
        for ask in asks:
            text = self._prediction(ask)
            words = (0, 0, 0) if text is None else (*_halves(text.data_ptr()), len(text))
            told.append([*words[:2], ask.row, ask.length, ask.count, ask.depth, words[2], 0])
            self._send_tokens(ask)
        told += [[0, 0, -1, 0, 0, 0, 0, 0]] * (memory.asked.shape[1] - len(told))
        host = torch.tensor(told, dtype=torch.int32)
        memory.asked_host[:2] = host[:, :2].reshape(2, -1)
        memory.asked_host[2:] = host[:, 2:].T
        memory.asked_host[7, 0] = self._learned_size
        self._run.upload(memory.asked, memory.asked_host)
        if self._tables_of != program.uploads:
            self._tables.fill_(-2)
            self._tables_of = program.uploads
        for ask in asks:
            pages = -(-(ask.length + ask.count) // PAGE_TOKENS)
            table, sent = program.host_tables[ask.row, :pages], self._tables[ask.row, :pages]
            if not torch.equal(table, sent):
                sent.copy_(table)
                self._run.upload(program.tables[ask.row, :pages], sent)

    def _send_tokens(self, ask: Ask) -> None:
        """What the device does not have of a row's final tokens."""
        started, known = self._known[ask.row]
        known = min(known, ask.length) if started == ask.started else 0
        if known < ask.length:
            tokens = self._program.host_tokens[ask.row, known : ask.length]
            self._program.tokens[ask.row, known : ask.length] = self._run.send(tokens)
        self._known[ask.row] = (ask.started, ask.length)

    def _prediction(self, ask: Ask) -> torch.Tensor | None:
        """The predicted text of a row on the device, kept while the row asks with it."""
        if ask.prediction is None or len(ask.prediction) == 0:
            return None
        kept = self._predictions.get(ask.row)
        if kept is None or kept[0] is not ask.prediction:
            text = self._run.send(ask.prediction.to(torch.int32))
            kept = self._predictions[ask.row] = (ask.prediction, text)
        return kept[1]

    def _execute(self, kind: Kind, memory: Memory) -> None:
        if self._graphs is None or kind not in self._graphs:  # the first time warms up
            if self._graphs is not None:
                self._graphs[kind] = None
            self._action.launch(kind, memory)
            return
        graph = self._graphs[kind]
        if graph is None:
            graph = self._run.capture(lambda: self._action.launch(kind, memory))
            self._graphs[kind] = graph
        graph()

    def _reviewed(self, memory: Memory, asks: Sequence[Ask], trees: bool) -> list[Reviewed]:
        """What came back; the rows' tokens are on the device already."""
        numbers, lists = memory.parts(memory.report_host)
        accepted, own, lengths, _, drafted = numbers.tolist()
        paths, parents, tokens = lists.tolist()
        found = []
        for i, ask in enumerate(asks):
            n, k = accepted[i], drafted[i]
            if own[i] < 0:
                raise ValueError(REASONS[own[i]].format(ask.length + n))
            self._known[ask.row] = (ask.started, lengths[i])
            above, path = (parents[i][:k], paths[i][:n]) if trees else ([], [])
            found.append(Reviewed(tokens[i][:k], above, n, own[i], path))
        return found


def _halves(address: int) -> tuple[int, int]:
    """An address as two int32 words in the order of memory."""
    low, high = address & 0xFFFFFFFF, address >> 32
    return low - (low >> 31 << 32), high
