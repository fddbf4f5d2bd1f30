"""The automatic policy at work: what it learns while the engine runs, and the plans it makes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from cascade_engine.policy.base import (
    Action,
    Draft,
    LevelSet,
    OutputSeen,
    ReviewSeen,
    RowSeen,
    RowState,
    VerdictSeen,
)
from cascade_engine.policy.costs import PassCosts, row_bucket
from cascade_engine.policy.memory import load, save
from cascade_engine.policy.planner import Estimate, Knowledge, Planner
from cascade_engine.policy.plans import PLAIN, Kind

GAIN = 1.02
"""Drafting must promise so much over plain decoding."""
LOYALTY = 1.01
"""The present kind of plan is kept unless another is better by this factor."""
PLAIN_STEPS = 2
"""Steps without drafts at the very beginning: what all else is compared with."""
PROBE_REVIEWS = 2
SPREAD = 0.6
"""Standard deviation of a review's tokens, as a share of their mean."""
LOST_SHARE = 0.01
"""Of the time: what trying plans that look worse may have cost beyond `LOST_PASSES`."""
LOST_PASSES = 16.0
"""Plain passes."""
SAVED_SHARE = 0.02
"""Of the time that drafting has saved, which may be lost as well."""
HORIZON = 64.0, 400.0
"""Reviews that a better plan is taken to be of use for: as many as there were, within this."""
MEMORY = 800.0
"""Reviews after which what was seen counts half."""
CHANGED = 4.0
"""Standard deviations between what a plan gives and what it should, that speak of other text."""
AFTER_CHANGE = 10.0
"""Reviews that what was seen before it is worth then."""


REFRESH, NEAR = 64, 0.85
"""Steps between two that measure again what is nearly as good: plans with so much of the best rate,
and plain decoding."""
LISTENING = 8e-6, 5e-6
"""Seconds that it takes to hear of a step, about: once, and for each row."""
LISTENING_SHARE = 0.005
"""Of the time, that this may take; beyond it steps pass unheard."""
LOOK_SHARE = 150
"""Time between two looks at all plans, times that of a look, once there were some."""
STALL = 10.0
"""Times the expected, beyond which the seconds of a step are not the plan's."""
FIRST_SAVE = 12
"""Reviews before what was learnt is first written down; then at each doubling."""


class Limits(NamedTuple):
    """What the policy may do."""

    trees: bool
    max_lenience: float


class RowRecord:
    """One row: what its drafts vouched for since the last target review, and what each has read."""

    __slots__ = ("length", "read", "vouched")

    def __init__(self, neural: int) -> None:
        self.vouched = 0
        self.length = 0
        self.read = [0] * neural


class Fit:
    """How what a kind of plan gives compares with the model of it, of late."""

    __slots__ = ("reviews", "seconds", "steps", "tokens")

    def __init__(self) -> None:
        self.tokens = self.reviews = self.seconds = self.steps = 0.0

    def add(self, rows: int, tokens: float, seconds: float) -> None:
        """Sums of ratios to what was expected, of a step."""
        fade = 0.985
        self.tokens = self.tokens * fade + tokens
        self.reviews = self.reviews * fade + rows
        # The machine's speed changes faster than texts do.
        self.seconds = self.seconds * 0.93 + min(max(seconds, 0.4), 2.5)
        self.steps = self.steps * 0.93 + 1.0

    def factor(self) -> float:
        """For the rate."""
        return self.token_factor() * (self.steps + 2.0) / (self.seconds + 2.0)

    def token_factor(self) -> float:
        return (self.tokens + 200.0) / (self.reviews + 200.0)


class Surprise:
    """How far what plans gave of late differs from what they should have given."""

    __slots__ = ("error", "reviews", "variance")

    def __init__(self) -> None:
        self.error = self.variance = self.reviews = 0.0

    def add(self, rows: int, expected: float, tokens: int) -> None:
        """A step of `rows` rows; `expected` tokens of each."""
        fade = 0.93
        self.error = self.error * fade + tokens - rows * expected
        self.variance = self.variance * fade + rows * (SPREAD * expected) ** 2
        self.reviews = self.reviews * fade + rows

    def is_great(self) -> bool:
        return self.reviews > 8.0 and abs(self.error) > CHANGED * math.sqrt(self.variance)


