"""What the automatic policy learns while the engine runs, and the plans it draws from that."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from cascade_engine.policy.acceptance import OWN_DECAY, Counts
from cascade_engine.policy.base import (
    Action,
    Draft,
    LevelSet,
    ReviewSeen,
    RowSeen,
    RowState,
    VerdictSeen,
)
from cascade_engine.policy.costs import PassCosts
from cascade_engine.policy.planner import Key, Planner
from cascade_engine.policy.plans import PLAIN, Plan

GAIN = 1.03
"""Drafting must promise so much over plain decoding."""
PLAIN_REVIEWS = 3
"""Passes without drafts at the very beginning: what all else is compared with."""
PROBE_REVIEWS = 3
EXPLORED = 0.006
"""Share of the time that may be lost to trying what looks worse than the best plan."""
ALLOWANCE = 3.0
"""Plain passes that may be lost so at the start."""
SHARED_DECAY = 0.9995
"""Of all rows' counts, by target review."""
HOPE = 3.0
"""Kept tokens that an untried plan is credited with when it is a candidate for a probe."""
FIRST_LOOK = 16
"""Reviews after which a row has a plan of its own, where others were there before it."""
REPLAN = 48
"""Reviews between two looks at everything, once the first ones are over."""


class Limits(NamedTuple):
    """What the policy may do."""

    trees: bool
    max_lenience: float


class RowRecord:
    """One row: its own counts, and the plan in force."""

    __slots__ = (
        "begin",
        "counts",
        "fed",
        "generation",
        "interval",
        "length",
        "next_look",
        "plan",
        "probing",
        "reviews",
        "tokens",
        "vouched",
        "wait",
    )

    def __init__(self, plan: Plan, generation: int) -> None:
        self.counts: dict[Key, Counts] = {}
        self.plan = plan
        self.generation = generation
        """Of the shared plan that it follows."""
        self.reviews = 0
        self.next_look = FIRST_LOOK
        self.interval = 3
        """Reviews between two looks; grows while they find the same plan."""
        self.probing = 0
        """Reviews left of a probe."""
        self.begin, self.tokens = 0.0, 0
        """Of the probe: when it began, and what it gave so far."""
        self.wait = 48
        """Reviews without drafts before something is tried whatever it promises; doubles."""
        self.length = 0
        self.vouched: dict[int, int] = {}
        """By neural draft: its frontier, since the last target review."""
        self.fed: dict[int, int] = {}
        """By neural draft: the row's length when it was last asked; it must read what came since.
        """


