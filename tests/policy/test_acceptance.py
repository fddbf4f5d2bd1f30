"""Counts of kept tokens: survival by depth, and what trees of each size add."""

from __future__ import annotations

import random

import pytest
from cascade_engine._C import TREE_SIZES, Ends, TreeGains


def test_survival_is_found_from_drafts_of_all_lengths() -> None:
    """Depths keep 0.9, 0.6 and 0.9 of what reaches them; most drafts are short."""
    rng, ends, keeps = random.Random(0), Ends(0.5), (0.9, 0.6, 0.9)
    for _ in range(20000):
        length = rng.choice([1, 1, 1, 2, 3])
        kept = 0
        while kept < length and rng.random() < keeps[kept]:
            kept += 1
        ends.add(kept, kept < length)
    assert ends.survival()[:4] == pytest.approx([1.0, 0.9, 0.54, 0.486], abs=0.02)


def test_nothing_seen_is_the_prior_and_little_seen_is_near_it() -> None:
    ends = Ends(0.8)
    assert ends.survival()[:3] == pytest.approx([1.0, 0.8, 0.64])
    ends.add(0, True)
    assert 0.4 < ends.survival()[1] < 0.8
    ends.scale(0.0)
    ends.add(40, False)  # deeper than what is told apart
    assert ends.reviews == 1.0
    assert ends.survival()[1] > 0.8
    assert ends.open[32] == 1.0


def test_a_large_tree_tells_what_smaller_ones_would_have_given() -> None:
    gains = TreeGains()
    for _ in range(1000):
        gains.add(32, 1, [0, 3, 12, 40])
    assert gains.means([9.0] * 4)[:3] == pytest.approx([1.0, 2.0, 2.0], abs=0.05)
    assert gains.evidence(0) == 1000.0
    assert gains.evidence(TREE_SIZES.index(64)) == 0.0


def test_sizes_are_compared_over_the_same_reviews() -> None:
    """Small trees were reviewed on an easy text, large ones on a hard one too: they still add."""
    gains = TreeGains()
    for _ in range(100):
        gains.add(8, 0, [0, 1, 2, 3, 4, 5])
        gains.add(16, 0, [0, 9])
    small, large = gains.means([0.5] * 4)[:2]
    assert large > 1.3 * small
