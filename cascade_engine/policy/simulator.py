"""Simulated worlds: policies decode in them without models, exactly as the engine would ask them.

A world has levels that agree with the target on drawn tokens, and times for their passes. Tokens
are 0 where they are the target's own choice; others are wrong, and what follows a wrong one is off
the text: there levels agree with one another, or not, as drawn.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from cascade_engine.policy.base import (
    Action,
    Draft,
    Learning,
    LevelSet,
    Listener,
    Policy,
    Review,
    RowState,
)

FAR = 1 << 30
OFF_TEXT = 10
"""Ids from here on follow a wrong token."""


@dataclass(frozen=True)
class Regime:
    """How levels agree with the target for a stretch of text."""

    agreement: tuple[float, ...]
    """Of neural drafts 1..n-1: chance of the target's token behind a text of the target's."""
    copied: float
    """Share of the text that repeats what came before; there the statistical level is right with
    chance 0.97."""
    elsewhere: float
    """Chance that it is right in the rest."""
    span: float = 12.0
    """Mean length of a repeated passage, in tokens."""
    tokens: int = FAR
    """Length of the regime; after the last comes the first again."""


@dataclass(frozen=True)
class World:
    """Levels with times.

    weights: time of a pass of each neural level over one token.
    token_cost: share of it that each further token adds.
    knee, beyond: tokens from which on each costs the share `beyond` instead (compute bound).
    """

    weights: tuple[float, ...]
    regimes: tuple[Regime, ...]
    token_cost: float = 0.02
    knee: int = 16
    beyond: float = 0.05
    table_cost: float = 0.01
    noise: float = 0.0
    hints: tuple[int, ...] = ()
    """Weight bytes as a policy is told; empty: in proportion to `weights`."""

    @property
    def neural(self) -> int:
        return len(self.weights)

    def seconds(self, level: int, tokens: int, tree: bool = False) -> float:
        """Of a pass over `tokens` tokens of all rows together, without noise."""
        if level >= self.neural:
            return self.table_cost * (0.5 + tokens / 20.0)
        inside, above = min(tokens, self.knee), max(tokens - self.knee, 0)
        return self.weights[level] * (
            1.0 + self.token_cost * (inside - 1) + self.beyond * above + 0.03 * tree
        )

    def levels(self) -> LevelSet:
        hints = self.hints or tuple(round(1e6 * weight) for weight in self.weights)
        return LevelSet(self.neural, hints, "simulated", lambda: 0.0)


class Text:
    """One row's draws; the same for every policy with the same seed."""

    def __init__(self, world: World, seed: int, tokens: int) -> None:
        rng = random.Random(seed)
        n = world.neural
        size = tokens + 160
        self.own: list[list[int]] = [[0] * size for _ in range(n + 1)]
        """[level][position]: the level's token behind a text of the target's."""
        self.off: list[list[int]] = [[0] * size for _ in range(n + 1)]
        """The same behind a wrong token."""
        self.rank = [0] * size
        """Of the target's token among what the statistical level proposes at a position."""
        copying, left, number, until = False, 0.0, 0, world.regimes[0].tokens
        for t in range(size):
            if t >= until:
                number = (number + 1) % len(world.regimes)
                until += world.regimes[number].tokens
                left = 0
            regime = world.regimes[number]
            if left <= 0:
                copying = rng.random() < regime.copied
                left = rng.expovariate(1.0 / regime.span) if regime.span else 1.0
            left -= 1.0
            right = rng.random() < (0.97 if copying else regime.elsewhere)
            listed = rng.random() < 0.4
            ranked = 1 + int(rng.expovariate(0.15))
            self.rank[t] = 0 if right else (ranked if listed else FAR)
            shared = 1 if rng.random() < 0.5 else 0
            for level in range(1, n + 1):
                right = self.rank[t] == 0
                if level < n:
                    right = rng.random() < regime.agreement[level - 1]
                self.own[level][t] = 0 if right else (1 if shared else level + 1)
                self.off[level][t] = OFF_TEXT + (0 if rng.random() < 0.6 else level)

    def token(self, level: int, row: Sequence[int], position: int) -> int:
        """What a level writes at `position` of a row whose tokens before it are `row`."""
        if row and row[-1] != 0:
            return self.off[level][position]
        return self.own[level][position]


