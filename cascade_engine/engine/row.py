"""A request's sample as the engine keeps it: one token row and its frontiers."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import torch

from cascade_engine.engine.results import Piece, RunStats, StepOutput
from cascade_engine.levels import LogprobRequest, ReviewItem, TokenLogprobs, TokenRows
from cascade_engine.ops import Sampler
from cascade_engine.params import SamplingParams
from cascade_engine.policy import RowState
from cascade_engine.sampling import AllowedMasks
from cascade_engine.stops import StopChecker

NO_SLOT = -1


@dataclass(eq=False)
class Row:
    """Bookkeeping of one row; its tokens are in TokenRows, its caches in the levels.

    Invariants: frontier[0] <= frontier[1] <= ... <= length <= limit, and each level's cached length
    is at most length - 1 between actions.
    """

    request_id: str
    index: int
    params: SamplingParams
    seed: int
    prompt: list[int]
    tokens: list[int]
    """What is written into the row's slot when it gets one: the prompt, and after a preemption or
    a fork what was emitted too."""
    limit: int
    """Longest the row may get: prompt + max_tokens, within the target's context."""
    sampler: Sampler
    stops: StopChecker
    stats: RunStats
    frontier: list[int]
    length: int
    allowed: AllowedMasks | None = None
    prediction: torch.Tensor | None = None
    slot: int = NO_SLOT
    exhausted: bool = False
    started: float = 0.0
    sources: list[int] = field(default_factory=list)
    """For each token behind the prompt, the level that appended it."""
    retired: set[int] = field(default_factory=set)
    """Drafting levels that failed on this row and are not asked again."""
    keys: list[bytes] = field(default_factory=list)
    """Prefix keys of the whole pages of its leading final tokens, as far as they were needed."""
    logprobs: tuple[TokenLogprobs, ...] = ()
    """Of the tokens that the last target review left, where they are asked for."""

    def state(self, contexts: list[int]) -> RowState:
        """What the policy sees; `contexts` are the neural levels' context lengths."""
        length = self.length
        dormant: tuple[bool, ...] = ()
        if self.retired or length > min(contexts):
            dormant = tuple(
                [length > context or i in self.retired for i, context in enumerate(contexts)]
            )
        room = self.limit - 1 - length
        return RowState(tuple(self.frontier), length, room, self.exhausted, dormant)

    def review_item(self, level: int, tokens: TokenRows) -> ReviewItem:
        """This row's part in a review; asks the request's allowed_tokens, which may raise."""
        allowed = logprobs = None
        if self.allowed is not None:
            row = tokens.read(self.slot, 0, self.length)
            allowed = self.allowed.along(row, self.frontier[level])
        if level == 0 and self.params.logprobs is not None:
            logprobs = LogprobRequest(self.params.logprobs, self.params.processed_logprobs)
        return ReviewItem(
            self.slot, self.frontier[level], self.length, self.sampler, allowed, logprobs
        )

    def begin(self) -> None:
        """The row has a slot; its time runs from the first time that it has."""
        self.started = self.started or time.perf_counter()

    def roll_back(self) -> None:
        """Drops what is not final."""
        self.length = self.final
        self.frontier = [self.final] * len(self.frontier)
        del self.sources[self.final - len(self.prompt) :]
        self.exhausted = False

    def retire(self, level: int) -> None:
        """Goes on without a drafting level that failed, and without what it had to review."""
        self.retired.add(level)
        self.length = self.frontier[level]
        for i in range(level, len(self.frontier)):
            self.frontier[i] = self.length
        del self.sources[self.length - len(self.prompt) :]
        self.exhausted = False

    def append_draft(self, level: int, count: int) -> None:
        """The statistical level wrote `count` tokens behind the row."""
        self.length += count
        self.sources.extend([level] * count)
        self.exhausted = count == 0
        self.stats.levels[level].drafted += count

    @property
    def final(self) -> int:
        """Leading tokens that are the prompt or were emitted."""
        return len(self.prompt) + self.stats.new_tokens

    def settle(self, level: int, num_accepted: int) -> None:
        """Level `level` kept `num_accepted` tokens behind its frontier and wrote its own."""
        end = self.frontier[level] + num_accepted
        del self.sources[end - len(self.prompt) :]
        self.sources.append(level)
        self.length = end + 1
        for i in range(level, len(self.frontier)):
            self.frontier[i] = self.length
        self.exhausted = False
        self.stats.levels[level].drafted += 1

    def emit(self, token_ids: list[int]) -> StepOutput:
        """Makes the row's last tokens final, up to a stop; ends the row there or at its limit."""
        begin = self.length - len(token_ids) - len(self.prompt)
        pieces: list[Piece] = []
        finish = None
        for i, token in enumerate(token_ids):
            release = self.stops.push(token)
            logprobs = self.logprobs[i] if self.logprobs else None
            pieces.append(Piece(release.text, token, self.sources[begin + i], logprobs))
            if release.stopped:
                finish = "stop"
                break
        if finish is None and self.length >= self.limit:
            last = self.stops.finish()
            pieces[-1] = pieces[-1]._replace(text=pieces[-1].text + last.text)
            finish = "stop" if last.stopped else "length"
        for piece in pieces:
            self.stats.levels[piece.level].accepted += 1
        self.stats.new_tokens += len(pieces)
        self.stats.seconds = time.perf_counter() - self.started
        self.stats.target_calls += 1
        return self.output(pieces, finish)

    def output(self, pieces: list[Piece], finish_reason: str | None = None) -> StepOutput:
        """`pieces` as an output of this row; none at all is where joining outputs begins."""
        stop = None if self.stops.reason is None else self.stops.reason.value
        return StepOutput(
            self.request_id,
            self.index,
            self.prompt,
            self.seed,
            self.stats,
            pieces,
            finish_reason,
            stop,
        )
