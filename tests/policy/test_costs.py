"""Measured times of passes: interpolation and outliers."""

from __future__ import annotations

import pytest

from cascade_engine.policy.planning import PassCosts


def measured(passes: int = 8) -> PassCosts:
    costs = PassCosts([1000, 100])
    for _ in range(passes):
        for tokens, seconds in ((1, 1.0), (8, 1.1), (16, 1.6)):
            costs.observe(0, 1, tokens, seconds, False)
    return costs


def test_measured_sizes_and_those_between() -> None:
    costs = measured()
    assert costs.seconds(0, 1, 1) == pytest.approx(1.0, rel=0.02)
    assert costs.seconds(0, 1, 16) == pytest.approx(1.6, rel=0.1)
    assert 1.05 < costs.seconds(0, 1, 12) < 1.4
    assert costs.seconds(0, 1, 24) > costs.seconds(0, 1, 16) > costs.seconds(0, 1, 8)


def test_what_was_never_measured() -> None:
    costs = measured()
    assert PassCosts([1, 1]).seconds(0, 1, 1) == 0.0
    assert costs.seconds(1, 1, 1) == pytest.approx(0.1, rel=0.05)  # by its weights
    assert costs.seconds(2, 1, 1) < 0.05  # a table
    assert costs.seconds(0, 4, 8) == pytest.approx(costs.seconds(0, 1, 8))
    assert costs.seconds(0, 1, 8, tree=True) == pytest.approx(costs.seconds(0, 1, 8))


def test_a_slow_moment_counts_little() -> None:
    costs = measured()
    before = costs.seconds(0, 1, 1)
    costs.observe(0, 1, 1, 50.0, False)
    assert costs.seconds(0, 1, 1) < 1.1 * before
    costs.observe(0, 1, 4, 50.0, False)  # at a size seen for the first time
    assert costs.seconds(0, 1, 4) <= costs.seconds(0, 1, 8)


def test_times_follow_the_machine() -> None:
    """A machine that becomes twice as slow makes sizes dearer that are not measured again."""
    costs = measured()
    for _ in range(400):
        costs.observe(0, 1, 8, 2.2, False)
    assert costs.seconds(0, 1, 16) > 2.0


def test_few_and_many_rows_tell_of_one_another() -> None:
    """What tokens cost is learnt with any number of rows, and what rows cost with any tokens."""
    costs = measured()
    for _ in range(30):
        costs.observe(0, 8, 8, 2.2, False)  # where one row's pass over as many takes 1.1
        costs.observe(0, 1, 8, 1.1, False)
    dearer = costs.seconds(0, 8, 8) / costs.seconds(0, 1, 8)
    assert dearer == pytest.approx(2.0, rel=0.1)
    assert costs.seconds(0, 8, 16) == pytest.approx(dearer * costs.seconds(0, 1, 16))
    assert costs.seconds(0, 7, 16) == costs.seconds(0, 8, 16) == costs.seconds(0, 30, 16)


def test_what_was_measured_is_taken_over() -> None:
    costs, again = measured(), PassCosts([1000, 100])
    again.restore(costs.cells())
    for rows, tokens in ((1, 1), (1, 12), (3, 24)):
        assert again.seconds(0, rows, tokens) == pytest.approx(costs.seconds(0, rows, tokens))
    for cell in ((0, 0, 0, 1.0, 1.0), (0, 1, 1, 1.0, 1.0), (-1, 0, 1, 1.0, 1.0), (0, 0, 1, 0.0, 1)):
        with pytest.raises(ValueError, match="a cell needs"):
            again.restore([cell])
