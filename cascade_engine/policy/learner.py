"""The automatic policy at work: it hears what the engine does, and makes plans."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from cascade_engine.policy.base import (
    Action,
    LevelSet,
    OutputSeen,
    Review,
    RowState,
)
from cascade_engine.policy.budget import TrialBudget
from cascade_engine.policy.counting import PassCounts
from cascade_engine.policy.lenience import adapted
from cascade_engine.policy.memory import load, save
from cascade_engine.policy.pace import Pace
from cascade_engine.policy.planning import Estimate, Planner, RowRecord, row_bucket
from cascade_engine.policy.plans import PLAIN, Plan
from cascade_engine.policy.surprise import Surprise, fading

PLAIN_STEPS = 2
"""Steps without drafts at the very beginning: what all else is compared with."""
HORIZON = 64.0, 400.0
"""Steps that a better plan is taken to be of use for: as many as there were, within this."""
REFRESH = 16, 128
"""Steps until what is nearly as good is measured again: first, and at most, doubling between.
"""
STALL = 10.0
"""Times the expected, beyond which the seconds of a step are not the plan's."""
FIRST_SAVE = 12
"""Reviews before what was learnt is first written down; then at each doubling."""


TARGET_REVIEW = Review(0)


class Limits(NamedTuple):
    """What the policy may do."""

    trees: bool
    max_lenience: float


class CascadeLearner(PassCounts):
    """`AutoCascade` in one engine: a Policy and the Listener it learns by. No tensors.

    One plan is in force; the rows where it pays follow it, the others decode plainly in the same
    passes. It changes between two steps.
    """

    def __init__(self, levels: LevelSet, limits: Limits, path: Path | None = None) -> None:
        super().__init__(levels)
        self.lenience = 1.0
        self.note: str | None = None
        """Why the file of what was learnt earlier was not used."""
        self._key, self._path = levels.key, path
        self._lenient, self._timer = limits.max_lenience, levels.clock
        self._planner = Planner(self._known, self.costs, limits.trees)
        self._pace = Pace(PLAIN_STEPS)
        self._best = self._estimate
        """Which a trial puts off."""
        self._some = False
        """Rows differ in whether they follow the plan."""
        self._bucket = 1
        self._steps = self._faded = 0
        self._clock = 0.0
        self._surprise = Surprise()
        self._next_refresh = REFRESH[0]
        self._trying, self._usual = False, 0.0
        self._budget = TrialBudget()
        self._next_save = FIRST_SAVE
        if path is not None:
            self.note = load(path, levels.key, self.costs, self._known)

    # What the engine asks

    def check(self, drafting_levels: int) -> None:
        """Made for these levels."""

    def next_action(self, row: RowState) -> Action:
        plan = self._plan
        if plan is PLAIN or (self._some and row.record is not None and not row.record.drafts):
            return TARGET_REVIEW
        return plan.next_action(row)

    # What the engine tells

    @property
    def listening(self) -> bool:
        return self._pace.listening

    def stepped(
        self, outputs: Sequence[OutputSeen], seconds: float, prefill_seconds: float
    ) -> None:
        # A process that was stopped for a while did not decode slowly.
        seconds = min(seconds - prefill_seconds, STALL * self._estimate.seconds)
        self._clock += seconds
        self._steps += 1
        pace = self._pace
        if not pace.listening:
            pace.wakes(self._steps, outputs)
            if row_bucket(len(outputs)) != self._bucket:
                self._welcome(len(outputs), seconds)
            return
        if not self._around.passes:
            return
        tokens = self._count_outputs(outputs)
        self._budget.earned(tokens, seconds)
        self._around.stepped(seconds)
        bucket = row_bucket(self._rows)
        if self._steady and bucket == self._bucket:
            expected = self._planner.add(self._rows, tokens, seconds)
            if self._plan is not PLAIN:
                self._surprise.add(self._rows, expected, tokens)
        self._steady = True
        self._decide(bucket, tokens, seconds)
        self._warming = False
        pace.heard(self._steps, seconds, self._plan is PLAIN, self._trying)

    # Planning

    def _decide(self, bucket: int, tokens: int, seconds: float) -> None:
        """Whether it is time for another plan; a step gave so many tokens."""
        if self._surprise.is_great():
            self._pace.look_soon(self._steps)
        if self._trying:
            if not self._warming:
                self._budget.tried(tokens, seconds, self._usual)
        elif bucket == self._bucket and not self._pace.is_due(self._steps):
            return
        if self._steps >= PLAIN_STEPS and self._records:
            self._look(seconds)

    def _welcome(self, rows: int, seconds: float) -> None:
        """Plans for another number of rows, of which nothing was heard yet."""
        if rows and self._steps >= PLAIN_STEPS:
            self._records = [RowRecord(self._neural) for _ in range(rows)]
            self._trying = False
            self._look(seconds)

    def _look(self, seconds: float) -> None:
        """Plans anew, or tries something; steps take about so many seconds."""
        begin = self._timer()
        self._fade()
        rows = len(self._records)
        plain = self.costs.seconds(0, rows, rows) + self._around.overhead * (1 + rows)
        allowed = self._budget.left(self._clock, rows, plain)
        horizon = min(max(float(self._steps), HORIZON[0]), HORIZON[1])
        refresh = self._steps >= self._next_refresh
        same, bucket = self._best.kind, self._bucket
        choice = self._planner.look(
            self._records, self._around.overhead, not self._trying, allowed, horizon, refresh
        )
        trial = choice.trial
        self._bucket, self._trying = row_bucket(rows), trial is not None
        self._best = choice.best
        self._usual = rows * choice.rate
        self._adopt(trial or choice.best)
        if trial is not None:
            if refresh:
                self._next_refresh = self._steps + min(self._steps, REFRESH[1])
        else:
            self.lenience = adapted(self.lenience, self._lenient, self._plan, self._known)
        if self._path is not None and self._reviews >= self._next_save:
            self._next_save = 2 * self._reviews
            save(self._path, self._key, self.costs, self._known)
        changed = self._best.kind != same or self._bucket != bucket
        spent = self._timer() - begin
        self._pace.looked(self._steps, spent, seconds, not self._best.kind, changed)

    def _adopt(self, estimate: Estimate) -> None:
        self._planner.adopt(estimate)
        self._estimate = estimate
        plan = Plan(*estimate.plan)
        self._plan = PLAIN if plan == PLAIN else plan
        self._some = estimate.drafting < len(self._records)

    def _fade(self) -> None:
        """Old counts fade; quickly where the text has changed."""
        seen, self._faded = self._reviews - self._faded, self._reviews
        changed = self._surprise.is_great()
        if changed:
            self._surprise = Surprise()
            self._planner.forget()
        self._known.scale(fading(self._known, seen, changed))
