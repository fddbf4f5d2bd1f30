"""The papers' formulas against the probabilities they sum up, in exact rationals."""

from __future__ import annotations

import random
from fractions import Fraction

import pytest

from cascade_engine.policy import expected

HALF, MOST = Fraction(1, 2), Fraction(9, 10)


def tokens_of_review(acceptance: Fraction, drafted: int) -> dict[int, Fraction]:
    """Probability of each number of tokens: accepted ones, then the reviewer's own."""
    chances = {n + 1: acceptance**n * (1 - acceptance) for n in range(drafted)}
    return {**chances, drafted + 1: acceptance**drafted}


def draft_lengths(reviews: int, inner: Fraction, drafted: int) -> dict[int, Fraction]:
    """Probability of each length of a draft that is written in several reviews."""
    total = {0: Fraction(1)}
    for _ in range(reviews):
        after: dict[int, Fraction] = {}
        for length, chance in total.items():
            for tokens, other in tokens_of_review(inner, drafted).items():
                after[length + tokens] = after.get(length + tokens, Fraction(0)) + chance * other
        total = after
    return total


def mean(chances: dict[int, Fraction]) -> Fraction:
    return sum((n * chance for n, chance in chances.items()), Fraction(0))


@pytest.mark.parametrize("acceptance", [Fraction(0), HALF, MOST, Fraction(1)])
@pytest.mark.parametrize("drafted", [0, 1, 2, 7])
def test_tokens_of_one_review(acceptance: Fraction, drafted: int) -> None:
    chances = tokens_of_review(acceptance, drafted)
    assert sum(chances.values()) == 1
    got = expected.expected_tokens(float(acceptance), drafted)
    assert got == pytest.approx(float(mean(chances)), rel=1e-12)
    for x in (Fraction(1, 3), MOST, Fraction(1), Fraction(2)):
        exact = sum(chance * x**n for n, chance in chances.items())
        got = expected.review_generating_function(float(acceptance), drafted, float(x))
        assert got == pytest.approx(float(exact), rel=1e-12)


@pytest.mark.parametrize("acceptance", [Fraction(0), HALF, MOST, Fraction(1)])
@pytest.mark.parametrize(("reviews", "drafted"), [(0, 4), (1, 0), (1, 3), (4, 3)])
def test_tokens_of_a_cascade(acceptance: Fraction, reviews: int, drafted: int) -> None:
    exact = Fraction(0)
    for length, chance in draft_lengths(reviews, HALF, drafted).items():
        exact += chance * mean(tokens_of_review(acceptance, length))
    got = expected.cascade_tokens(float(acceptance), reviews, 0.5, drafted)
    assert got == pytest.approx(float(exact), rel=1e-12)


def test_improvement_is_tokens_over_time() -> None:
    assert expected.walltime_improvement(0.5, 2, 0.25) == pytest.approx(1.75 / 1.5)
    assert expected.walltime_improvement(0.5, 2, 0.25, 1.1) == pytest.approx(1.75 / 1.6)
    tokens = expected.cascade_tokens(0.8, 3, 0.5, 10)
    improvement = expected.cascade_improvement(0.8, 3, 0.5, 10, 0.2, 0.01, 1.5)
    assert improvement == pytest.approx(tokens / (3 * 0.2 + 30 * 0.01 + 1.5))
    # A cascade whose lowest level writes nothing is a draft that writes token by token.
    plain = expected.walltime_improvement(0.8, 3, 0.2)
    assert expected.cascade_improvement(0.8, 3, 0.5, 0, 0.2) == pytest.approx(plain)


def test_a_review_costs_more_with_width_and_rows() -> None:
    assert expected.review_cost(1.0) == 1.0
    assert expected.review_cost(9.0, 1, 0.02) == pytest.approx(1.16)
    assert expected.review_cost(5.0, 4, 0.02, 16.0, 0.1) == pytest.approx(1.0 + 0.3 + 0.4)
    # With free tokens and one row it is the papers' formula.
    papers = expected.walltime_improvement(0.8, 5, 0.2)
    assert expected.batch_improvement(0.8, 5, 0.2, 1, 0.0) == pytest.approx(papers)


@pytest.mark.parametrize(("rows", "knee"), [(1, 16.0), (4, 16.0), (16, 8.0)])
def test_improvement_of_a_batch_by_simulation(rows: int, knee: float) -> None:
    """Each row drafts until its review rejects; the times are added up pass by pass."""
    rng = random.Random(rows)
    acceptance, drafted, cost, token_cost, beyond = 0.7, 4, 0.15, 0.02, 0.08

    def seconds(tokens: int) -> float:
        return 1.0 + sum(token_cost if t < knee else beyond for t in range(1, tokens))

    emitted, spent = 0, 0.0
    for _ in range(20000 // rows):
        spent += drafted * cost * seconds(rows) + seconds(rows * (drafted + 1))
        for _ in range(rows):
            kept = 0
            while kept < drafted and rng.random() < acceptance:
                kept += 1
            emitted += kept + 1
    simulated = emitted / spent / (rows / seconds(rows))
    formula = expected.batch_improvement(acceptance, drafted, cost, rows, token_cost, knee, beyond)
    assert formula == pytest.approx(simulated, rel=0.02)
