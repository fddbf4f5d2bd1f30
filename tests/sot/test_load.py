"""When points pay, and how deep drafts go beside many rows."""

from __future__ import annotations

import pytest

from cascade_engine import FixedCascade, SamplingParams
from cascade_engine.engine import Capacity
from cascade_engine.policy.expected import expected_tokens
from cascade_engine.sot import SkeletonOfThought, SotOptions
from cascade_engine.sot.load import Expectations, StepCosts, depth_of, narrowed, room_for_points
from tests.sot.support import embedded_engine

FREE = Capacity(running=0, waiting=0, free_rows=16, free_tokens=100_000)


def measured(start: float, slope: float, acceptance: float = 0.8) -> StepCosts:
    """Costs as if steps took start + slope * tokens seconds."""
    costs = StepCosts()
    for rows, depth in [(1, 6), (6, 6), (3, 4), (1, 6)] * 20:
        seconds = start + slope * rows * (depth + 1)
        costs.observe(
            rows, depth, seconds, round(100 * rows * expected_tokens(acceptance, depth)) // 100
        )
    return costs


def test_seconds_are_those_of_the_line() -> None:
    costs = measured(0.01, 0.001)
    assert costs.seconds(6, 6) == pytest.approx(0.052)
    assert costs.seconds(1, 0) == pytest.approx(0.011)
    assert costs.acceptance == pytest.approx(0.8, abs=0.1)
    assert StepCosts().seconds(1, 0) is None
    one_size = StepCosts()
    for _ in range(9):
        one_size.observe(2, 3, 0.1, 4)
    assert one_size.seconds(2, 3) is None


def test_one_budget_is_split_between_rows_and_depth() -> None:
    costs = measured(0.01, 0.001)
    depths = [costs.best_depth(rows, 6) for rows in (1, 2, 4, 8, 16, 64)]
    assert depths == sorted(depths, reverse=True)
    assert depths[0] == 6
    assert depths[-1] <= 2
    # Tokens that cost nothing leave depth as it is; nothing known, too.
    assert measured(0.01, 0.0).best_depth(64, 6) == 6
    assert StepCosts().best_depth(64, 6) == 6


def test_a_narrowed_cascade_drafts_less() -> None:
    policy = FixedCascade([[6, 4], [0, 8]], 2.0)
    assert depth_of(policy) == 10
    assert narrowed(policy, 7) == FixedCascade([[6, 1], [0, 7]], 2.0)
    assert narrowed(policy, 3) == FixedCascade([[3, 0], [0, 3]], 2.0)
    wide = FixedCascade([[6, 0], [0, 8]], tree=(32, 8), siblings=2)
    assert depth_of(wide) == 32
    assert narrowed(wide, 5) == FixedCascade([[5, 0], [0, 5]], tree=(5, 5), siblings=2)
    assert narrowed(wide, 0) == FixedCascade([[0, 0], [0, 0]])
    assert narrowed(policy, 0) == FixedCascade([[0, 0], [0, 0]], 2.0)


@pytest.mark.parametrize(
    ("capacity", "reason"),
    [
        (FREE._replace(free_rows=1), "1 rows are free"),
        (FREE._replace(free_rows=4, waiting=6), "0 rows are free"),
        (FREE._replace(free_tokens=500), "room for 500 tokens"),
    ],
)
def test_without_room_there_are_no_points(capacity: Capacity, reason: str) -> None:
    decision = room_for_points(capacity, StepCosts(), Expectations(), 6)
    assert not decision.use_sot
    assert reason in decision.reason


def test_points_are_used_where_steps_do_not_grow() -> None:
    assert room_for_points(FREE, StepCosts(), Expectations(), 6).use_sot
    assert room_for_points(FREE, measured(0.01, 0.0), Expectations(), 6).use_sot
    # Where time goes with tokens, points only add the skeleton.
    assert not room_for_points(FREE, measured(0.0, 0.001), Expectations(), 6).use_sot


def test_a_busy_engine_says_no_and_a_free_one_yes() -> None:
    engine = embedded_engine()
    sot = SkeletonOfThought(engine, SotOptions(prompts="embedded", use="auto"))
    assert sot.room().use_sot
    params = SamplingParams(max_tokens=60, ignore_eos=True)
    ids = [engine.add_request(f"Question: {i}?\nAnswer:", params) for i in range(16)]
    assert not sot.room().use_sot
    engine.step()
    assert engine.capacity().running == 16
    assert not sot.room().use_sot
    for request_id in ids:
        engine.abort(request_id)
    assert sot.room().use_sot
    assert engine.capacity().free_rows == 16


def test_finished_requests_do_not_count_as_load() -> None:
    engine = embedded_engine()
    engine.clear_cache()
    empty = engine.capacity()
    engine.generate("Question: How can I save water at home?\nAnswer:")
    assert engine.capacity() == empty
