"""How many drafted tokens a review keeps: decayed counts by where it stopped."""

from __future__ import annotations

from collections.abc import Sequence

MAX_DEPTH = 32
"""Depths from here on are one."""
STRENGTH = 15.0
"""Tokens that a depth needs to weigh as much as what the depth before it tells."""
SIZES = (8, 16, 32, 64)
"""Trees that are told apart, in nodes."""


class Ends:
    """Reviews of one source's chains by one level: how many kept so many tokens and then rejected
    one, and how many kept so many and there were no more. A review of a long draft thus tells what
    every shorter one would have given (the product-limit estimate of Kaplan and Meier)."""

    __slots__ = ("_prior", "_survival", "open", "rejected", "reviews")

    def __init__(self, prior: float) -> None:
        """`prior`: the chance that a token is kept, before any was seen."""
        self._prior = prior
        self.rejected = [0.0] * (MAX_DEPTH + 1)
        self.open = [0.0] * (MAX_DEPTH + 1)
        self.reviews = 0.0
        self._survival: list[float] | None = None

    def add(self, kept: int, rejected: bool) -> None:
        (self.rejected if rejected else self.open)[kept if kept < MAX_DEPTH else MAX_DEPTH] += 1.0
        self.reviews += 1.0
        self._survival = None

    def scale(self, factor: float) -> None:
        self.rejected = [count * factor for count in self.rejected]
        self.open = [count * factor for count in self.open]
        self.reviews *= factor

    def survival(self) -> list[float]:
        """[d]: the chance that the first d drafted tokens are all kept, for d = 0..MAX_DEPTH."""
        if self._survival is None:
            at_risk, chance, keeps, strength = self.reviews, 1.0, self._prior, 2.0
            found = [1.0]
            for rejected, ended in zip(self.rejected, self.open, strict=True):
                at_risk -= ended
                keeps = (strength * keeps + at_risk - rejected) / (strength + at_risk)
                at_risk -= rejected
                if at_risk < 1e-6:
                    at_risk = 0.0
                strength = STRENGTH
                chance *= keeps
                found.append(chance)
            self._survival = found[: MAX_DEPTH + 1]
        return self._survival

    def kept_share(self) -> float:
        """Of the tokens that were looked at."""
        kept = sum(
            d * (r + o) for d, (r, o) in enumerate(zip(self.rejected, self.open, strict=True))
        )
        return kept / max(kept + sum(self.rejected), 1e-9)


class TreeGains:
    """What trees of each size gave beyond a chain. A review of a large tree tells what the smaller
    ones within it would have given, so sizes are compared over the same reviews."""

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

    def evidence(self, size: int) -> float:
        """Reviews that the mean of SIZES[size] rests on."""
        return min(self.reviews[0], 4.0 * self.reviews[size])
