"""Measured times of passes: interpolation, outliers, and the file that keeps them."""

from __future__ import annotations

from pathlib import Path

import pytest

from cascade_engine.policy import AutoCascade, LevelSet
from cascade_engine.policy.costs import PassCosts
from cascade_engine.policy.simulator import Kept, Regime, Reviewed, SimulatedRow, Text, World

TEXT = Text(World((1.0,), (Regime((), 0.5, 0.5),)), 0, 100)


def measured(passes: int = 8) -> PassCosts:
    costs = PassCosts((1000, 100))
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
    assert PassCosts((1, 1)).seconds(0, 1, 1) == 0.0
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


def test_a_file_keeps_what_was_measured(tmp_path: Path) -> None:
    path, costs = tmp_path / "times.json", PassCosts((1000, 100))
    measured().save(path, "models")
    assert costs.load(path, "models") is None
    for tokens in (1, 5, 8, 16, 20):
        assert costs.seconds(0, 1, tokens) == pytest.approx(measured().seconds(0, 1, tokens), 0.1)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        '{"format": 1}',
        '{"format": 2, "key": "models", "cells": []}',
        '{"format": 1, "key": "models", "cells": [[0, 1, 1, -1.0, 1.0]]}',
        '{"format": 1, "key": "models", "cells": [[0, 1, 1, NaN, 1.0]]}',
        '{"format": 1, "key": "models", "cells": [[0, 1]]}',
        '{"format": 1, "key": "other models", "cells": []}',
    ],
)
def test_a_corrupt_or_foreign_file_is_ignored_with_a_note(tmp_path: Path, content: str) -> None:
    path = tmp_path / "times.json"
    path.write_text(content)
    costs = PassCosts((1000,))
    note = costs.load(path, "models")
    assert note is not None
    assert str(path) in note
    assert costs.seconds(0, 1, 1) == 0.0


def test_the_file_is_optional(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    levels = LevelSet(1, (1000,), "models")
    monkeypatch.setenv("CASCADE_CACHE", str(tmp_path / "cache"))
    for policy, files in ((AutoCascade(cache=None), 0), (AutoCascade(), 1)):
        learner = policy.start(levels)
        row = SimulatedRow(TEXT, [0])
        for _ in range(200):
            learner.reviewed(0, [row], [Reviewed(0, 0, None)], [Kept(0)], 1, 1e-3)
        assert len(list(tmp_path.rglob("*.json"))) == files
    blocked = tmp_path / "file"
    blocked.write_text("not a directory")
    measured().save(blocked / "times.json", "models")  # raises nothing