class CascadeLearner:
    """`AutoCascade` in one engine: a Policy and the Listener it learns by. No tensors.

    One plan is in force for all rows, chosen for the number of them; it changes between two steps.
    """

    def __init__(self, levels: LevelSet, limits: Limits, path: Path | None = None) -> None:
        self.costs = PassCosts(levels.weight_bytes)
        self.lenience = 1.0
        self.note: str | None = None
        """Why the file of what was learnt earlier was not used."""
        self._neural, self._limits, self._key, self._path = levels.neural, limits, levels.key, path
        self._timer = levels.clock
        self._known = Knowledge(levels.neural)
        self._fits: dict[tuple[Kind, int], Fit] = {}
        self._estimate = Estimate(PLAIN, 1.0, 1.0, 0.0)
        """In force."""
        self._plan = PLAIN
        self._bucket = self._rows = 1
        self._steps, self._next_look, self._interval = 0, PLAIN_STEPS, 1
        self._reviews, self._faded = 0, 0
        self._clock = self._in_passes = self._overhead = 0.0
        self._looks, self._rested, self._look_seconds = 0, 0.0, 1e-3
        self._best = self._estimate
        self._passes = self._tokens = 0
        self._heard = 0.0
        self._steady, self.listening, self._next_listen = False, True, 0
        self._surprise = Surprise()
        self._used: dict[Kind, int] = {}
        self._next_refresh = REFRESH
        self._probing, self._usual, self._lost = 0, 0.0, 0.0
        self._lag: list[tuple[RowRecord, int]] = []
        self._next_save = FIRST_SAVE
        if path is not None:
            self.note = load(path, levels.key, self.costs, self._known)

    # What the engine asks

    def check(self, drafting_levels: int) -> None:
        """Made for these levels."""

    def next_action(self, row: RowState) -> Action:
        return self._plan.next_action(row)

    # What the engine tells

    def drafted(self, level: int, drafts: Sequence[tuple[RowSeen, Draft]], seconds: float) -> None:
        if level < self._neural:
            self._drafted_alone(level, drafts, seconds)
            return
        tokens, tree = 0, drafts[0][1].nodes > 0
        for _, action in drafts:
            tokens += action.nodes or action.tokens
        self._passed(level, len(drafts), tokens, seconds, tree)

    def _drafted_alone(
        self, level: int, drafts: Sequence[tuple[RowSeen, Draft]], seconds: float
    ) -> None:
        """As many reviews of nothing, a token of each row to a pass."""
        tokens = sum(action.tokens for _, action in drafts)
        for drafted in range(max(action.tokens for _, action in drafts)):
            rows = sum(action.tokens > drafted for _, action in drafts)
            self.costs.observe(level, rows, rows, seconds * rows / tokens, False)
        self._in_passes += seconds
        self._passes += 1
        for row, _ in drafts:
            record = row.record
            if record is None:
                record = row.record = RowRecord(self._neural)
            record.vouched = row.length
            record.read[level] = row.length

    def reviewed(
        self,
        level: int,
        rows: Sequence[RowSeen],
        items: Sequence[ReviewSeen],
        verdicts: Sequence[VerdictSeen],
        fed: int,
        seconds: float,
    ) -> None:
        self._passed(level, len(rows), fed, seconds, items[0].tree is not None)
        if level:
            self._count_drafts(level, rows, items, verdicts)
        else:
            self._count_target(rows, items, verdicts)

    def stepped(
        self, outputs: Sequence[OutputSeen], seconds: float, prefill_seconds: float
    ) -> None:
        # A process that was stopped for a while did not decode slowly.
        seconds = min(seconds - prefill_seconds, STALL * self._estimate.seconds)
        self._clock += seconds
        self._steps += 1
        if not self.listening:
            self.listening = self._steps >= self._next_listen
            return
        if not self._passes:
            return
        self.listening = False
        rest = max(seconds - self._in_passes, 0.0) / self._passes
        if self._overhead:
            rest = min(rest, 3.0 * self._overhead)
        self._overhead += 0.05 * (rest - self._overhead)
        tokens, rows = 0, self._rows
        for out in outputs:
            tokens += len(out.pieces)
            self._known.ended += out.finish_reason is not None
        self._known.emitted += tokens
        self._tokens += tokens
        self._heard += seconds
        bucket = row_bucket(rows)
        if self._steady and bucket == self._bucket:
            self._fit(rows, tokens, seconds)
        self._passes = 0
        self._in_passes = 0.0
        self._decide(bucket, tokens, seconds)
        listening = (LISTENING[0] + LISTENING[1] * rows) / max(LISTENING_SHARE * seconds, 1e-9)
        self._next_listen = self._steps + (
            0 if self._probing else min(int(listening), 16, self._steps // 32)
        )
        self.listening = self._steps >= self._next_listen

    def _decide(self, bucket: int, tokens: int, seconds: float) -> None:
        """Whether it is time for another plan; a step gave so many tokens."""
        if self._surprise.is_great():
            self._next_look, self._rested = self._steps, 0.0
        if self._probing:
            self._probing -= 1
            self._lost = max(0.0, self._lost + seconds - tokens / self._usual)
            if self._probing and bucket == self._bucket:
                return
        elif bucket == self._bucket and self._steps < self._next_look:
            return
        if self._clock < self._rested:
            self._end_probe()
            return
        if self._steps >= PLAIN_STEPS:
            self._look(bucket)

    # Counting

    def _passed(self, level: int, rows: int, tokens: int, seconds: float, tree: bool) -> None:
        self.costs.observe(level, rows, tokens, seconds, tree)
        self._in_passes += seconds
        self._passes += 1

    def _count_drafts(
        self,
        level: int,
        rows: Sequence[RowSeen],
        items: Sequence[ReviewSeen],
        verdicts: Sequence[VerdictSeen],
    ) -> None:
        plan = self._plan
        source = plan.second if level == plan.drafter and plan.second else self._neural
        ends = self._known.ends[level, source]
        for row, item, verdict in zip(rows, items, verdicts, strict=True):
            drafted = item.length - item.frontier
            if drafted:
                ends.add(verdict.num_accepted, verdict.num_accepted < drafted)
            record = row.record
            if record is None:
                record = row.record = RowRecord(self._neural)
            record.vouched = row.length
            record.read[level] = row.length

    def _count_target(
        self,
        rows: Sequence[RowSeen],
        items: Sequence[ReviewSeen],
        verdicts: Sequence[VerdictSeen],
    ) -> None:
        self._rows, self._steady = len(rows), True
        for row, item, verdict in zip(rows, items, verdicts, strict=True):
            record = row.record
            if record is None:
                record = row.record = RowRecord(self._neural)
                if item.length == item.frontier and item.tree is None:
                    self._steady = False  # its prompt was read in the same pass
                    continue
            self._count(record, item, verdict)
            record.vouched = 0
            record.length = row.length
        self._lag = [(rows[0].record, len(rows))]
        self._reviews += len(rows)

    def _count(self, record: RowRecord, item: ReviewSeen, verdict: VerdictSeen) -> None:
        """A target review by the level that vouched for what it saw."""
        plan, accepted, n = self._plan, verdict.num_accepted, self._neural
        ends, start = self._known.ends, item.frontier
        drafted = item.length - start
        trunk = max(record.vouched - start, 0)
        kept = accepted
        if item.tree is not None:
            kept = 0
            for node in verdict.path:
                if node != kept or kept >= drafted:
                    break
                kept += 1
        if trunk:
            ends[0, plan.drafter].add(min(kept, trunk), kept < trunk)
        if item.tree is not None:
            ranks = item.tree.ranks(verdict.path)
            self._known.trees[plan.drafter].add(len(item.tree), kept, ranks)
        elif plan.tail and kept >= trunk:
            # What was not found could not be kept.
            found = drafted - trunk
            ends[0, n].add(kept - trunk, kept - trunk < found or found < plan.tail)

    def _fit(self, rows: int, tokens: int, seconds: float) -> None:
        """What the plan in force gave, beside what it should have given."""
        found = self._estimate
        key = found.plan.kind, self._bucket
        fit = self._fits.get(key)
        if fit is None:
            fit = self._fits[key] = Fit()
        fit.add(rows, tokens / found.tokens, seconds / found.seconds)
        if found.plan is not PLAIN:
            self._surprise.add(rows, found.tokens * fit.token_factor(), tokens)

    # Planning

    def _look(self, bucket: int) -> None:
        """Plans anew, or tries something."""
        begin = self._timer()
        self._fade()
        planner = Planner(
            self._known, self._neural, self.costs, bucket, self._overhead, self._limits.trees
        )
        kinds = planner.by_kind()
        rates = {kind: each.rate * self._factor(kind, bucket) for kind, each in kinds.items()}
        best = max(rates, key=lambda kind: rates[kind])
        same = self._estimate.plan.kind
        if not self._probing and rates.get(same, 0.0) * LOYALTY >= rates[best]:
            best = same
        if rates[best] < GAIN * rates[PLAIN.kind]:
            best = PLAIN.kind
        self._probing = 0
        if best != self._best.plan.kind or bucket != self._bucket:
            self._interval = 2
        else:
            self._interval = min(self._interval + 2, 48)
        self._bucket = bucket
        self._next_look = self._steps + self._interval
        self._best = kinds[best]
        self._adopt(self._best)
        self._usual = bucket * rates[best]
        self._adapt_lenience()
        self._maybe_probe(kinds, rates, best)
        if self._path is not None and self._reviews >= self._next_save:
            self._next_save = 2 * self._reviews
            save(self._path, self._key, self.costs, self._known)
        self._looks += 1
        # A look may have been interrupted: one is taken to be about as long as those before.
        self._look_seconds = min(self._timer() - begin, 1.5 * self._look_seconds)
        self._rested = self._clock + self._look_seconds * min(2 * self._looks, LOOK_SHARE)

    def _end_probe(self) -> None:
        if not self._probing and self._estimate is not self._best:
            self._adopt(self._best)

    def _adopt(self, estimate: Estimate) -> None:
        self._estimate, self._plan = estimate, estimate.plan

    def _factor(self, kind: Kind, bucket: int) -> float:
        fit = self._fits.get((kind, bucket))
        return 1.0 if fit is None else fit.factor()

    def _fade(self) -> None:
        """Old counts fade; quickly where the text has changed."""
        seen, self._faded = self._reviews - self._faded, self._reviews
        factor = 0.5 ** (seen / MEMORY)
        if self._surprise.is_great():
            most = max(ends.reviews for ends in self._known.ends.values())
            factor = min(factor, AFTER_CHANGE / max(most, AFTER_CHANGE))
            self._surprise = Surprise()
            for fit in self._fits.values():
                fit.tokens = fit.reviews = 0.0
        self._known.scale(factor)

    def _adapt_lenience(self) -> None:
        """Where the target keeps nearly all of what a lenient level vouches for, it may be more
        lenient; where it does not, less."""
        plan = self._plan
        if not plan.drafter or not (plan.width or plan.second):
            return
        ends = self._known.ends[0, plan.drafter]
        if ends.reviews < 16.0:
            return
        kept = ends.kept_share()
        if kept > 0.97:
            self.lenience = min(self.lenience * 1.1, self._limits.max_lenience)
        elif kept < 0.93:
            self.lenience = max(self.lenience / 1.1, 1.0)

    # Probing

    def _maybe_probe(
        self, kinds: dict[Kind, Estimate], rates: dict[Kind, float], best: Kind
    ) -> None:
        """Tries the kind of plan whose chance to be better is worth more than the trial costs."""
        plain = 1.0 / rates[PLAIN.kind]
        saved = max(self._tokens / (self._bucket * rates[PLAIN.kind]) - self._heard, 0.0)
        allowed = LOST_SHARE * self._clock + SAVED_SHARE * saved + LOST_PASSES * plain - self._lost
        if allowed < 0.0:
            return
        top, rows = rates[best], self._bucket
        horizon = min(max(float(self._reviews), HORIZON[0]), HORIZON[1])
        value, chosen = 0.0, None
        for kind, each in kinds.items():
            if kind == best or kind == PLAIN.kind:
                continue
            spread = rates[kind] * SPREAD / math.sqrt(each.reviews + 2.0)
            gap = (top - rates[kind]) / spread
            gain = spread / top * (_density(gap) - gap * _tail(gap)) * horizon
            cost = PROBE_REVIEWS * max(1.0 - rates[kind] / top, 0.0)
            lag = self._lag_seconds(each)
            if lag > allowed:
                continue
            net = gain - cost - lag * top
            if net > value:
                value, chosen = net, each
        if chosen is not None:
            self._adopt(chosen)
            self._probing = max(1, PROBE_REVIEWS // rows)
        elif self._steps >= self._next_refresh:
            self._refresh(kinds, rates, best)

    def _refresh(self, kinds: dict[Kind, Estimate], rates: dict[Kind, float], best: Kind) -> None:
        """One step of a plan that is nearly as good, in turn, and of plain decoding: what was
        measured of them may be out of date."""
        near = [
            kind
            for kind, rate in rates.items()
            if kind != best
            and (rate > NEAR * rates[best] or kind == PLAIN.kind)
            and self._lag_seconds(kinds[kind]) == 0.0
        ]
        if near:
            chosen = min(near, key=lambda kind: self._used.get(kind, 0))
            self._used[chosen] = self._steps
            self._adopt(kinds[chosen])
            self._probing = 1
            self._next_refresh = self._steps + REFRESH

    def _lag_seconds(self, estimate: Estimate) -> float:
        """To read what the drafter of a plan has not read yet."""
        seconds = 0.0
        for level in (estimate.plan.drafter, estimate.plan.second):
            for record, rows in self._lag if level else ():
                behind = record.length - record.read[level]
                if behind > 64:
                    seconds += rows * self.costs.seconds(level, 1, behind)
        return seconds


def _density(x: float) -> float:
    """Of the standard normal distribution."""
    return math.exp(-0.5 * x * x) / math.sqrt(2.0 * math.pi)


def _tail(x: float) -> float:
    """The chance that a standard normal variable exceeds x."""
    return 0.5 * math.erfc(x / math.sqrt(2.0))
