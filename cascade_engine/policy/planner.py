"""The plan with the most tokens per second, by acceptance and costs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import accumulate

from cascade_engine.policy.acceptance import DEPTHS, MAX_DEPTH, Counts, chances, survival
from cascade_engine.policy.costs import PassCosts
from cascade_engine.policy.plans import PLAIN, Plan, partial_sum, renewal

TAILS = (1, 2, 3, 4, 6, 8, 10, 12, 16)
WIDTHS = (0, 3, 6, 10)
LENGTHS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20)
SECOND_LENGTHS = (2, 4, 8)
LEFT = {0: 1.0, 8: 0.8, 16: 0.7, 32: 0.6, 64: 0.53}
"""Of the tokens that a chain gets wrong, the share that a tree of so many nodes does too, until it
is known better."""
KIN_STRENGTH = 6.0
LOYALTY = 1.02
"""The present plan is kept unless another is better by this factor."""
UNKNOWN = 5.0
"""What passes far wider than any measured one are taken to cost, times the expected: lengths grow
step by step, since nobody knows where a machine's arithmetic gives out."""
NEURAL_PRIOR, STATISTICAL_PRIOR, STATISTICAL_LIFT = 0.8, 0.5, 0.4

Key = tuple[int, int, int]
"""(reviewer, source, nodes): a source is a level; with nodes the whole tree is."""
Lookup = Callable[[Key], tuple[Counts | None, Counts | None]]


