"""How often drafts are kept: decayed Beta counts by reviewer, source and depth."""

from __future__ import annotations

from collections.abc import Sequence

DEPTHS = 5
BUCKET = (0, 1, 2, 2, 3, 3, 3, 3)
"""Depths 0, 1, 2-3, 4-7 and 8 on are told apart."""
OWN_DECAY = 0.995
SHARED_STRENGTH = 3.0
"""Tokens of its own that a row needs to weigh as much as all others."""
PRIOR_STRENGTH = 2.0
MAX_DEPTH = 64


class Counts:
    """Kept and reviewed tokens of one (reviewer, source), by depth."""

    __slots__ = ("kept", "seen")

    def __init__(self) -> None:
        self.kept = [0.0] * DEPTHS
        self.seen = [0.0] * DEPTHS

    def add(self, accepted: int, rejected: bool) -> None:
        """`accepted` tokens were kept one after the other, then one was rejected or none."""
        kept, seen = self.kept, self.seen
        for depth in range(accepted):
            bucket = BUCKET[depth] if depth < 8 else 4
            kept[bucket] += 1.0
            seen[bucket] += 1.0
        if rejected:
            seen[BUCKET[accepted] if accepted < 8 else 4] += 1.0

    def decay(self, factor: float) -> None:
        for bucket in range(DEPTHS):
            self.kept[bucket] *= factor
            self.seen[bucket] *= factor


def chances(
    own: Counts | None,
    shared: Counts | None,
    prior: float,
    lift: float = 0.0,
    hope: float = 0.0,
    kin: Sequence[tuple[float, float]] = (),
) -> list[float]:
    """Chance that a token is kept, by bucket of depths: the row's own counts, pulled to those of
    all rows, pulled to those one bucket less deep (`prior` at the first).

    lift: how much surer deeper tokens are before any was seen, as a share of the doubt left.
    hope: kept tokens added to the shared counts, for an upper estimate.
    kin: by bucket, what counts of a related source suggest, and how many tokens that is worth.
    """
    found = []
    for bucket in range(DEPTHS):
        value, strength = prior, PRIOR_STRENGTH
        if kin:
            guess, weight = kin[bucket]
            value = (strength * value + weight * guess) / (strength + weight)
        if shared is not None:
            seen = shared.seen[bucket] + strength + hope
            value = (shared.kept[bucket] + strength * value + hope) / seen
        if own is not None:
            seen = own.seen[bucket] + SHARED_STRENGTH
            value = (own.kept[bucket] + SHARED_STRENGTH * value) / seen
        found.append(value)
        prior = value + (1.0 - value) * lift
    return found


def survival(by_bucket: Sequence[float], depth: int) -> list[float]:
    """[d]: the chance that the first d tokens are all kept, for d = 0..depth."""
    found, chance = [1.0], 1.0
    for d in range(depth):
        chance *= by_bucket[BUCKET[d] if d < 8 else 4]
        found.append(chance)
    return found