class Learner:
    """Observer of `AutoCascade`; owned by the engine, no tensors.

    Every row starts with the plan that suits all rows so far and gets one of its own after a few
    reviews. A plan is looked at again at growing intervals; in between `passed` and `reviewed` add
    to counters.
    """

    def __init__(self, levels: LevelSet, limits: Limits, cache: Path | str | None = None) -> None:
        self.costs = PassCosts(levels.weight_bytes)
        self.lenience = 1.0
        self.note: str | None = None
        """Why the file of measured times was not used."""
        self._neural, self._limits, self._key = levels.neural, limits, levels.key
        self._path = _cache_file(cache, levels.key)
        if self._path is not None:
            self.note = self.costs.load(self._path, levels.key)
        self._shared: dict[Key, Counts] = {}
        self._plan, self._generation, self._rows = PLAIN, 0, 1
        self._reviews, self._next_look, self._looked, self._next_probe = 0, 0, 0, 0
        self._expected = 0.0
        self._clock = self._in_step = self._overhead = 0.0
        self._passes, self._next_save = 0, 128
        self._lost = 0.0
        self._tried: dict[tuple[int, int, int], tuple[int, int]] = {}
        """By family: the review before which it is not tried again, and how long that was."""

    # What the engine asks

    def check(self, drafting_levels: int) -> None:
        """Made for these levels."""

    def next_action(self, row: RowState) -> Action:
        plan = self._plan if row.record is None else row.record.plan
        return plan.next_action(row)

    # What the engine tells

    def drafted(self, level: int, drafts: Sequence[tuple[RowSeen, Draft]], seconds: float) -> None:
        if level < self._neural:
            self._drafted_alone(level, drafts, seconds)
            return
        tokens = sum(action.nodes or action.tokens for _, action in drafts)
        self._passed(level, len(drafts), tokens, seconds, drafts[0][1].nodes > 0)

    def _drafted_alone(
        self, level: int, drafts: Sequence[tuple[RowSeen, Draft]], seconds: float
    ) -> None:
        """As many reviews of nothing, a token of each row to a pass."""
        for drafted in range(max(action.tokens for _, action in drafts)):
            rows = sum(action.tokens > drafted for _, action in drafts)
            share = rows / sum(action.tokens for _, action in drafts)
            self._passed(level, rows, rows, seconds * share, False)
        for row, _ in drafts:
            record = row.record
            if record is None:
                record = row.record = RowRecord(self._plan, self._generation)
            record.fed[level] = row.length - 1
            for i in range(level, self._neural):
                record.vouched[i] = row.length

    def reviewed(
        self,
        level: int,
        rows: Sequence[RowSeen],
        items: Sequence[ReviewSeen],
        verdicts: Sequence[VerdictSeen],
        fed: int,
        seconds: float,
    ) -> None:
        tree = any(item.tree is not None for item in items)
        self._passed(level, len(rows), fed, seconds, tree)
        for row, item, verdict in zip(rows, items, verdicts, strict=True):
            record = row.record
            if record is None:
                record = row.record = RowRecord(self._plan, self._generation)
            vouched, start = record.vouched, item.frontier
            frontier = [max(start, vouched.get(i, 0)) for i in range(self._neural)]
            if level:
                for i in range(level, self._neural):
                    vouched[i] = row.length
            else:
                vouched.clear()
            nodes = 0 if item.tree is None else len(item.tree)
            self._reviewed(record, level, frontier, item.length, verdict.num_accepted, nodes)

    def _passed(self, level: int, rows: int, tokens: int, seconds: float, tree: bool) -> None:
        self.costs.observe(level, rows, max(tokens, 1), seconds, tree)
        self._clock += seconds
        self._in_step += seconds
        self._passes += 1
        if level == 0:
            self._rows = rows

    def stepped(self, seconds: float, prefill_seconds: float) -> None:
        seconds -= prefill_seconds
        passes, self._passes = self._passes, 0
        if passes:
            rest = max(seconds - self._in_step, 0.0) / passes
            if self._overhead:
                rest = min(rest, 3.0 * self._overhead)
            self._overhead += 0.05 * (rest - self._overhead)
        self._in_step = 0.0

    def _reviewed(
        self,
        record: RowRecord,
        level: int,
        frontier: Sequence[int],
        length: int,
        accepted: int,
        nodes: int,
    ) -> None:
        start = frontier[level]
        if length > start or nodes:
            self._count(record, level, frontier, length, accepted, nodes)
        elif level == 0 and record.plan.tail:
            self._add(record, (0, self._neural, 0), 0, True)
        if level:
            record.fed[level] = length
            return
        record.length = length
        self._reviews += 1
        record.reviews += 1
        if self._reviews < PLAIN_REVIEWS:
            return
        if record.probing:
            self._probe_on(record, accepted + 1)
        elif record.reviews >= record.next_look or self._reviews >= self._next_look:
            self._look(record)

    # Counting

    def _count(
        self,
        record: RowRecord,
        level: int,
        frontier: Sequence[int],
        length: int,
        accepted: int,
        nodes: int,
    ) -> None:
        """A review's tokens by the level that vouched for them."""
        n, start = self._neural, frontier[level]
        if nodes:
            nodes = record.plan.nodes or nodes
            drafter = record.plan.drafter
            trunk = frontier[drafter] - start if drafter else 0
            if trunk:
                self._add(record, (level, drafter, nodes), min(accepted, trunk), accepted < trunk)
            if accepted >= trunk:
                self._add(record, (level, n, nodes), accepted - trunk, True)
            return
        end = start + accepted
        for source in range(level + 1, n + 1):
            until = length if source == n else frontier[source]
            if until > start:
                kept = min(end, until) - start
                self._add(record, (level, source, 0), kept, end < until)
                if end < until:
                    return
                start = until

    def _add(self, record: RowRecord, key: Key, kept: int, rejected: bool) -> None:
        own = record.counts.get(key)
        if own is None:
            own = record.counts[key] = Counts()
        shared = self._shared.get(key)
        if shared is None:
            shared = self._shared[key] = Counts()
        own.decay(OWN_DECAY)
        own.add(kept, rejected)
        shared.add(kept, rejected)

    # Planning

    def _look(self, record: RowRecord) -> None:
        """Plans anew where enough was seen."""
        if self._reviews >= self._next_look:
            self._look_at_all()
        if record.reviews < record.next_look and self._reviews > 32:
            if record.generation != self._generation and record.reviews < FIRST_LOOK:
                record.plan, record.generation = self._plan, self._generation
                self._maybe_probe(record, self._expected)
            return
        planner = self._planner(record, 0.0)
        rate, plan = planner.best(record.plan)
        plan = self._checked(planner, rate, plan)
        same = plan[:7] == record.plan[:7]
        record.interval = min(2 * record.interval, REPLAN * self._rows) if same else 3
        record.next_look = record.reviews + record.interval
        record.plan = plan
        self._maybe_probe(record, rate)

    def _look_at_all(self) -> None:
        """The plan for rows of which nothing is known yet; what is old counts less."""
        for counts in self._shared.values():
            counts.decay(SHARED_DECAY ** (self._reviews - self._looked))
        self._looked = self._reviews
        self._next_look = self._reviews + min(1 + self._reviews // 3, REPLAN)
        planner = self._planner(None, 0.0)
        self._expected, plan = planner.best(self._plan)
        rate = self._expected
        self._plan = self._checked(planner, rate, plan)
        self._generation += 1
        self._adapt_lenience(plan)
        if self._path is not None and self._reviews >= self._next_save:
            self._next_save *= 4
            self.costs.save(self._path, self._key)

    def _planner(self, record: RowRecord | None, hope: float) -> Planner:
        own = {} if record is None else record.counts
        shared = self._shared

        def counts(key: Key) -> tuple[Counts | None, Counts | None]:
            return own.get(key), shared.get(key)

        trees = self._limits.trees
        return Planner(self._neural, self.costs, self._rows, self._overhead, counts, hope, trees)

    def _checked(self, planner: Planner, rate: float, plan: Plan) -> Plan:
        return plan if rate >= GAIN * planner.plain() else PLAIN

    def _adapt_lenience(self, plan: Plan) -> None:
        """Where the target keeps nearly all of what a lenient level vouches for, it may be more
        lenient; where it does not, less."""
        counts = self._shared.get((0, plan.drafter, plan.nodes)) if plan.drafter else None
        if counts is None or not plan.width or counts.seen[0] < 16.0:
            return
        kept = counts.kept[0] / counts.seen[0]
        if kept > 0.93:
            self.lenience = min(self.lenience * 1.2, self._limits.max_lenience)
        elif kept < 0.85:
            self.lenience = max(self.lenience / 1.2, 1.0)

    # Probing

    def _maybe_probe(self, record: RowRecord, rate: float) -> None:
        """Tries the plan of another kind that could be better, as far as the budget goes."""
        plain = self.costs.seconds(0, self._rows, self._rows)
        budget = EXPLORED * self._clock + ALLOWANCE * plain - self._lost
        if budget < 0.0 or self._reviews < self._next_probe:
            return
        self._next_probe = self._reviews + min(1 + self._reviews // 16, REPLAN)
        overdue = record.plan == PLAIN and record.reviews >= record.wait
        hopeful = self._planner(record, HOPE).by_kind()
        value, plan = max(
            (each for each in hopeful.values() if self._may_try(each[1], record, budget)),
            key=lambda each: each[0],
            default=(0.0, PLAIN),
        )
        if plan == PLAIN or (value < 1.03 * rate and not overdue):
            return
        if overdue:
            record.wait = record.reviews + 2 * record.wait
            for counts in record.counts.values():
                counts.decay(0.5)
        wait = 4 * self._tried.get(_family(plan), (0, 2))[1]
        self._tried[_family(plan)] = self._reviews + wait * self._rows, wait
        record.plan, record.probing = plan, PROBE_REVIEWS
        record.begin, record.tokens = self._clock, 0
        self._expected = rate

    def _may_try(self, plan: Plan, record: RowRecord, budget: float) -> bool:
        """Not what is in force, nor what was tried lately, nor what must first read too much."""
        if plan == PLAIN or plan.kind == record.plan.kind:
            return False
        if self._tried.get(_family(plan), (0, 0))[0] > self._reviews:
            return False
        lags = [
            (level, record.length - record.fed.get(level, 0))
            for level in (plan.drafter, plan.second)
            if level
        ]
        return budget >= sum(self.costs.seconds(level, 1, max(lag, 1)) for level, lag in lags)

    def _probe_on(self, record: RowRecord, tokens: int) -> None:
        """One review of a probe is over; at its end, what it lost counts against the budget."""
        record.tokens += tokens
        record.probing -= 1
        if record.probing == 0:
            usual = record.tokens / self._expected if self._expected else 0.0
            self._lost += max(0.0, self._clock - record.begin - usual)
            record.next_look = record.reviews
            self._next_look = self._reviews
            self._look(record)


def _family(plan: Plan) -> tuple[int, int, int]:
    return plan.drafter, plan.second, plan.nodes


def _cache_file(cache: Path | str | None, key: str) -> Path | None:
    if cache == "auto":
        cache = os.environ.get("CASCADE_CACHE") or Path.home() / ".cache" / "cascade_engine"
    if cache is None or str(cache) == "none":
        return None
    name = hashlib.sha256(key.encode()).hexdigest()[:16]
    return Path(cache) / f"pass-times-{name}.json"
