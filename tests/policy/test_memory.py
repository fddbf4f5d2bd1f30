"""The file that keeps what a policy learnt."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cascade_engine.policy import AutoCascade, LevelSet
from cascade_engine.policy.memory import load, save
from cascade_engine.policy.planning import Knowledge, PassCosts
from cascade_engine.policy.simulated_world import Regime, Text, World
from cascade_engine.policy.simulator import Emitted, Kept, Reviewed, SimulatedRow, Simulation
from tests.policy.worlds import random_world

TEXT = Text(World((1.0,), (Regime((), 0.5, 0.5),)), 0, 100)


def learnt() -> tuple[PassCosts, Knowledge]:
    costs, known = PassCosts([1000]), Knowledge(1)
    for _ in range(200):
        costs.observe(0, 1, 8, 1.5, False)
        known.ends(0, 1).add(0, 3, True)
        known.trees(0).add(16, 0, [0, 2, 9])
    return costs, known


def test_what_was_learnt_is_there_again(tmp_path: Path) -> None:
    path, costs, known = tmp_path / "policy.json", PassCosts([1000]), Knowledge(1)
    save(path, "models", *learnt())
    assert load(path, "models", costs, known) is None
    assert costs.seconds(0, 1, 8) == pytest.approx(1.5, rel=0.1)
    before = learnt()[1].ends(0, 1)
    before.scale(24.0 / before.reviews)  # as much as a file is worth
    assert known.ends(0, 1).survival() == pytest.approx(before.survival(), abs=1e-3)
    assert known.trees(0).means([1.0] * 4)[0] == pytest.approx(2.0, abs=0.2)
    assert known.ends(0, 1).reviews <= 24.0  # another text soon outweighs it
    assert known.trees(0).reviews[0] <= 24.0
    assert list(tmp_path.iterdir()) == [path]


def test_where_confident_drafts_end_is_there_again(tmp_path: Path) -> None:
    path, known = tmp_path / "policy.json", Knowledge(3)
    for above in (False, True):
        for _ in range(12):
            known.confident(1, above).add(3, 5 + above, 8)
    save(path, "models", PassCosts([9, 3, 1]), known)
    again = Knowledge(3)
    assert load(path, "models", PassCosts([9, 3, 1]), again) is None
    for above in (False, True):
        found = again.confident(1, above)
        assert found.kept.rejected[3] == found.drafted.rejected[5 + above] == 12.0
        assert again.confident(2, above).kept.reviews == 0.0
    content = json.loads(path.read_text())
    for wrong in (content["confident"][:1], [[[[], [], 0.0]] * 2] * 4, [[]] * 4):
        path.write_text(json.dumps({**content, "confident": wrong}))
        assert load(path, "models", PassCosts([9, 3, 1]), Knowledge(3)) is not None


@pytest.mark.parametrize(
    "changes",
    [
        {"format": 1},
        {"key": "other models"},
        {"key": None},
        {"cells": [[0, 0, 1, -1.0, 1.0]]},
        {"cells": [[0, 1, 1, 1.0, 1.0]]},
        {"cells": [[0, 0, 1, float("nan"), 1.0]]},
        {"cells": [[0, 1]]},
        {"ends": []},
        {"ends": [[0, 1, [1.0], [1.0], 1.0]]},
        {"ends": [[0, 1, [1.0] * 32, [1.0] * 32, -1.0]]},
        {"ends": [[0, 1, [1.0] * 32, [1.0] * 32]]},
        {"ends": [[0, 1, "x", [], 1.0]]},
        {"trees": [[[1.0], [1.0], [1.0]]]},
        {"trees": None},
        "",
        "{",
        "[]",
    ],
)
def test_a_corrupt_or_foreign_file_is_ignored_with_a_note(
    tmp_path: Path, changes: dict[str, Any] | str
) -> None:
    path, costs, known = tmp_path / "policy.json", PassCosts([1000]), Knowledge(1)
    save(path, "models", *learnt())
    if isinstance(changes, str):
        path.write_text(changes)
    else:
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    note = load(path, "models", costs, known)
    assert note is not None
    assert str(path) in note
    assert costs.seconds(0, 1, 1) == 0.0
    assert known.ends(0, 1).reviews == 0.0


def test_the_file_is_optional(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    levels = LevelSet(1, (1000,), "models")
    monkeypatch.setenv("CASCADE_CACHE", str(tmp_path / "cache"))
    for policy, files in ((AutoCascade(cache=None), 0), (AutoCascade(), 1)):
        learner, row = policy.start(levels), SimulatedRow(TEXT, [0])
        for _ in range(200):
            if learner.listening:
                learner.reviewed(0, [row], [Reviewed(0, 0, None)], [Kept(0)], 1, 1e-2)
            learner.stepped([Emitted(range(1), None)], 1e-2, 0.0)
        assert len(list(tmp_path.rglob("*.json"))) == files
    blocked = tmp_path / "file"
    blocked.write_text("not a directory")
    save(blocked / "policy.json", "models", *learnt())  # raises nothing


def test_a_second_run_begins_better(tmp_path: Path) -> None:
    """In worlds where the first hundred tokens of a cold start go on trials."""
    first = second = 0.0
    for seed in (13, 23, 34, 35):
        policy = AutoCascade(cache=tmp_path / str(seed))
        Simulation(random_world(seed), policy, seed, 1000).run()
        second += Simulation(random_world(seed), policy, seed + 500, 100).run()
        first += Simulation(random_world(seed), AutoCascade(cache=None), seed + 500, 100).run()
    assert second > 1.1 * first
