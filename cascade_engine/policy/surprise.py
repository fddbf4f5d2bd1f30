"""Notices that the text has become another one."""

from __future__ import annotations

import math

from cascade_engine.policy.planning import Knowledge

SPREAD = 0.6
"""Standard deviation of a review's tokens, as a share of their mean."""
CHANGED = 4.0
"""Standard deviations between what a plan gives and what it should, that speak of other text."""

MEMORY = 800.0
"""Reviews after which what was seen counts half."""
AFTER_CHANGE = 30.0
"""Reviews that what was seen of another text is worth."""


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


def fading(known: Knowledge, reviews: int, changed: bool) -> float:
    """What earlier counts are worth after so many more reviews, or in another text."""
    factor = 0.5 ** (reviews / MEMORY)
    if not changed:
        return float(factor)
    levels = range(known.neural + 1)
    most = max(known.ends(level, source).reviews for source in levels for level in range(source))
    return float(min(factor, AFTER_CHANGE / max(most, AFTER_CHANGE)))
