"""Prices: what lies between passes is told apart, and a run's price is the sum of its parts."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from cascade_engine.policy import Draft, LevelSet
from cascade_engine.tune.costs import Measured, Priced, Rest

STEP, EVENT, TOKEN = 30e-6, 5e-6, 2e-6


def step(listener: Any, reviews: int, accepted: int, seconds: float, nodes: int = 0) -> None:
    """A step of one row: drafts with a review by level 1 each, then the target's."""
    for _ in range(reviews):
        listener.drafted(2, [(None, Draft(2, 8, nodes))], 1e-6)
        listener.reviewed(1, [None], [SimpleNamespace(tree=None)], [], 9, 20e-6)
    tree = SimpleNamespace(tree=object() if nodes else None)
    verdict = SimpleNamespace(num_accepted=accepted)
    listener.reviewed(0, [None], [tree], [verdict], accepted + 2, 100e-6)
    listener.stepped([], seconds + 0.5, 0.5)


def inside(reviews: int) -> float:
    return reviews * 21e-6 + 100e-6


def test_the_rest_of_a_step_is_told_apart() -> None:
    measured = Measured(LevelSet(2, (100, 10), ""))
    for i in range(200):
        reviews, accepted = i % 4, i % 7
        rest = STEP + (2 * reviews + 1) * EVENT + (accepted + 1) * TOKEN
        # One step in fifty is disturbed.
        step(measured, reviews, accepted, inside(reviews) + rest + (0.1 if i % 50 == 7 else 0.0))
    found = measured.rest()
    assert found.step == pytest.approx(STEP, rel=0.05)
    assert found.event == pytest.approx(EVENT, rel=0.05)
    assert found.token == pytest.approx(TOKEN, rel=0.05)


def test_a_price_is_the_sum_of_passes_and_rests() -> None:
    measured = Measured(LevelSet(2, (100, 10), ""))
    for _ in range(30):
        step(measured, 2, 3, 1e-3)
    priced = Priced(2, measured.costs, Rest(STEP, EVENT, TOKEN))
    step(priced, 2, 3, 99.0)
    step(priced, 2, 3, 99.0)
    expected = 2 * (inside(2) + STEP + 5 * EVENT + 4 * TOKEN)
    assert priced.seconds == pytest.approx(expected, rel=0.02)


def test_a_draft_that_writes_alone_has_passes_of_its_own() -> None:
    """Three tokens of one row and one of another: a pass over both rows, then two over one."""
    measured = Measured(LevelSet(2, (100, 10), ""))
    drafts: Any = [(None, Draft(1, 3)), (None, Draft(1, 1))]
    for _ in range(30):
        measured.drafted(1, drafts, 80e-6)
    assert measured.costs.seconds(4, 2, 2) == pytest.approx(40e-6, rel=0.05)
    assert measured.costs.seconds(4, 1, 1) == pytest.approx(20e-6, rel=0.05)
    priced = Priced(2, measured.costs, Rest(0.0, EVENT, 0.0))
    priced.drafted(1, drafts, 99.0)
    priced.stepped([], 99.0, 0.0)
    assert priced.seconds == pytest.approx(80e-6 + EVENT, rel=0.05)


def test_trees_have_prices_of_their_own() -> None:
    measured = Measured(LevelSet(2, (100, 10), ""))
    for _ in range(30):
        measured.reviewed(0, [None], [SimpleNamespace(tree=object())], [_kept()], 16, 3e-4)  # type: ignore[arg-type, list-item]
        measured.reviewed(0, [None], [SimpleNamespace(tree=None)], [_kept()], 16, 1e-4)  # type: ignore[arg-type, list-item]
    assert measured.costs.seconds(0, 1, 16, True) == pytest.approx(3e-4, rel=0.05)
    assert measured.costs.seconds(0, 1, 16, False) == pytest.approx(1e-4, rel=0.05)


def _kept() -> Any:
    return SimpleNamespace(num_accepted=0)
