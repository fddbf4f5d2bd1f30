"""What every kind of plan is expected to give, by acceptance and costs: the oracle of the native
planner, for rows in general that all follow one plan."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from operator import mul
from typing import NamedTuple

from cascade_engine.policy.plans import PLAIN, Plan
from tests.reference.acceptance import (
    MAX_DEPTH,
    SIZES,
    Ends,
    TreeGains,
    kept_of_draft,
    mean_kept,
)
from tests.reference.pass_costs import PassCosts

Kind = tuple[int, int, bool, bool, int, bool]
"""Plans of one kind differ in lengths only."""
TAILS = (1, 2, 3, 4, 6, 8, 10, 12, 16, 20)
WIDTHS = (0, 4, 8)
LENGTHS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24)
SECOND_LENGTHS = (3, 6)
LATER_TAILS = (4, 8)
GUESS = 8.0
"""Reviews of confident drafts that what is guessed of them counts as."""
NEURAL_PRIOR, STATISTICAL_PRIOR = 0.8, 0.5
TREE_LIFT = (0.5, 0.8, 1.1, 1.3)
"""Tokens that trees of SIZES nodes give beyond a chain, until it is known better."""


class Confident:
    """Drafts that may end where their confidence falls: where they did, and what was kept."""

    def __init__(self) -> None:
        self.drafted, self.kept = Ends(1.0), Ends(1.0)

    def add(self, kept: int, drafted: int, most: int) -> None:
        self.drafted.add(0, drafted, drafted < most)
        self.kept.add(0, kept, kept < drafted or drafted < most)


class Knowledge:
    """Acceptance by reviewer and source, and gains of trees by the draft behind which they stand
    (0: none). Decays all alike."""

    def __init__(self, neural: int) -> None:
        self._neural = neural
        self.ends = {
            (level, source): Ends(STATISTICAL_PRIOR if source == neural else NEURAL_PRIOR)
            for level in range(neural)
            for source in range(level + 1, neural + 1)
        }
        self.trees = [TreeGains() for _ in range(neural)]
        self.confident = {(d, above): Confident() for d in range(1, neural) for above in (0, 1)}
        """By drafter, and whether statistical drafts stand below it."""
        self.ended = 0.0
        self.emitted = 20.0
        """Rows that came to their end, and tokens in all: what was drafted behind an end is lost.
        """


def kind_of(plan: Plan) -> Kind:
    stops = plan.min_confidence > 0
    return plan.drafter, plan.second, plan.width > 0, plan.tail > 0, plan.nodes, stops


class Estimate(NamedTuple):
    """A plan with what one target review of a row is expected to give, and to take for all rows."""

    plan: Plan
    tokens: float
    seconds: float

    @property
    def rate(self) -> float:
        """Tokens of a row per second."""
        return self.tokens / self.seconds


class Planner:
    """One look at what is known, at a number of rows that share passes.

    `overhead` seconds are spent around each pass. Acceptance is taken to be `hope` standard
    deviations better than it seems.
    """

    def __init__(
        self,
        knowledge: Knowledge,
        neural: int,
        costs: PassCosts,
        rows: int,
        overhead: float,
        trees: bool,
        hope: float = 0.0,
    ) -> None:
        self._known, self._neural, self._costs = knowledge, neural, costs
        self._rows, self._overhead, self._trees = rows, overhead, trees
        self._hope = hope
        self._seconds: dict[tuple[int, int, bool], float] = {}
        self._reaches = [costs.reach(level, rows) for level in range(neural)]
        self._goes_on = 1.0 - min(knowledge.ended / knowledge.emitted, 0.5)
        """The chance that a row goes on behind a token."""
        self._sums: dict[int, list[float]] = {}

    def by_kind(self) -> dict[Kind, Estimate]:
        """The best plan of each kind."""
        found: dict[Kind, Estimate] = {}
        for each in self._candidates():
            kind = kind_of(each.plan)
            if kind not in found or found[kind].rate < each.rate:
                found[kind] = each
        return found

    def _candidates(self) -> Iterator[Estimate]:
        n = self._neural
        yield Estimate(PLAIN, 1.0, self._pass(0, 1))
        sums = self._sum(n)
        for tail in TAILS:
            seconds = self._pass(n, tail) + self._pass(0, tail + 1)
            yield Estimate(Plan(tail=tail), 1.0 + sums[tail], seconds)
        if self._trees:
            yield from self._lone_trees()
        for drafter in range(1, n):
            for width in WIDTHS:
                yield from self._neural_plans(drafter, 0, 0, width)
                yield from self._confident_plans(drafter, width)
            for second in range(drafter + 1, n):
                for length in SECOND_LENGTHS:
                    for width in (0, 8):
                        yield from self._neural_plans(drafter, second, length, width)

    def _lone_trees(self) -> Iterator[Estimate]:
        n, gains = self._neural, self._known.trees[0]
        means = self._hoped_means(gains, self._lone_prior())
        for i, nodes in enumerate(SIZES):
            seconds = self._pass(n, nodes, True) + self._pass(0, nodes + 1, True)
            yield Estimate(
                Plan(nodes=nodes),
                1.0 + means[i] * self._goes_on ** (0.5 * means[i]),
                seconds,
            )

    def _lone_prior(self) -> list[float]:
        """What lone trees are guessed to give: a chain of up to 16 tokens, and more."""
        runs = self._known.ends[0, self._neural].survival()
        return [
            mean_kept(runs, min(size, 16)) + lift
            for size, lift in zip(SIZES, TREE_LIFT, strict=True)
        ]

    def _neural_plans(
        self, drafter: int, second: int, second_tokens: int, width: int
    ) -> Iterator[Estimate]:
        """All lengths; then tails and trees behind the best of them."""
        process, seconds = self._writing(drafter, width)
        if second:
            inner, low = self._writing(second, width)
            count = inner.reviews[second_tokens]
            drafted = min(round(count * inner.mean), MAX_DEPTH)
            kept = kept_of_draft(self._hoped(drafter, second), drafted)
            process = renewal(kept, LENGTHS[-1])
            seconds = count * low + self._around + self._pass(drafter, len(kept))
        sums = self._sum(drafter)
        best, options = None, {}
        for tokens in LENGTHS:
            length, spent = (
                process.reviews[tokens] * process.mean,
                process.reviews[tokens] * seconds + (0.0 if second else self._around),
            )
            each = Estimate(
                Plan(drafter, tokens, second, second_tokens, width),
                1.0 + partial_sum(sums, length),
                spent + self._pass(0, round(length) + 1),
            )
            options[tokens] = each, length, spent
            if best is None or each.rate > best.rate:
                best = each
        assert best is not None
        yield best
        for tokens in {1, 3, best.plan.tokens}:
            yield from self._longer(*options[tokens])

    def _confident_plans(self, drafter: int, width: int) -> Iterator[Estimate]:
        """Drafts of up to so many tokens that may end earlier."""
        seen = self._known.confident[drafter, int(width > 0)]
        process, _ = self._writing(drafter, width)
        guess = GUESS / (seen.kept.reviews + GUESS)
        chain, going, keeps = (
            self._hoped(0, drafter),
            seen.drafted.survival(),
            hoped(seen.kept.survival(), seen.kept, self._hope),
        )
        tokens, length, spent = 1.0, 0.0, self._around
        for d in range(1, LENGTHS[-1] + 1):
            expected = chain[d] * self._goes_on**d
            tokens += (1.0 - guess) * keeps[d] + guess * expected
            still = (1.0 - guess) * going[d] + guess * (1.0 + chain[d - 1]) / 2.0
            somebody = 1.0 - (1.0 - still) ** self._rows
            if somebody < 1e-6:
                return
            length += still
            rows = max(round(self._rows * still / somebody), 1)
            seconds = self._costs.seconds(drafter, rows, rows * (width + 1))
            if width:
                seconds += self._costs.seconds(self._neural, rows, rows * width)
            spent += somebody * (process.reviews[d] - process.reviews[d - 1]) * seconds
            if d in LENGTHS:
                yield Estimate(
                    Plan(drafter, d, width=width, min_confidence=1.0),
                    tokens,
                    spent + self._pass(0, max(round(length), 1) + 1),
                )

    def _longer(self, drafted: Estimate, length: float, spent: float) -> Iterator[Estimate]:
        """A statistical tail, or a tree, behind a neural draft."""
        n, plan = self._neural, drafted.plan
        runs = self._ending(plan.drafter)
        reached = partial_sum([kept_of_draft(runs, d)[d] for d in range(MAX_DEPTH + 1)], length)
        tails = self._sum(n)
        for tail in LATER_TAILS:
            seconds = spent + self._pass(n, tail) + self._pass(0, round(length) + tail + 1)
            tokens = drafted.tokens + reached * tails[tail]
            yield Estimate(plan._replace(tail=tail), tokens, seconds)
        if not self._trees:
            return
        gains = self._known.trees[plan.drafter]
        alone = self._lone_prior()
        prior = [self._known.trees[0].mean(alone, size - length) for size in SIZES]
        means = self._hoped_means(gains, prior)
        for i, nodes in enumerate(SIZES[:3]):
            if nodes > length + 2.0:
                tokens = drafted.tokens + means[i]
                seconds = spent + self._pass(n, nodes, True) + self._pass(0, nodes + 1, True)
                yield Estimate(plan._replace(nodes=nodes, siblings=2), tokens, seconds)

    def _hoped_means(self, gains: TreeGains, prior: Sequence[float]) -> list[float]:
        spreads = [0.5 / math.sqrt(gains.evidence(i) + 1.0) for i in range(len(SIZES))]
        pairs = zip(gains.means(prior), spreads, strict=True)
        return [(1.0 + mean) * (1.0 + self._hope * spread) - 1.0 for mean, spread in pairs]

    def _writing(self, level: int, width: int) -> tuple[Renewal, float]:
        """How a level writes with statistical drafts of `width`; seconds of one review."""
        n = self._neural
        seconds = self._pass(level, width + 1) + (self._pass(n, width) if width else 0.0)
        # All passes in one go, and nothing around each of them.
        seconds -= (2.0 if width else 1.0) * self._around
        if not width:  # drafts on its own
            return renewal([1.0], LENGTHS[-1]), seconds
        return renewal(kept_of_draft(self._hoped(level, n), width), LENGTHS[-1]), seconds

    @property
    def _around(self) -> float:
        return self._overhead * (1 + self._rows)

    def _pass(self, level: int, width: int, tree: bool = False) -> float:
        """Seconds of a pass that all rows share, each with `width` tokens."""
        found = self._seconds.get((level, width, tree))
        if found is None:
            total = self._rows * width
            found = self._costs.seconds(level, self._rows, total, tree)
            if level < self._neural and total > (reach := self._reaches[level]):
                wide = self._costs.seconds(level, self._rows, reach, tree) * total / reach
                found = max(found, wide)
            found = max(found, 1e-9) + self._around
            self._seconds[level, width, tree] = found
        return found

    def _chance(self, level: int, source: int) -> list[float]:
        """[d]: the chance that d drafted tokens are kept. Where the target has hardly seen them,
        that a level between them keeps them, and the target what that level drafts."""
        ends = self._known.ends
        survival = ends[level, source].survival()
        known, between = max(
            [(min(ends[i, source].reviews, ends[0, i].reviews), -i) for i in range(1, source)],
            default=(0.0, 0),
        )
        if level or not known:
            return survival
        share = known / (known + GUESS) * GUESS / (ends[0, source].reviews + GUESS)
        pairs = zip(ends[-between, source].survival(), self._chance(0, -between), strict=True)
        through = [below * above for below, above in pairs]
        return [s + share * (t - s) for s, t in zip(survival, through, strict=True)]

    def _hoped(self, level: int, source: int) -> list[float]:
        return hoped(self._chance(level, source), self._known.ends[level, source], self._hope)

    def _ending(self, source: int) -> list[float]:
        """Runs of what the target keeps, which end with their row, too."""
        return [kept * self._goes_on**d for d, kept in enumerate(self._hoped(0, source))]

    def _sum(self, source: int) -> list[float]:
        """[d]: expected kept tokens of d drafted ones, which the target reviews."""
        found = self._sums.get(source)
        if found is None:
            runs = self._ending(source)
            found = self._sums[source] = [mean_kept(runs, d) for d in range(MAX_DEPTH + 1)]
        return found


def hoped(survival: Sequence[float], ends: Ends, hope: float) -> list[float]:
    """Where rejections, at each depth, come as much less often as their count may deceive."""
    factor = math.exp(-hope / math.sqrt(sum(ends.rejected) + 1.0))
    pairs = pairwise(survival)
    keeps = (1.0 - factor * (1.0 - after / max(before, 1e-9)) for before, after in pairs)
    return [1.0, *accumulate(keeps, mul)]


class Renewal(NamedTuple):
    """Reviews that each add 1..w+1 tokens, one after the other."""

    reviews: list[float]
    """[k]: expected number of them until k tokens are there."""
    mean: float
    """Expected tokens of one."""


def renewal(kept: Sequence[float], longest: int) -> Renewal:
    """`kept[d]` is the chance that a review keeps at least d tokens, d = 0..w; it adds one of its
    own. Exact: u(v), the chance that the total passes through v, sums over the last review."""
    width = len(kept) - 1
    sizes = [kept[d] - kept[d + 1] for d in range(width)] + [kept[width]]
    passes, reviews, total = [1.0], [0.0, 1.0], 1.0
    for v in range(1, longest):
        chance = 0.0
        for x in range(1, min(v, width + 1) + 1):
            chance += passes[v - x] * sizes[x - 1]
        passes.append(chance)
        total += chance
        reviews.append(total)
    return Renewal(reviews, sum(kept))


def partial_sum(sums: Sequence[float], length: float) -> float:
    """`sums` at a length between integers."""
    whole = int(length)
    if whole >= len(sums) - 1:
        return sums[-1]
    return sums[whole] + (length - whole) * (sums[whole + 1] - sums[whole])
