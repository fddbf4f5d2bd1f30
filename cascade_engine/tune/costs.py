"""What passes cost, measured in real runs, and what a run without models would have cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from cascade_engine.policy import Draft, LevelSet
from cascade_engine.policy.base import OutputSeen, ReviewSeen, RowSeen, SegmentsSeen, VerdictSeen
from cascade_engine.policy.planning import PassCosts

SLOWEST = 0.05
"""Share of steps, the slowest, that tell of the machine's other work and not of ours."""


class Rest(NamedTuple):
    """Seconds of a step outside of its passes: for the step, each pass in it, each new token."""

    step: float
    event: float
    token: float


class Passes:
    """Listens to an engine with so many neural levels: what passes it makes.

    A draft that writes k tokens on its own makes k passes under a number of its own, its level's
    beyond the statistical level's: they cost less than as many reviews."""

    def __init__(self, neural: int) -> None:
        self._neural = neural
        self._events, self._tokens = 0, 0

    def drafted(self, level: int, drafts: Sequence[tuple[RowSeen, Draft]], seconds: float) -> None:
        sizes = [draft.nodes or draft.tokens for _, draft in drafts]
        if level < self._neural:
            self._events += 1
            number = self._neural + 1 + level
            for i in range(max(sizes)):
                rows = sum(size > i for size in sizes)
                self._took(number, rows, rows, False, seconds * rows / sum(sizes))
            return
        tree = any(draft.nodes for _, draft in drafts)
        self._pass(level, len(drafts), sum(sizes), tree, seconds)

    def reviewed(
        self,
        level: int,
        rows: Sequence[RowSeen],
        items: Sequence[ReviewSeen],
        verdicts: Sequence[VerdictSeen],
        fed: int,
        seconds: float,
    ) -> None:
        if level == 0:
            self._tokens += sum(verdict.num_accepted + 1 for verdict in verdicts)
        self._pass(level, len(rows), fed, any(item.tree is not None for item in items), seconds)

    def drafted_segments(self, level: int, rows: Sequence[RowSeen], drafted: SegmentsSeen) -> None:
        for number, passes in ((self._neural, drafted.proposals), (level, drafted.reviews)):
            for each in passes:
                if each.seconds:
                    self._pass(number, each.rows, each.tokens, False, each.seconds)

    @property
    def listening(self) -> bool:
        return True

    def stepped(
        self, outputs: Sequence[OutputSeen], seconds: float, prefill_seconds: float
    ) -> None:
        self._step(self._events, self._tokens, seconds - prefill_seconds)
        self._events, self._tokens = 0, 0

    def _pass(self, level: int, rows: int, tokens: int, tree: bool, seconds: float) -> None:
        self._events += 1
        self._took(level, rows, max(tokens, 1), tree, seconds)

    def _took(self, level: int, rows: int, tokens: int, tree: bool, seconds: float) -> None:
        raise NotImplementedError

    def _step(self, events: int, tokens: int, seconds: float) -> None:
        raise NotImplementedError


class Measured(Passes):
    """Of an engine that runs models: times of passes by (level, rows, tokens), and of what lies
    between them."""

    def __init__(self, levels: LevelSet) -> None:
        super().__init__(levels.neural)
        self.costs = PassCosts(list(levels.weight_bytes))
        self._inside = 0.0
        self._steps: list[tuple[int, int, float]] = []

    def rest(self) -> Rest:
        """The least squares' answer over all steps but the slowest; nothing without any."""
        if not self._steps:
            return Rest(0.0, 0.0, 0.0)
        steps = sorted(self._steps, key=lambda s: s[2])
        steps = steps[: max(1, int(len(steps) * (1 - SLOWEST)))]
        features = torch.tensor([[1.0, events, tokens] for events, tokens, _ in steps])
        seconds = torch.tensor([spent for *_, spent in steps])
        found = torch.linalg.lstsq(features, seconds[:, None], driver="gelsd").solution
        return Rest(*(max(0.0, float(value)) for value in found[:, 0]))

    def _took(self, level: int, rows: int, tokens: int, tree: bool, seconds: float) -> None:
        self.costs.observe(level, rows, tokens, seconds, tree)
        self._inside += seconds

    def _step(self, events: int, tokens: int, seconds: float) -> None:
        self._steps.append((events, tokens, max(seconds - self._inside, 0.0)))
        self._inside = 0.0


class Priced(Passes):
    """Of an engine that runs without models: adds up what its passes and steps would take."""

    def __init__(self, neural: int, costs: PassCosts, rest: Rest) -> None:
        super().__init__(neural)
        self._costs, self._rest = costs, rest
        self.seconds = 0.0

    def _took(self, level: int, rows: int, tokens: int, tree: bool, seconds: float) -> None:
        self.seconds += self._costs.seconds(level, rows, tokens, tree)

    def _step(self, events: int, tokens: int, seconds: float) -> None:
        rest = self._rest
        self.seconds += rest.step + events * rest.event + tokens * rest.token
