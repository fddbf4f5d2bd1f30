"""The native planner beside its oracle, and what it makes of single rows."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
from cascade_engine._C import best_plans

from cascade_engine.policy.planning import Estimate, Knowledge, PassCosts, Planner, RowRecord
from cascade_engine.policy.plans import Plan
from tests.reference import planner as reference
from tests.reference.pass_costs import PassCosts as ReferenceCosts

SIZES = (1, 2, 3, 5, 8, 16, 31, 40, 70, 130, 300)


def worlds() -> Iterator[tuple[int, Knowledge, reference.Knowledge, PassCosts, ReferenceCosts]]:
    """Random knowledge and costs, the same on both sides."""
    for seed in range(12):
        rng = random.Random(seed)
        neural = 1 + seed % 4
        weights = [round(1000 * 0.3**level) for level in range(neural)]
        known, expected = Knowledge(neural), reference.Knowledge(neural)
        costs, expected_costs = PassCosts(weights), ReferenceCosts(weights)
        for (level, source), ends in expected.ends.items():
            keeps = rng.uniform(0.1, 0.97)
            for _ in range(rng.choice([0, 3, 60])):
                kept = 0
                while kept < rng.choice([2, 8, 40]) and rng.random() < keeps:
                    kept += 1
                start, rejected = rng.choice([0, 0, 3, 40]), rng.random() < 0.8
                ends.add(start, kept, rejected)
                known.ends(level, source).add(start, kept, rejected)
        for (drafter, above), confident in expected.confident.items():
            for _ in range(rng.choice([0, 5, 60])):
                drafted, most = rng.randrange(1, 30), rng.choice([4, 24])
                seen = min(rng.randrange(drafted + 1), most), min(drafted, most), most
                confident.add(*seen)
                known.confident(drafter, bool(above)).add(*seen)
        for drafter, gains in enumerate(expected.trees):
            for _ in range(rng.choice([0, 20])):
                ranks = sorted(rng.sample(range(64), rng.randrange(6)))
                nodes, trunk = rng.choice([8, 16, 64]), rng.randrange(2)
                needed = [(n, rng.randrange(4)) for n in sorted(rng.choices(range(1, 9), k=4))]
                for each in (gains, known.trees(drafter)):
                    each.add(nodes, trunk, ranks)
                    each.replay(nodes, 9, needed[::-1], [1.0, 1.5, 2.0, 2.5])
        known.ended, known.emitted = expected.ended, expected.emitted = rng.uniform(0, 9), 100.0
        for _ in range(150):
            level, rows = rng.randrange(neural + 1), rng.choice([1, 3, 16])
            tokens, tree = rows * rng.choice(SIZES), rng.random() < 0.2
            seconds = rng.uniform(0.9, 3.0) * 0.3**level * (1.0 + 0.03 * tokens)
            for each in (costs, expected_costs):
                each.observe(level, rows, tokens, seconds, tree)
        yield seed, known, expected, costs, expected_costs


@pytest.mark.parametrize("hope", [0.0, 0.7])
def test_estimates_are_those_of_the_oracle(hope: float) -> None:
    for seed, known, expected, costs, expected_costs in worlds():
        rows, overhead = 1 + 5 * (seed % 3), 0.01 * (seed % 2)
        oracle = reference.Planner(
            expected, known.neural, expected_costs, rows, overhead, bool(seed % 5), hope
        )
        wanted = sorted(oracle.by_kind().values(), key=lambda each: each.plan)
        found = best_plans(known, costs, rows, overhead, bool(seed % 5), hope)
        found = sorted(found, key=lambda each: each.plan)
        assert [each.plan for each in found] == [each.plan for each in wanted]
        for mine, theirs in zip(found, wanted, strict=True):
            assert mine.tokens == pytest.approx(theirs.tokens, rel=1e-9)
            assert mine.seconds == pytest.approx(theirs.seconds, rel=1e-9)


def test_costs_are_those_of_the_oracle() -> None:
    for _, known, _, costs, expected in worlds():
        for level in range(known.neural + 1):
            for rows in (1, 2, 5, 16, 40):
                for tokens in (*range(1, 140), 200, 1000):
                    for tree in (False, True):
                        wanted = expected.seconds(level, rows, tokens, tree)
                        assert costs.seconds(level, rows, tokens, tree) == pytest.approx(wanted)
                assert costs.reach(level, rows) == expected.reach(level, rows)


def decoded(keeps: float, known: Knowledge) -> RowRecord:
    """A row whose drafts of six tokens by level 1 of 2 are kept with that chance."""
    rng, row = random.Random(1), RowRecord(2)
    for i in range(40):
        kept = 0
        while kept < 6 and rng.random() < keeps:
            kept += 1
        known.drafted(row, 1, 2, 0, 0, 10 * i + 6)
        known.reviewed(row, Estimate(Plan(drafter=1, tokens=6)), 10 * i, 10 * i + 6, kept, None, 0)
    return row


def prepared() -> tuple[Knowledge, PassCosts]:
    """Rows in general keep 0.75 of what level 1 drafts; passes get dearer with rows and tokens."""
    known, costs = Knowledge(2), PassCosts([1000, 100])
    ends = known.ends(0, 1)
    for kept, count in enumerate((100, 75, 56, 42, 32, 24)):
        for _ in range(count // 4):
            ends.add(0, kept, True)
    for _ in range(300):
        known.ends(0, 2).add(0, 0, True)
    for _ in range(8):
        for rows in (1, 2, 3, 4, 8):
            for tokens in (1, 4, 8, 16, 32, 48):
                costs.observe(0, rows, tokens, 1.0 + 0.05 * tokens, False)
                costs.observe(1, rows, tokens, 0.1 + 0.01 * tokens, False)
    return known, costs


def test_trees_tell_of_the_chain_in_them_and_of_smaller_trees() -> None:
    """Three likeliest nodes, another one, a likeliest one, and none behind it; then a chain, whose
    first token was wrong, goes on where the tree ended."""
    known, row = Knowledge(1), RowRecord(1)
    likeliest = [True, True, True, False, True, False]
    tree = 16, [0, 1, 2, 5, 6], likeliest, [(2, 0), (1, 0), (1, 0), (1, 0)]
    known.reviewed(row, Estimate(Plan(nodes=16)), 0, 0, 0, tree, 6)
    ends = known.ends(0, 1)
    assert ends.kept[:4] == [2.0, 1.0, 1.0, 0.0]
    assert ends.rejected[:4] == [0.0, 0.0, 0.0, 1.0]
    assert known.trees(0).reviews == [2.0, 1.0, 0.0, 0.0]
    known.reviewed(row, Estimate(Plan(tail=2)), 6, 8, 0, None, 7)
    assert ends.rejected[0] + ends.rejected[2] == pytest.approx(1.0)
    assert ends.rejected[2] > 0.4
    with pytest.raises(ValueError, match="likeliest"):
        known.reviewed(row, Estimate(Plan(nodes=16)), 7, 7, 0, (16, [0], [True], tree[3]), 9)


def look(planner: Planner, rows: list[RowRecord], allowed: float = -1.0) -> Any:
    choice = planner.look(rows, 0.0, False, allowed, 64.0, False)
    return choice.best if allowed < 0.0 else choice.trial


def test_a_row_that_keeps_what_rows_keep_is_a_row_in_general() -> None:
    known, _ = prepared()
    general = known.ends(0, 1).survival()
    assert known.survival(RowRecord(2), 0, 1) == pytest.approx(general, abs=1e-6)
    rows = {keeps: decoded(keeps, known) for keeps in (0.0, 0.75, 0.97)}
    assert known.hazard(rows[0.0], 0, 1) > 1.8
    assert 0.6 < known.hazard(rows[0.75], 0, 1) < 1.4
    assert known.hazard(rows[0.97], 0, 1) < 0.6
    assert known.hazard(decoded(1.0, known), 0, 1) == 0.5  # at the least
    assert known.survival(rows[0.0], 0, 1)[1] < general[1]


def test_each_row_finds_its_own_plan() -> None:
    """A row whose drafts are kept gets longer ones, one whose drafts are not gets none."""
    known, costs = prepared()
    planner = Planner(known, costs, False)
    good, poor = decoded(0.97, known), decoded(0.0, known)
    assert look(planner, [good]).plan[1] > look(planner, [RowRecord(2)]).plan[1] > 0
    assert look(planner, [poor]).plan == Plan()


def test_rows_that_gain_nothing_decode_plainly_beside_others() -> None:
    known, costs = prepared()
    planner = Planner(known, costs, False)
    rows = [decoded(keeps, known) for keeps in (0.0, 0.97, 0.0, 0.97)]
    found = look(planner, rows)
    assert found.drafting == 2
    planner.adopt(found)
    assert [row.drafts for row in rows] == [False, True, False, True]
    alike = [decoded(0.9, known) for _ in range(4)]
    planner.adopt(look(planner, alike))
    assert all(row.drafts for row in alike)


def searched(keeps: float, known: Knowledge) -> RowRecord:
    """A row whose tails of six tokens are kept with that chance."""
    rng, row, length = random.Random(1), RowRecord(1), 0
    for _ in range(40):
        kept = 0
        while kept < 6 and rng.random() < keeps:
            kept += 1
        plan, start = Estimate(Plan(tail=6)), length
        length += kept + 1
        known.reviewed(row, plan, start, start + 6, kept, None, length)
    return row


def test_rows_that_share_a_plan_are_expected_to_keep_their_mean() -> None:
    known, costs = Knowledge(1), PassCosts([1000])
    for tokens in (1, 4, 8, 16, 32, 48):
        costs.observe(0, 2, tokens, 1.0 + 0.05 * tokens, False)
    planner = Planner(known, costs, False)
    for keeps in (0.0, 0.3, 0.95, 0.95):
        searched(keeps, known)
    one, other = searched(0.9, known), searched(0.75, known)
    good, poor, mixed, turned = (
        look(planner, rows) for rows in ([one] * 2, [other] * 2, [one, other], [other, one])
    )
    assert good.plan == poor.plan == mixed.plan
    assert good.tokens > 1.1 * poor.tokens
    assert mixed.tokens == pytest.approx((good.tokens + poor.tokens) / 2)
    assert turned.tokens == pytest.approx(mixed.tokens)


def test_a_run_goes_on_behind_one_token_that_nobody_drafted() -> None:
    """A draft of two tokens is kept whole, and a token written behind it. The next draft begins
    there, or one or two tokens later."""
    deepest = []
    for start in (3, 4, 5):
        known, row = Knowledge(1), RowRecord(1)
        for _ in range(200):
            known.ends(0, 1).add(0, 20, True)
        known.reviewed(row, Estimate(Plan(tail=2)), 0, 2, 2, None, 3)
        before = known.ends(0, 1).rejected
        known.reviewed(row, Estimate(Plan(tail=2)), start, start + 2, 0, None, start + 1)
        new = [after - was for after, was in zip(known.ends(0, 1).rejected, before, strict=True)]
        deepest.append(max(range(len(new)), key=new.__getitem__))
    assert deepest == [3, 4, 0]


def test_few_rows_try_for_many() -> None:
    """What looks poor after a few reviews is tried by some of eight rows, if that may cost
    anything; what looks nearly as good as the best by all."""
    known, costs = prepared()
    poor = Knowledge(2)
    for source in (1, 2):
        for _ in range(4):
            poor.ends(0, source).add(0, 0, True)
    rows = [RowRecord(2) for _ in range(8)]
    planner = Planner(poor, costs, False)
    trial = look(planner, rows, allowed=100.0)
    assert trial is not None
    assert trial.drafting < 8
    assert planner.look(rows, 0.0, False, -1.0, 64.0, False).trial is None
    known.ends(0, 1).scale(0.02)
    assert look(Planner(known, costs, False), rows, allowed=100.0).drafting == 8


def test_a_kind_of_plan_that_gives_less_than_it_should_is_left() -> None:
    known, costs = prepared()
    planner, rows = Planner(known, costs, False), [RowRecord(2)]
    first = look(planner, rows)
    planner.adopt(first)
    for _ in range(400):
        expected = planner.add(1, 1.0, first.seconds)
    assert expected < 0.9 * first.tokens
    assert look(planner, rows).kind != first.kind
    planner.forget()
    assert look(planner, rows).kind == first.kind


def test_what_a_draft_has_yet_to_read_is_charged_to_its_plans() -> None:
    known, costs = prepared()
    row = decoded(0.9, known)
    known.reviewed(row, Estimate(Plan()), 9999, 9999, 0, None, 10000)
    planner = Planner(known, costs, False)
    assert look(planner, [row]).plan[0] == 0
    known.drafted(row, 1, 2, 0, 0, 10000)
    assert look(planner, [row]).plan[0] == 1


def test_levels_that_are_not_there() -> None:
    known = Knowledge(2)
    for level, source in ((0, 3), (1, 1), (-1, 0)):
        with pytest.raises(IndexError, match="reviews drafts of level"):
            known.pair(level, source)


def test_trials_stop_when_enough_is_known() -> None:
    known, costs = prepared()
    planner, rows = Planner(known, costs, False), [RowRecord(2)]
    for source in (1, 2):
        for _ in range(5000):
            known.ends(0, source).add(0, 0, True)
            known.ends(1, 2).add(0, 0, True)
    assert look(planner, rows).plan == Plan()
    assert look(planner, rows, allowed=100.0) is None
    assert planner.look(rows, 0.0, False, 100.0, 64.0, True).trial is not None  # a refresh
