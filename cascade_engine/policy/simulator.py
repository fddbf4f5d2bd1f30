"""Policies decode in simulated worlds, without models, exactly as the engine would ask them."""

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
    Listener,
    Policy,
    Review,
    RowState,
)
from cascade_engine.policy.simulated_world import FAR, Text, World


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
    probs: list[float] = field(default_factory=list)
    """By position, up to the last token: of those behind the target's frontier."""

    def append(self, token: int, prob: float) -> None:
        self.probs += [1.0] * (self.length + 1 - len(self.probs))
        self.probs[self.length] = prob
        self.tokens.append(token)

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
            self.probs,
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
    first: Sequence[bool]
    """Of these: the likeliest where it stands. Lastly, whether one was behind them."""

    def __len__(self) -> int:
        return self.nodes

    def ranks(self, path: Sequence[int]) -> list[int]:
        d = self.drafted
        return [node if node < d else self.branch_ranks[node - d] for node in path]

    def likeliest(self, path: Sequence[int], begin: int) -> list[bool]:
        return list(self.first)

    def needed(
        self, path: Sequence[int], sizes: Sequence[int], begin: int
    ) -> list[tuple[int, int]]:
        """As if all that is less likely than a node stood below it."""
        found, last = [], len(self.branch_ranks)
        for size in sizes:
            reviews = at = 0
            while at <= last:
                root, first = self.branch_ranks[at - 1] + 1 if at else self.drafted, at
                while at < last and self.branch_ranks[at] - root < size:
                    at += 1
                at += 1
                reviews += 1
            found.append((reviews, at - first if first and not self.first[-1] else 0))
        return found


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
                row.append(row.text.token(n, row.tokens, row.length), 1.0)
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
                (ranks, first), drafted = _branches(row, kept, nodes), len(row.tokens)
                accepted += len(ranks)
                path = [*range(kept), *range(drafted, drafted + len(ranks))]
                item = item._replace(tree=Branches(max(nodes, drafted), drafted, ranks, first))
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
            token = row.text.token(level, row.tokens, position)
            row.append(token, row.text.prob(position, token))
            for i in range(level, len(row.frontier)):
                row.frontier[i] = row.length
        for i in range(len(row.cached)):
            row.cached[i] = known if i == level else min(row.cached[i], known)
        return item, Kept(accepted - start, path)


def _branches(row: SimulatedRow, kept: int, nodes: int) -> tuple[list[int], list[bool]]:
    """Of the tokens that branches add behind the kept drafts, their ranks and whether they are the
    likeliest: a tree spends nodes on each depth up to the rank of the right token, half as many
    again on others; the likeliest comes first."""
    used, found, firsts = float(len(row.tokens)), list[int](), list[bool]()
    while True:
        rank = row.text.rank[row.frontier[0] + kept + len(found)]
        any_fits = used + 1.5 <= nodes
        used += 1.5 * (rank + 1)
        if used > nodes:
            return found, [*firsts, any_fits]
        first = rank == 0 and not found and not row.tokens
        found.append(0 if first else math.ceil(used) - 1)
        firsts.append(rank == 0)


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
