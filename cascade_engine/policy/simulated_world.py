"""Simulated worlds: how levels agree with a target on drawn tokens, and how long passes take.

Tokens are 0 where they are the target's own choice; others are wrong, and what follows a wrong one
is off the text: there levels agree with one another, or not, as drawn.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from cascade_engine.policy.base import LevelSet

FAR = 1 << 30
DOUBTFUL, CERTAIN = 0.2, 0.99
"""Probabilities that drafts give their tokens."""
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
    insight: float = 0.0
    """Share of the wrong tokens of which a neural draft says that they are unlikely."""
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
        self.doubt = [rng.random() for _ in range(size)] if world.insight else [1.0] * size
        self._insight = world.insight
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

    def prob(self, position: int, token: int) -> float:
        """What a neural draft gives it."""
        return DOUBTFUL if token and self.doubt[position] < self._insight else CERTAIN