class Planner:
    """One look at what is known: acceptance of a row, costs at a number of rows.

    `counts` gives a row's own and all rows' counts; `hope` makes upper estimates (`chances`);
    `overhead` seconds are spent around each action.
    """

    def __init__(
        self,
        neural: int,
        costs: PassCosts,
        rows: int,
        overhead: float,
        counts: Lookup,
        hope: float = 0.0,
        trees: bool = True,
    ) -> None:
        self._trees = trees
        self._neural, self._rows, self._overhead = neural, rows, overhead
        self._costs, self._counts, self._hope = costs, counts, hope
        self._seconds: dict[tuple[int, int, bool], float] = {}
        self._reaches: dict[int, int] = {}
        self._chances: dict[Key, list[float]] = {}
        self._kept: dict[Key, list[float]] = {}
        self._sums: dict[Key, list[float]] = {}

    def plain(self) -> float:
        """Tokens of a row per second without drafts."""
        return 1.0 / self._pass(0, 1)

    def best(self, present: Plan = PLAIN) -> tuple[float, Plan]:
        """Tokens of a row per second, and the plan that gives them; the present one unless another
        is clearly better."""
        found = list(self._candidates())
        best = max(found, key=lambda each: each[0])
        for rate, plan in found:
            if plan[:7] == present[:7] and rate * LOYALTY >= best[0]:
                return rate, plan
        return best

    def by_kind(self) -> dict[tuple[int, int, bool, bool, int], tuple[float, Plan]]:
        """The best plan of each kind."""
        found: dict[tuple[int, int, bool, bool, int], tuple[float, Plan]] = {}
        for each in self._candidates():
            kind = each[1].kind
            if kind not in found or found[kind][0] < each[0]:
                found[kind] = each
        return found

    def _candidates(self) -> Iterator[tuple[float, Plan]]:
        n = self._neural
        yield self.plain(), PLAIN
        for tail in TAILS:
            sums = self._sum((0, n, 0))
            seconds = self._pass(n, tail) + self._pass(0, tail + 1)
            yield (1.0 + sums[tail]) / seconds, Plan(tail=tail)
        for nodes in (8, 16, 32, 64) if self._trees else ():
            yield self._tree(nodes)
        for drafter in range(1, n):
            for width in WIDTHS:
                yield from self._neural_plans(drafter, 0, 0, width)
            for second in range(drafter + 1, n):
                for length in SECOND_LENGTHS:
                    for width in (0, 6):
                        yield from self._neural_plans(drafter, second, length, width)

    def _tree(self, nodes: int) -> tuple[float, Plan]:
        n = self._neural
        tokens = 1.0 + self._sum((0, n, nodes))[min(nodes, 24)]
        seconds = self._pass(n, nodes, True) + self._pass(0, nodes + 1, True)
        return tokens / seconds, Plan(nodes=nodes)

    def _neural_plans(
        self, drafter: int, second: int, second_tokens: int, width: int
    ) -> Iterator[tuple[float, Plan]]:
        """All lengths; then tails and trees behind the best of them."""
        n = self._neural
        if second:
            inner, low = self._writing(second, width)
            reviews = inner.reviews[second_tokens]
            length = reviews * inner.mean
            kept = self._survival((drafter, second, 0))[: int(length + 0.5) + 1]
            seconds = reviews * low + self._pass(drafter, len(kept))
        else:
            inner, seconds = self._writing(drafter, width)
            kept = self._survival((drafter, n, 0))[: width + 1]
        process = renewal(kept, LENGTHS[-1]) if second else inner
        sums = self._sum((0, drafter, 0))
        options: dict[int, tuple[float, float, float]] = {}
        for tokens in LENGTHS:
            length = process.reviews[tokens] * process.mean
            spent = process.reviews[tokens] * seconds
            rate = (1.0 + partial_sum(sums, length)) / (spent + self._pass(0, round(length) + 1))
            options[tokens] = rate, length, spent
        best = max(options, key=lambda tokens: options[tokens][0])
        rate, length, spent = options[best]
        plan = Plan(drafter, best, second, second_tokens, width)
        yield rate, plan
        for tokens in {1, 2, best}:
            _, length, spent = options[tokens]
            yield from self._longer(plan._replace(tokens=tokens), length, spent)

    def _longer(self, plan: Plan, length: float, spent: float) -> Iterator[tuple[float, Plan]]:
        """A statistical tail, or a tree, behind a neural draft."""
        n, reached = self._neural, partial_sum(self._survival((0, plan.drafter, 0)), length)
        base = 1.0 + partial_sum(self._sum((0, plan.drafter, 0)), length)
        tails = self._sum((0, n, 0))
        for tail in (2, 4, 8, 12):
            seconds = spent + self._pass(n, tail) + self._pass(0, round(length) + tail + 1)
            yield (base + reached * tails[tail]) / seconds, plan._replace(tail=tail)
        for nodes in (8, 16, 32) if self._trees else ():
            if nodes > length + 2.0:
                trunk = (0, plan.drafter, nodes)
                reached = partial_sum(self._survival(trunk), length)
                deep = int(min(nodes - length, 16.0))
                tokens = 1.0 + partial_sum(self._sum(trunk), length)
                tokens += reached * self._sum((0, n, nodes))[deep]
                seconds = spent + self._pass(n, nodes, True) + self._pass(0, nodes + 1, True)
                yield tokens / seconds, plan._replace(nodes=nodes, siblings=2)

    def _writing(self, level: int, width: int):  # type: ignore[no-untyped-def]
        """How a level writes with statistical drafts of `width`; seconds of one review."""
        n = self._neural
        kept = self._survival((level, n, 0))[: width + 1]
        seconds = self._pass(level, width + 1) + (self._pass(n, width) if width else 0.0)
        return renewal(kept, LENGTHS[-1]), seconds

    def _pass(self, level: int, width: int, tree: bool = False) -> float:
        """Seconds of a pass that all rows share, each with `width` tokens."""
        found = self._seconds.get((level, width, tree))
        if found is None:
            found = self._costs.seconds(level, self._rows, self._rows * width, tree)
            found = max(found, 1e-9) + self._overhead
            if level < self._neural and self._rows * width > self._reach(level):
                found *= UNKNOWN
            self._seconds[level, width, tree] = found
        return found

    def _reach(self, level: int) -> int:
        found = self._reaches.get(level)
        if found is None:
            found = self._reaches[level] = self._costs.reach(level, self._rows)
        return found

    def _by_bucket(self, key: Key) -> list[float]:
        found = self._chances.get(key)
        if found is None:
            own, shared = self._counts(key)
            statistical = key[1] == self._neural
            prior = STATISTICAL_PRIOR if statistical else NEURAL_PRIOR
            prior = 1.0 - (1.0 - prior) * LEFT[key[2]]
            lift = STATISTICAL_LIFT if statistical else 0.0
            found = chances(own, shared, prior, lift, self._hope, self._kin(key))
            self._chances[key] = found
        return found

    def _kin(self, key: Key) -> list[tuple[float, float]]:
        """Trees of other sizes, and the chain, tell about a tree: a larger one leaves fewer tokens
        out (`LEFT`)."""
        if key[0] or not self._trees:
            return []
        kept, seen = [0.0] * DEPTHS, [0.0] * DEPTHS
        for nodes, left in LEFT.items():
            if nodes == key[2]:
                continue
            ratio = LEFT[key[2]] / left
            for counts in self._counts((0, key[1], nodes)):
                if counts is not None:
                    for bucket in range(DEPTHS):
                        rejected = counts.seen[bucket] - counts.kept[bucket]
                        seen[bucket] += counts.seen[bucket]
                        kept[bucket] += counts.seen[bucket] - ratio * rejected
        return [
            (min(max(k / s, 0.02), 0.98), min(s, KIN_STRENGTH)) if s else (0.0, 0.0)
            for k, s in zip(kept, seen, strict=True)
        ]

    def _survival(self, key: Key) -> list[float]:
        found = self._kept.get(key)
        if found is None:
            found = self._kept[key] = survival(self._by_bucket(key), MAX_DEPTH // 2)
        return found

    def _sum(self, key: Key) -> list[float]:
        """[d]: expected kept tokens of d drafted ones."""
        found = self._sums.get(key)
        if found is None:
            found = self._sums[key] = [0.0, *accumulate(self._survival(key)[1:])]
        return found