@dataclass
class SimulatedRow:
    text: Text
    frontier: list[int]
    tokens: list[int] = field(default_factory=list)
    """Behind the target's frontier."""
    cached: list[int] = field(default_factory=list)
    record: Any = None
    exhausted: bool = False
    nodes: int = 0
    reviews: int = 0
    emitted: int = 0
    """By the last one of the target's."""

    @property
    def length(self) -> int:
        return self.frontier[0] + len(self.tokens)

    def state(self) -> RowState:
        return RowState(
            tuple(self.frontier),
            self.length,
            FAR,
            self.exhausted,
            self.nodes > 0,
            (),
            self.record,
        )


class Reviewed(NamedTuple):
    frontier: int
    length: int
    tree: Branches | None


class Kept(NamedTuple):
    num_accepted: int
    path: Sequence[int] = ()


class Emitted(NamedTuple):
    pieces: Sequence[int]
    finish_reason: str | None


class Branches(NamedTuple):
    """A reviewed tree of so many nodes. Numbers of nodes: the row's own drafts, then the others of
    the right path."""

    nodes: int
    drafted: int
    branch_ranks: Sequence[int]

    def __len__(self) -> int:
        return self.nodes

    def ranks(self, path: Sequence[int]) -> list[int]:
        d = self.drafted
        return [node if node < d else self.branch_ranks[node - d] for node in path]


class Simulation:
    """Rows that decode `tokens` tokens each under a policy. `elapsed` is the simulated time."""

    def __init__(
        self, world: World, policy: Policy, seed: int, tokens: int = 2000, rows: int = 1
    ) -> None:
        policy.check(world.neural)
        self.world, self.policy = world, policy
        self.listeners: list[Listener] = []
        if isinstance(policy, Learning):
            learner = policy.start(world.levels())
            self.policy = learner
            self.listeners.append(learner)
        self.elapsed = 0.0
        self.emitted = 0
        self._goal = tokens
        self._noise = random.Random(~seed)
        self.rows = []
        for i in range(rows):
            row = SimulatedRow(Text(world, seed * 64 + i, tokens), [0] * world.neural)
            row.cached = [0] * world.neural
            self.rows.append(row)

    def run(self) -> float:
        """Tokens of all rows per unit of time."""
        while any(row.frontier[0] < self._goal for row in self.rows):
            self.step()
        return self.emitted / self.elapsed

    def step(self) -> None:
        """One step of the engine: all rows draft, then the target reviews them in one pass."""
        begin = self.elapsed
        deciding = [row for row in self.rows if row.frontier[0] < self._goal]
        while True:
            actions = [(row, self.policy.next_action(row.state())) for row in deciding]
            # Of a neural level's own drafts each is a review of nothing.
            actions = [(row, self._single(action)) for row, action in actions]
            drafts = [(row, a) for row, a in actions if isinstance(a, Draft)]
            if drafts:
                self._draft(drafts)
                continue
            reviews = [(row, a) for row, a in actions if isinstance(a, Review)]
            level = max(action.level for _, action in reviews)
            self._review(level, [(row, a) for row, a in reviews if a.level == level])
            if level == 0:
                break
        outputs = [
            Emitted(range(row.emitted), "length" if row.frontier[0] >= self._goal else None)
            for row in deciding
        ]
        for listener in self.listeners:
            listener.stepped(outputs, self.elapsed - begin, 0.0)

    def _heard(self) -> list[Listener]:
        return [each for each in self.listeners if each.listening]

    def _single(self, action: Action) -> Action:
        alone = isinstance(action, Draft) and action.level < self.world.neural
        return Review(action.level) if alone else action

    def _pass(self, level: int, tokens: int, tree: bool) -> float:
        seconds = self.world.seconds(level, tokens, tree)
        if self.world.noise:
            seconds *= self._noise.lognormvariate(0.0, self.world.noise)
        self.elapsed += seconds
        return seconds

    def _draft(self, drafts: Sequence[tuple[SimulatedRow, Draft]]) -> None:
        n, total = self.world.neural, 0
        for row, action in drafts:
            total += action.nodes or action.tokens
            if action.nodes:
                row.nodes = action.nodes
                continue
            for _ in range(action.tokens):
                row.tokens.append(row.text.token(n, row.tokens, row.length))
        seconds = self._pass(n, total, any(action.nodes for _, action in drafts))
        for listener in self._heard():
            listener.drafted(n, drafts, seconds)

    def _review(self, level: int, reviews: Sequence[tuple[SimulatedRow, Review]]) -> None:
        fed = 0
        for row, action in reviews:
            fed += (
                (1 + max(action.nodes, len(row.tokens)))
                if action.nodes
                else (max(row.length - row.cached[level], 1))
            )
        seconds = self._pass(level, fed, any(action.nodes for _, action in reviews))
        judged = [self._judge(row, level, action.nodes) for row, action in reviews]
        items, verdicts = [item for item, _ in judged], [verdict for _, verdict in judged]
        rows = [row for row, _ in reviews]
        for listener in self._heard():
            listener.reviewed(level, rows, items, verdicts, fed, seconds)

    def _judge(self, row: SimulatedRow, level: int, nodes: int) -> tuple[Reviewed, Kept]:
        path: Sequence[int] = ()
        item = Reviewed(row.frontier[level], row.length, None)
        start = row.frontier[level] - row.frontier[0]
        kept = start
        if level == 0:
            while kept < len(row.tokens) and row.tokens[kept] == 0:
                kept += 1
            accepted = kept
            if nodes:
                ranks, drafted = _branch_ranks(row, kept, nodes), len(row.tokens)
                accepted += len(ranks)
                path = [*range(kept), *range(drafted, drafted + len(ranks))]
                item = item._replace(tree=Branches(max(nodes, drafted), drafted, ranks))
        else:
            own = row.text.token
            while kept < len(row.tokens) and row.tokens[kept] == own(
                level, row.tokens[:kept], row.frontier[0] + kept
            ):
                kept += 1
            accepted = kept
        known = row.frontier[0] + kept
        if level == 0:
            end = row.frontier[0] + accepted + 1
            row.frontier = [end] * len(row.frontier)
            row.tokens, row.nodes = [], 0
            row.reviews += 1
            row.emitted = accepted + 1
            self.emitted += accepted + 1
        else:
            del row.tokens[kept:]
            position = row.length
            row.tokens.append(row.text.token(level, row.tokens, position))
            for i in range(level, len(row.frontier)):
                row.frontier[i] = row.length
        for i in range(len(row.cached)):
            row.cached[i] = known if i == level else min(row.cached[i], known)
        return item, Kept(accepted - start, path)


