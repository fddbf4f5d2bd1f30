"""CS Drafting's Algorithm 1 written down directly: recursion over a world that answers reviews.

Nothing here is shared with the policy: rows are plain lists, levels are functions of a prefix.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

Next = Callable[[Sequence[int]], int]


class World:
    """Levels 0..n-1 each predict the next token of a prefix; level n copies from a wrong guess.

    Level i agrees with the target at a position with probability `agreement[i]`, fixed by the seed.
    """

    def __init__(self, seed: int, agreement: Sequence[float], vocabulary: int = 50) -> None:
        self.seed = seed
        self.agreement = agreement
        self.vocabulary = vocabulary

    def next_token(self, level: int, prefix: Sequence[int]) -> int:
        position = len(prefix)
        token = self._draw(0, position, prefix[-1]) % self.vocabulary
        if level == 0 or self._draw(level, position, prefix[-1]) / 2**32 < self.agreement[level]:
            return token
        return self._draw(level + 100, position, prefix[-1]) % self.vocabulary

    def prob(self, level: int, prefix: Sequence[int]) -> float:
        """That the level gives the token it predicts; a table's is 1."""
        if level == len(self.agreement) - 1:
            return 1.0
        return (37 * len(prefix) + 11 * prefix[-1] + 7 * level) % 100 / 100 + 0.01

    def _draw(self, *key: int) -> int:
        """32 bits that depend on the seed and the key alone."""
        state = self.seed
        for part in key:
            state = (state ^ part) * 0x9E3779B97F4A7C15 % 2**64
            state ^= state >> 29
        return state >> 32


class Recursion:
    """The authors' recursion: draft, segment by segment, then review; logs every action.

    `min_confidence`: no segment goes on once the product of the probabilities of what was drafted
    since the level's own last token is below.
    """

    def __init__(
        self, world: World, k_matrix: Sequence[Sequence[int]], min_confidence: float = 0.0
    ) -> None:
        self.world = world
        self.k = k_matrix
        self.n = len(k_matrix)
        self.min_confidence = min_confidence
        self.probs: list[float] = []
        """Of the last row that was made, from its beginning."""
        self.log: list[tuple[str, int, int]] = []

    def iterate(self, level: int, row: list[int]) -> list[int]:
        """What `level` makes of `row` with the drafters below it; the row with its review."""
        if level == self.n:
            return self._statistical(row)
        current = list(row)
        target_length = len(row)
        for drafter in range(level + 1, self.n + 1):
            target_length += self.k[level][drafter - 1]
            while len(current) < target_length and self._is_confident(len(row)):
                current = self.iterate(drafter, current)
        return self._review(level, current, len(row))

    def _is_confident(self, frontier: int) -> bool:
        least = self.min_confidence
        return not least or math.prod(self.probs[frontier:]) >= least

    def _statistical(self, row: list[int]) -> list[int]:
        width = self.k[-1][-1]
        self.log.append(("draft", self.n, width))
        current = list(row)
        for _ in range(width):
            current.append(self.world.next_token(self.n, current))
        self.probs[len(row) :] = [1.0] * width
        return current

    def _review(self, level: int, row: list[int], frontier: int) -> list[int]:
        self.log.append(("review", level, len(row)))
        end = frontier
        while end < len(row) and self.world.next_token(level, row[:end]) == row[end]:
            end += 1
        self.probs[end:] = [self.world.prob(level, row[:end])]
        return [*row[:end], self.world.next_token(level, row[:end])]
