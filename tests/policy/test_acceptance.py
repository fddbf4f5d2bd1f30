"""Counts of kept tokens: survival by depth, and what trees of each size add."""

from __future__ import annotations

import random
from itertools import accumulate
from operator import mul

import pytest
from cascade_engine._C import TREE_SIZES, Drafts, Ends, Run, TreeGains

from tests.reference import acceptance as reference


def test_survival_is_found_from_drafts_of_all_lengths() -> None:
    """Depths keep 0.9, 0.6 and 0.9 of what reaches them; most drafts are short."""
    rng, ends, keeps = random.Random(0), Ends(0.5), (0.9, 0.6, 0.9)
    for _ in range(20000):
        length = rng.choice([1, 1, 1, 2, 3])
        kept = 0
        while kept < length and rng.random() < keeps[kept]:
            kept += 1
        ends.add(0, kept, kept < length)
    assert ends.survival()[:4] == pytest.approx([1.0, 0.9, 0.54, 0.486], abs=0.02)


def test_drafts_that_begin_within_a_run_tell_of_its_later_depths() -> None:
    ends = Ends(0.5)
    for _ in range(1000):
        ends.add(0, 1, False)
        ends.add(2, 0, True)
    found = ends.survival()
    assert found[1:4] == pytest.approx([1.0, 1.0, 0.0], abs=0.02)
    assert ends.kept_share() == 0.5


def text(rng: random.Random, tokens: int) -> list[bool]:
    """Which tokens a drafter gets right: easy passages of twenty tokens among hard ones."""
    right = []
    easy = False
    while len(right) < tokens:
        easy = not easy
        chance = 0.97 if easy else 0.3
        right += [rng.random() < chance for _ in range(int(rng.expovariate(1 / 20)) + 1)]
    return right


def reviewed(right: list[bool], drafted: int, ends: Ends) -> float:
    """Tokens that reviews of so many drafted ones keep of a text, told to `ends`."""
    run, at, kept_in_all, reviews = Run(), 0, 0, 0
    while at + drafted < len(right):
        kept = 0
        while kept < drafted and right[at + kept]:
            kept += 1
        run.review(ends, kept, kept < drafted)
        at += kept + 1
        kept_in_all += kept
        reviews += 1
    return kept_in_all / reviews


@pytest.mark.parametrize("seen", [2, 6, 16])
def test_drafts_of_one_length_tell_what_others_would_keep(seen: int) -> None:
    """Breaks where depths are counted from the draft instead of the run, where all drafts are taken
    to begin with a run (the longer ones keep up to a third less than that), and where a level's own
    token is taken to belong to the run for certain, or to end it."""
    right, ends = text(random.Random(1), 60_000), Ends(0.5)
    reviewed(right, seen, ends)
    drafts = Drafts(ends.survival())
    for drafted in (1, 2, 4, 8, 16):
        found = reviewed(right, drafted, Ends(0.5))
        assert drafts.mean(drafted) == pytest.approx(found, rel=0.06), drafted


def test_what_drafts_keep_is_what_the_oracle_adds_up() -> None:
    rng = random.Random(2)
    for _ in range(20):
        keeps = [rng.uniform(0.2, 1.0) for _ in range(32)]
        runs = [1.0, *accumulate(keeps, mul)]
        drafts = Drafts(runs)
        for drafted in (0, 1, 2, 7, 20, 31, 32):
            expected = reference.kept_of_draft(runs, drafted)
            assert drafts.kept(drafted)[: drafted + 1] == pytest.approx(expected)
            assert drafts.mean(drafted) == pytest.approx(sum(expected[1:]))
            assert drafts.whole(drafted) == pytest.approx(expected[-1])


def test_nothing_seen_is_the_prior_and_little_seen_is_near_it() -> None:
    ends = Ends(0.8)
    assert ends.survival()[:3] == pytest.approx([1.0, 0.8, 0.64])
    ends.add(0, 0, True)
    assert 0.4 < ends.survival()[1] < 0.8
    ends.scale(0.0)
    ends.add(0, 40, False)  # deeper than what is told apart
    assert ends.reviews == 1.0
    assert ends.survival()[1] > 0.8
    assert ends.kept[:31] == [1.0] * 31
    assert ends.kept[31] == 9.0


def test_a_large_tree_tells_what_smaller_ones_would_have_given() -> None:
    gains = TreeGains()
    for _ in range(1000):
        gains.add(32, 1, [0, 3, 12, 40])
    assert gains.means([9.0] * 4)[:3] == pytest.approx([1.0, 2.0, 2.0], abs=0.05)
    assert gains.evidence(0) == 1000.0
    assert gains.evidence(TREE_SIZES.index(64)) == 0.0


def test_a_large_tree_tells_how_many_small_ones_it_stood_for() -> None:
    """Nine tokens, for which trees of 8 nodes would have needed four reviews."""
    gains, needed = TreeGains(), [(4, 0), (3, 0), (1, 0), (1, 0)]
    for _ in range(1000):
        gains.replay(32, 9, needed, [1.0] * 4)
    assert gains.means([9.0] * 4)[:3] == pytest.approx([9 / 4 - 1, 9 / 3 - 1, 8.0], abs=0.05)
    assert gains.evidence(TREE_SIZES.index(64)) == 0.0
    gains.replay(52, 9, needed, [1.0] * 4)  # hardly smaller than the largest
    assert gains.evidence(TREE_SIZES.index(64)) == 4.0


def test_a_small_tree_that_might_have_gone_on_counts_in_part() -> None:
    """The last of four gave one token, where such trees give two: half of it was seen."""
    gains = TreeGains()
    for _ in range(1000):
        gains.replay(32, 7, [(4, 1), (3, 0), (1, 0), (1, 0)], [1.0] * 4)
    assert gains.means([9.0] * 4)[0] == pytest.approx(7 / 3.5 - 1, abs=0.05)


def test_sizes_are_compared_over_the_same_reviews() -> None:
    """Small trees were reviewed on an easy text, large ones on a hard one too: they still add."""
    gains = TreeGains()
    for _ in range(100):
        gains.add(8, 0, [0, 1, 2, 3, 4, 5])
        gains.add(16, 0, [0, 9])
    small, large = gains.means([0.5] * 4)[:2]
    assert large > 1.3 * small
