"""A running request: one token row and its frontiers."""

from __future__ import annotations

from dataclasses import dataclass

from cascade_engine.engine.results import RunStats
from cascade_engine.ops import Sampler
from cascade_engine.params import SamplingParams
from cascade_engine.policy import RowState


@dataclass
class Row:
    """Bookkeeping of one row; its tokens are in TokenRows, its caches in the levels.

    Invariants: frontier[0] <= frontier[1] <= ... <= length <= limit, and each level's cached length
    is at most length - 1 between actions.
    """

    slot: int
    request_id: str
    params: SamplingParams
    seed: int
    sampler: Sampler
    prompt: list[int]
    limit: int
    """Longest the row may get: prompt + max_tokens, within the target's context."""
    frontier: list[int]
    sources: list[int]
    """For each token behind the prompt, the level that appended it."""
    stats: RunStats
    started: float
    length: int = 0
    exhausted: bool = False

    def state(self, contexts: list[int]) -> RowState:
        """What the policy sees; `contexts` are the neural levels' context lengths."""
        return RowState(
            frontier=tuple(self.frontier),
            length=self.length,
            room=self.limit - 1 - self.length,
            exhausted=self.exhausted,
            dormant=tuple(self.length > context for context in contexts),
        )

    def append_draft(self, level: int, count: int) -> None:
        """The statistical level wrote `count` tokens behind the row."""
        self.length += count
        self.sources.extend([level] * count)
        self.exhausted = count == 0
        self.stats.levels[level].drafted += count

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
