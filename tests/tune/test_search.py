"""The search: settings that change something, drafts left out, and the frontier."""

from __future__ import annotations

from typing import Any

import pytest

from cascade_engine import Engine, FixedCascade
from cascade_engine.demo.family import llama_family
from cascade_engine.policy import Policy
from cascade_engine.tune.search import (
    COPIED,
    Candidate,
    Found,
    candidate_of,
    frontier,
    search,
    starts,
)
from cascade_engine.tune.simulate import Outcome
from tests.tune.support import loaded, task

optuna = pytest.importorskip("optuna", reason="needs the tune extra")


def candidate(lenience: bool = True, **given: Any) -> Candidate:
    values: dict[str, Any] = {
        "draft 1": False,
        "draft 2": False,
        "tree": 0,
        "copied for the target": 0,
        "lenience": 2.0,
        "siblings": 2,
        "min confidence": 0.0,
        **{name.replace("_", " "): value for name, value in given.items()},
    }
    return candidate_of(optuna.trial.FixedTrial(values), 2, lenience)


def test_what_changes_nothing_is_left_out() -> None:
    assert candidate() == Candidate((), FixedCascade([[0]]))
    assert candidate(copied_for_the_target=4) == Candidate((), FixedCascade([[4]]))
    assert candidate(tree=16) == Candidate((), FixedCascade([[0]], tree=16))
    # Given, but nobody asks it.
    unasked = candidate(draft_2=True, target_from_2=0, copied_for_2=8, tree=8)
    assert unasked == Candidate((), FixedCascade([[0]], tree=8))
    # It reviews nothing, so that lenience would change nothing.
    given = {"draft_2": True, "target_from_2": 4, "copied_for_2": 0}
    assert candidate(**given) == Candidate((2,), FixedCascade([[4, 0], [0, 0]]))
    stops = FixedCascade([[4, 0], [0, 0]], min_confidence=0.4)
    assert candidate(**given, min_confidence=0.4) == Candidate((2,), stops)
    assert candidate(copied_for_the_target=4, min_confidence=0.4).policy == FixedCascade([[4]])


def test_drafts_below_one_another() -> None:
    values = {"draft_1": True, "draft_2": True, "target_from_1": 6, "target_from_2": 0}
    both = candidate(**values, **{"1_from_2": 3, "copied_for_1": 2, "copied_for_2": 8, "tree": 24})
    matrix = [[6, 0, 0], [0, 3, 2], [0, 0, 8]]
    assert both == Candidate((1, 2), FixedCascade(matrix, 2.0, 24, 2))
    # The larger one is not asked, and so does not ask the smaller one.
    values["target_from_1"] = 0
    none = candidate(**values, **{"1_from_2": 3, "copied_for_1": 2, "copied_for_2": 8, "tree": 24})
    assert none == Candidate((), FixedCascade([[0]], tree=24))
    without = candidate(False, draft_2=True, target_from_2=4, copied_for_2=3)
    assert without.policy.lenience == 1.0


@pytest.mark.parametrize(
    "chosen",
    [
        Candidate((), FixedCascade([[6]])),
        Candidate((), FixedCascade([[0]], tree=16)),
        Candidate((2,), FixedCascade([[6, 3], [0, 8]], 3.0, min_confidence=0.6)),
        Candidate((1,), FixedCascade([[4, 2], [0, 6]], tree=(12, 6), siblings=1)),
        Candidate((1, 2), FixedCascade([[6, 4, 4], [0, 3, 2], [0, 0, 8]])),
    ],
)
def test_drafts_that_are_loaded_but_not_used_change_nothing(chosen: Candidate) -> None:
    family = llama_family()
    paths = [family.target.parent / "llama-middle", *family.drafts]
    used = [paths[draft - 1] for draft in chosen.drafts]
    alone = Engine.load(family.target, used, family.table, threads=1, max_rows=1, reuse_cache=False)
    expected = counts(alone, chosen.policy)
    found = counts(loaded(1), chosen.over(3))
    kept = [0, *chosen.drafts, 3]
    assert [found[level] for level in kept] == expected
    assert all(found[level] == 0 for level in {1, 2} - set(chosen.drafts))


def counts(engine: Engine, policy: Policy) -> list[int]:
    engine.set_policy(policy)
    engine.reset_stats()
    engine.generate(task(1).prompts, task(1).params)
    return [level["passes"] for level in engine.stats()["levels"]]


class Landscape:
    """A simulator with a best setting: draft 2 with 6 tokens, copies of 8."""

    def __init__(self) -> None:
        self.seen: list[FixedCascade] = []

    def run(self, policy: FixedCascade) -> Outcome:
        self.seen.append(policy)
        matrix = policy.k_matrix
        distance = abs(matrix[0][1] - 6) + abs(matrix[2][2] - 8) + 3 * matrix[0][0] + matrix[0][2]
        distance += policy.tree[0] + policy.siblings
        return Outcome(100, 50, 1.0 + distance)


def test_the_search_finds_the_best_setting() -> None:
    world = Landscape()
    found = search(world, 2, 150, seed=1)  # type: ignore[arg-type]
    assert found[0].candidate.drafts == (2,)
    assert found[0].candidate.policy.k_matrix == ((6, 0), (0, 8))
    rates = [each.outcome.tokens_per_second for each in found]
    assert rates == sorted(rates, reverse=True)
    assert len(world.seen) == len(found) == len({repr(each.candidate) for each in found})
    again = search(Landscape(), 2, 150, seed=1)  # type: ignore[arg-type]
    assert again == found


def test_it_begins_with_settings_that_are_known_to_work() -> None:
    assert len(starts(2)) == 5
    world = Landscape()
    search(world, 2, 5, seed=1)  # type: ignore[arg-type]
    assert world.seen[0].k_matrix == ((0, 0, 0),) * 3
    assert world.seen[1].k_matrix[0] == (0, 0, 8)
    assert world.seen[2].tree[0] == 16
    assert world.seen[3].k_matrix == ((6, 0, 0), (0, 0, 8), (0, 0, 8))
    assert world.seen[4].k_matrix == ((0, 6, 0), (0, 0, 0), (0, 0, 8))
    assert 8 in COPIED


def test_the_frontier_is_what_none_beats_in_both() -> None:
    def found(rate: float, per_call: float) -> Found:
        return Found(
            Candidate((), FixedCascade([[1]])), Outcome(60, round(60 / per_call), 60 / rate)
        )

    points = [found(10, 2), found(9, 3), found(8, 2), found(7, 3), found(6, 6), found(10, 1)]
    assert frontier(points) == [points[0], points[1], points[4]]
