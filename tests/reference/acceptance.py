"""How many drafted tokens a review keeps: decayed counts by where it stopped."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

MAX_DEPTH = 32
"""Depths from here on are one."""
STRENGTH = 15.0
"""Tokens that a depth needs to weigh as much as what the depth before it tells."""
MOST_KEPT = 0.999
"""Bound of what a token beyond MAX_DEPTH is kept with."""
SIZES = (8, 16, 32, 64)
"""Trees that are told apart, in nodes."""


class Ends:
    """Runs of tokens of one source that one level keeps, from one rejection to the next: tokens
    that were kept and rejected by depth in the run. Reviews tell of the depths that they looked at
    (the product-limit estimate of Kaplan and Meier, with late entry)."""

    __slots__ = ("_prior", "_survival", "kept", "rejected", "reviews")

    def __init__(self, prior: float) -> None:
        """`prior`: the chance that a token is kept, before any was seen."""
        self._prior = prior
        self.kept = [0.0] * MAX_DEPTH
        self.rejected = [0.0] * MAX_DEPTH
        self.reviews = 0.0
        self._survival: list[float] | None = None

    def add(self, start: int, kept: int, rejected: bool) -> None:
        for depth in range(start, start + kept):
            self.kept[min(depth, MAX_DEPTH - 1)] += 1.0
        if rejected:
            self.rejected[min(start + kept, MAX_DEPTH - 1)] += 1.0
        self.reviews += 1.0
        self._survival = None

    def scale(self, factor: float) -> None:
        self.kept = [count * factor for count in self.kept]
        self.rejected = [count * factor for count in self.rejected]
        self.reviews *= factor

    def survival(self) -> list[float]:
        """[d]: the chance that a run has at least d tokens, for d = 0..MAX_DEPTH."""
        if self._survival is None:
            keeps, strength, found = self._prior, 2.0, [1.0]
            for kept, rejected in zip(self.kept, self.rejected, strict=True):
                keeps = (strength * keeps + kept) / (strength + kept + rejected)
                strength = STRENGTH
                found.append(found[-1] * keeps)
            self._survival = found
        return self._survival

    def kept_share(self) -> float:
        """Of the tokens that were looked at."""
        return sum(self.kept) / max(sum(self.kept) + sum(self.rejected), 1e-9)


def kept_of_draft(runs: Sequence[float], drafted: int) -> list[float]:
    """[d]: the chance that a draft of `drafted` tokens keeps at least d of them, where drafts
    follow one another through runs that survive so, each with a token of its own behind it: they
    begin at depths 0, drafted + 1, ... of a run."""
    keeps, longer = min(runs[-1] / max(runs[-2], 1e-9), MOST_KEPT), list(runs)
    while longer[-1] > 1e-14:
        longer.append(longer[-1] * keeps)
    reached = [sum(longer[d :: drafted + 1]) for d in range(drafted + 1)]
    return [each / reached[0] for each in reached]


def mean_kept(runs: Sequence[float], drafted: int) -> float:
    return sum(kept_of_draft(runs, drafted)[1:])


class TreeGains:
    """What trees of each size gave beyond a chain. A review of a large tree tells what the smaller
    ones within it would have given, so sizes are compared over the same text."""

    __slots__ = ("below", "reviews", "tokens")

    def __init__(self) -> None:
        self.tokens = [0.0] * len(SIZES)
        """By size, of the reviews that tell: tokens beyond the chain, and one more each."""
        self.below = [0.0] * len(SIZES)
        """What the next smaller size would have given in them."""
        self.reviews = [0.0] * len(SIZES)

    def add(self, nodes: int, trunk: int, ranks: Sequence[int]) -> None:
        """Of a tree of `nodes` nodes, those of these ranks were kept one after the other; the
        chain in it, which stands in every tree, would have kept `trunk`."""
        below = 1.0
        for i, size in enumerate(SIZES):
            if size > nodes:
                return
            kept = 0
            for rank in ranks:
                if rank >= size:
                    break
                kept += 1
            gained = 1.0 + max(kept - trunk, 0)
            self.tokens[i] += gained
            self.below[i] += below
            self.reviews[i] += 1.0
            below = gained

    def replay(
        self, nodes: int, text: int, needed: Sequence[tuple[int, int]], means: Sequence[float]
    ) -> None:
        """A tree of `nodes` nodes gave `text` tokens, for which trees of each size would have
        needed so many reviews, the last of which gave so many tokens and might have gone on (else
        0): it counts as the share that these are of what it would have given, by `means`. Of a
        somewhat larger one it tells, too."""
        below = float(text)
        for i, size in enumerate(SIZES):
            if nodes < 0.8 * size:
                return
            reviews, last = needed[i]
            count = reviews - 1 + last / (last + means[i]) if last else float(reviews)
            self.tokens[i] += below
            self.below[i] += count
            self.reviews[i] += count
            below = count

    def scale(self, factor: float) -> None:
        for counts in (self.tokens, self.below, self.reviews):
            counts[:] = [count * factor for count in counts]

    def means(self, prior: Sequence[float]) -> list[float]:
        """Tokens that trees of each size add; `prior` has guesses for all of them."""
        mean = (self.tokens[0] + 2.0 * (1.0 + prior[0])) / (self.reviews[0] + 2.0)
        found = [mean - 1.0]
        for i in range(1, len(SIZES)):
            ratio = (1.0 + prior[i]) / (1.0 + prior[i - 1])
            mean *= (self.tokens[i] + 6.0 * ratio) / (self.below[i] + 6.0)
            found.append(mean - 1.0)
        return found

    def mean(self, prior: Sequence[float], nodes: float) -> float:
        """Of trees of any number of nodes, between those of SIZES."""
        points = [(0, 0.0), *zip(SIZES, self.means(prior), strict=True)]
        for (small, low), (large, high) in pairwise(points):
            if nodes <= large:
                return low + (max(nodes, 0.0) - small) / (large - small) * (high - low)
        return points[-1][1]

    def evidence(self, size: int) -> float:
        """Reviews that the mean of SIZES[size] rests on."""
        return min(self.reviews[0], 4.0 * self.reviews[size])
