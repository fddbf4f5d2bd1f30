"""Segments on the device: statistics draft, the level reviews and goes on behind what it has kept,
several rounds behind each other in one action. See csrc/include/ce/segment_loop.h."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from cascade_engine.ops.cuda_action_data import Memory
from cascade_engine.ops.cuda_batch import MAX_NODES, PAGE_TOKENS, Shape, bucket, logit_bucket
from cascade_engine.ops.cuda_program import CudaProgram
from cascade_engine.ops.cuda_review_data import REASONS
from cascade_engine.ops.cuda_segment_action import (
    MAX_ROUNDS,
    Heard,
    SegmentAction,
    SegmentKind,
    SegmentMemory,
    Told,
)
from cascade_engine.ops.device_actions import DeviceActions
from cascade_engine.ops.launch import Launcher

LATELY = 8
"""Calls over which it is averaged how many rounds a token takes."""


@dataclass(slots=True)
class SegmentAsk:
    """A row's segment, as SegmentRow of csrc/include/ce/segment_loop.h, and what it has got."""

    row: int
    cached: int
    length: int
    tokens: int
    most: int
    width: int
    least: int
    sampler: Any
    prediction: torch.Tensor | None
    min_confidence: float
    confidence: float = 1.0
    gained: list[int] = field(default_factory=list)
    probs: list[float] = field(default_factory=list)

    @classmethod
    def of(
        cls,
        sizes: Sequence[int],
        sampler: Any,
        prediction: torch.Tensor | None,
        min_confidence: float,
    ) -> SegmentAsk:
        """`sizes`: the numbers in front of the sampler."""
        row, cached, length, tokens, most, width, least = sizes
        given = (sampler, prediction, min_confidence)
        return cls(row, cached, length, tokens, most, width, least, *given)

    def drafts(self, certain: bool) -> int:
        """Under one review: at most, or as long as the statistics find all that they are asked
        for. A row near its end has room for as many as any other: one graph serves both."""
        least = max(self.least, 1)
        most = least - 1 + self.width if certain else -(-least // self.width) * self.width
        return min(most, MAX_NODES)

    @property
    def missing(self) -> int:
        return min(self.tokens, self.most)

    @property
    def reach(self) -> int:
        """Tokens of the row that the level reads at most."""
        return self.length + min(self.most, self.tokens + self.drafts(certain=True)) - 1

    def gain(self, tokens: list[int], probs: list[float]) -> None:
        """The level vouches for these tokens, and goes on behind them."""
        self.gained += tokens
        self.probs += probs
        for prob in probs:
            self.confidence *= prob
        self.length += len(tokens)
        self.cached = self.length - 1
        self.tokens -= len(tokens)
        self.most -= len(tokens)


class SegmentReview(NamedTuple):
    """One row under review: drafts, times that the statistics were asked for them, drafts kept."""

    drafted: int
    asked: int
    accepted: int
    fed: int
    """Tokens that the level read."""


class CudaSegments(DeviceActions):
    """Segments of the level whose passes `program` runs, with drafts from `table` (or Max-Gram
    alone). How many rounds an action has follows from how many were needed lately: rows that are
    done sooner are holes in the others."""

    def __init__(
        self,
        launcher: Launcher,
        program: CudaProgram,
        logits: int,
        vocab: int,
        table: dict[str, Any] | None = None,
        graphs: bool = True,
    ) -> None:
        action = SegmentAction(launcher, program, logits, vocab, table, (), 0.0)
        super().__init__(launcher, program, action, graphs)
        self._pace = 0.5
        """Rounds for a token that is missing."""

    def draft(
        self, asks: Sequence[SegmentAsk], lenience: float = 1.0
    ) -> list[dict[int, SegmentReview]]:
        """What segments get is in the rows, of the device and the host, and in their `gained`.
        Returns for each round the reviews, by the place of a row in `asks`. A review that allows
        no token ends all segments; it raises ValueError where it is one of the first."""
        rounds: list[dict[int, SegmentReview]] = []
        missing = max(ask.missing for ask in asks)
        waiting, certain = list(range(len(asks))), False
        while waiting:
            part = [asks[i] for i in waiting]
            heard = self._rounds(part, lenience, certain)
            for reviews in self._settled(part, heard, not rounds):
                rounds.append({waiting[j]: review for j, review in reviews.items()})
            # What was not under review in the end had more drafts than there was room for.
            certain = bool(((heard.rounds[-1, 2] < 0) & (heard.open > 0)).any())
            wants = heard.open[: len(part)].tolist()
            waiting = [i for i, more in zip(waiting, wants, strict=True) if more]
        self._pace += (len(rounds) / missing - self._pace) / LATELY
        return rounds

    def _new_memory(self, shape: Shape) -> Memory:
        return SegmentMemory(self._run, shape)

    def _rounds(self, asks: Sequence[SegmentAsk], lenience: float, certain: bool) -> Heard:
        """One action, of as many rounds as the rows are likely to need."""
        drafts = max(ask.drafts(certain) for ask in asks)
        lag = max(ask.length - ask.cached for ask in asks)
        missing = max(ask.missing for ask in asks)
        rounds = min(max(round(self._pace * missing), 1), missing, MAX_ROUNDS)
        shape = Shape(bucket(len(asks)), bucket(lag + drafts), logit_bucket(drafts + 1))
        kind = SegmentKind(
            shape,
            predicts=any(ask.prediction is not None for ask in asks),
            probs=True,
            lenience=lenience,
            rounds=rounds,
            capacity=drafts,
        )
        report = self._act(kind, asks, lambda memory: self._upload(memory, asks))
        heard = Heard.of(report, shape)
        return heard._replace(rounds=heard.rounds[:rounds])

    def _upload(self, memory: Memory, asks: Sequence[SegmentAsk]) -> None:
        told, rows = Told.of(memory.asked_host), self._program.on_device
        texts, numbers = [self._prediction(ask) for ask in asks], []
        for ask, text in zip(asks, texts, strict=True):
            self._program.check_source(ask.row, ask.cached, ask.length - ask.cached)
            sizes = (ask.cached, ask.length, ask.tokens, ask.most, ask.width, ask.least)
            predicted = 0 if text is None else len(text)
            numbers.append((*sizes, predicted, self._program.source(ask.row)))
            rows.send_tokens(ask.row, ask.length)
            rows.send_table(ask.row, -(-ask.reach // PAGE_TOKENS))
            rows.forget(ask.row, ask.length, ask.reach + 1)
        used = slice(len(asks))
        memory.asked_host.zero_()
        told.slots.fill_(-1)
        told.slots[used] = torch.tensor([ask.row for ask in asks], dtype=torch.int32)
        memory.asked_host[-len(numbers[0]) :, used] = torch.tensor(numbers, dtype=torch.int32).T
        told.lengths[used] = told.begins[used]
        told.addresses[used] = torch.tensor([0 if t is None else t.data_ptr() for t in texts])
        doubles = torch.tensor([[a.confidence, a.min_confidence] for a in asks], dtype=torch.double)
        told.confidences[used], told.least_confidences[used] = doubles.T
        self._run.upload(memory.asked, memory.asked_host)

    def _settled(
        self, asks: Sequence[SegmentAsk], heard: Heard, first: bool
    ) -> list[dict[int, SegmentReview]]:
        """What the rounds of an action gave to each row, which takes it over."""
        rounds: list[dict[int, SegmentReview]] = []
        begins, used = [ask.length for ask in asks], slice(len(asks))
        gained, probs = heard.gained[used].tolist(), heard.probs[used].tolist()
        for drafted, asked, accepted, own in heard.rounds.tolist():
            reviewed = [i for i in range(len(asks)) if accepted[i] >= 0]
            broken = next((i for i in reviewed if own[i] < 0), None)
            if broken is not None:
                if first and not rounds:
                    position = asks[broken].length + accepted[broken]
                    raise ValueError(REASONS[own[broken]].format(position))
                heard.open.zero_()
                break
            if not reviewed:
                break
            rounds.append({})
            for i in reviewed:
                ask = asks[i]
                fed = ask.length - ask.cached + drafted[i]
                rounds[-1][i] = SegmentReview(drafted[i], asked[i], accepted[i], fed)
                new = slice(ask.length - begins[i], ask.length - begins[i] + accepted[i] + 1)
                ask.gain(gained[i][new], probs[i][new])
        program = self._program
        for ask, begin in zip(asks, begins, strict=True):
            written = program.host_tokens[ask.row, begin : ask.length]
            written.copy_(torch.tensor(ask.gained[len(ask.gained) - len(written) :]))
            program.on_device.wrote(ask.row, begin, written)
        return rounds


def counted(
    rounds: Sequence[dict[int, SegmentReview]], rows: int, seconds: float
) -> tuple[list[Any], list[Any], list[Any]]:
    """Rounds of `seconds` each as `_C.draft_segments` counts them: for each row drafts, drafts kept
    and times asked; of proposals and of reviews passes, rows, tokens and seconds."""
    found, proposals, reviews = [], [], []
    for number in range(rows):
        mine = [each[number] for each in rounds if number in each]
        drafted, kept = [r.drafted for r in mine], [r.accepted for r in mine]
        found.append((drafted, kept, sum(r.asked for r in mine)))
    for each in rounds:
        asked_for = [review.asked for review in each.values()]
        if any(asked_for):
            given = sum(review.drafted for review in each.values())
            proposals.append((max(asked_for), sum(asked_for), given, 0.0))
        reviews.append((1, len(each), sum(review.fed for review in each.values()), seconds))
    return found, proposals, reviews