def _branch_ranks(row: SimulatedRow, kept: int, nodes: int) -> list[int]:
    """Of the tokens that branches add behind the kept drafts: a tree spends nodes on each depth up
    to the rank of the right token, half as many again on others; the likeliest comes first."""
    used, found = float(len(row.tokens)), list[int]()
    while True:
        rank = row.text.rank[row.frontier[0] + kept + len(found)]
        used += 1.5 * (rank + 1)
        if used > nodes:
            return found
        first = rank == 0 and not found and not row.tokens
        found.append(0 if first else math.ceil(used) - 1)


def throughput(
    world: World, policy: Policy, seeds: Sequence[int], tokens: int = 2000, rows: int = 1
) -> float:
    """Mean over the seeds, each begun cold, of tokens per unit of time."""
    runs = [Simulation(world, policy, seed, tokens, rows) for seed in seeds]
    for run in runs:
        run.run()
    return sum(run.emitted for run in runs) / sum(run.elapsed for run in runs)


def search(
    world: World,
    policies: Sequence[Policy],
    seeds: Sequence[int],
    rate: Callable[..., float] = throughput,
    short: int = 400,
    finalists: int = 6,
) -> tuple[float, Policy]:
    """The best of fixed policies: all over a short text, then the leading ones in full."""
    ranked = sorted(policies, key=lambda each: -rate(world, each, seeds[:1], short))
    return max(
        ((rate(world, each, seeds), each) for each in ranked[:finalists]), key=lambda r: r[0]
    )
