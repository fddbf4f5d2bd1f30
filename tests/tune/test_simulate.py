"""Over recorded answers the engine does what it does with models: pass by pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from cascade_engine import FixedCascade, PlainDecoding
from cascade_engine.engine.segmenting import Segmenting
from cascade_engine.errors import RequestError
from cascade_engine.policy import Policy
from cascade_engine.tune.costs import Measured, Passes
from cascade_engine.tune.recording import Choices, Recording, Recordings
from cascade_engine.tune.simulate import Simulator
from tests.tune.support import loaded, task

POLICIES: list[Policy] = [
    PlainDecoding(),
    FixedCascade([[6, 4, 4], [0, 3, 0], [0, 0, 8]]),
    FixedCascade([[0, 0, 5], [0, 0, 0], [0, 0, 5]]),
    FixedCascade([[0, 5, 3], [0, 0, 0], [0, 0, 0]]),
    FixedCascade([[6, 0, 0], [0, 2, 0], [0, 0, 0]], lenience=2.0, tree=12),
    FixedCascade([[6, 0, 0], [0, 0, 6], [0, 0, 8]], lenience=4.0),
    FixedCascade([[4, 2, 0], [0, 2, 3], [0, 0, 8]], lenience=2.0, tree=24, siblings=2),
    FixedCascade([[0, 5, 0], [0, 0, 0], [0, 0, 0]], tree=16, siblings=1),
    FixedCascade([[5, 0, 4], [0, 3, 2], [0, 0, 6]], tree=(16, 6), lenience=1.5),
    FixedCascade([[9, 0, 0], [0, 5, 0], [0, 0, 0]], min_confidence=0.5),
    FixedCascade([[9, 0, 3], [0, 0, 5], [0, 0, 0]], min_confidence=0.5),
]


class Log(Passes):
    """All passes and steps, without their times."""

    def __init__(self, neural: int) -> None:
        super().__init__(neural)
        self.events: list[Any] = []

    def _took(self, level: int, rows: int, tokens: int, tree: bool, seconds: float) -> None:
        self.events.append((level, rows, tokens, tree))

    def _step(self, events: int, tokens: int, seconds: float) -> None:
        self.events.append((events, tokens))


def passes(engine: Any, prompts: Sequence[list[int]], params: Any, policy: Policy) -> Any:
    log = Log(len(engine.neural))
    engine.set_policy(policy)
    engine.listeners.append(log)
    results = engine.generate(prompts, params)
    engine.listeners.remove(log)
    engine.check_integrity()
    return log.events, [r.token_ids for r in results], [r.sources for r in results]


@pytest.mark.parametrize("rows", [1, 4])
def test_every_pass_is_the_real_ones(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an engine that makes each pass by itself: in segments rows share them otherwise."""
    monkeypatch.setattr(Segmenting, "takes", lambda self, drafts: None)
    real = task(rows)
    simulator = Simulator(real, Measured(loaded(rows).level_set))
    for policy in POLICIES:
        expected = passes(real.engine, real.prompts, real.params, policy)
        found = passes(simulator.engine, real.prompts, real.params, policy)
        simulator.recordings.let_go()
        assert found[1] == expected[1] == real.answers, policy
        assert found[0] == expected[0], policy
        assert found[2] == expected[2], policy


def test_a_second_look_asks_no_model() -> None:
    real = task(1)
    simulator = Simulator(real, Measured(loaded(1).level_set))
    first = simulator.run(POLICIES[1])
    asked = simulator.passes
    assert asked >= 2 * len(real.prompts)
    assert simulator.run(POLICIES[1]) == first
    assert simulator.passes == asked
    assert first.tokens == sum(map(len, real.answers))
    assert simulator.engine.listeners == []


def test_a_branch_is_followed() -> None:
    recording = Recording([1, 2], [5, 6, 7], 0)
    assert [recording.node_of([5, 6, 7][:i]) for i in range(4)] == [0, 1, 2, 3]
    branch = recording.node_of([5, 8])
    assert branch == recording.child(1, 8)
    assert recording.node_of([5, 8]) == branch
    assert recording.child(branch, 9) == recording.node_of([5, 8, 9])
    assert recording.node_of([5, 6, 7, 7]) == recording.child(3, 7)
    assert recording._path(recording.node_of([5, 8, 9])) == [5, 8, 9]


class Asked:
    """A draft that notes what it is asked and always chooses 3."""

    context = 100

    def __init__(self) -> None:
        self.texts: list[tuple[list[int], int]] = []

    def choices(self, tokens: Sequence[int], wanted: int) -> list[Choices]:
        self.texts.append((list(tokens), wanted))
        return [Choices([3, 4], [0.75, 0.25])] * wanted


def test_the_answer_is_asked_for_in_one_pass_and_a_branch_once() -> None:
    recording, model = Recording([1, 2], [5, 6, 7], 1), Asked()
    branch = recording.node_of([5, 8])
    for node in (0, 3, branch, branch):
        assert recording.choices(0, node, model).tokens[0] == 3  # type: ignore[arg-type]
    assert model.texts == [([1, 2, 5, 6, 7], 4), ([1, 2, 5, 8], 1)]
    assert recording.choices(0, 1, model).prob_of(4) == 0.25  # type: ignore[arg-type]
    assert recording.choices(0, 1, model).prob_of(5) == 0.0  # type: ignore[arg-type]


def test_a_row_goes_by_the_longest_prompt() -> None:
    recordings = Recordings([[1, 2], [1, 2, 3]], [[9], [8]], [])
    assert recordings.of_row([1, 2, 3, 4]).answer == [8]
    assert recordings.of_row([1, 2, 4]).answer == [9]
    with pytest.raises(LookupError, match="no recorded answer"):
        recordings.of_row([2])
    with pytest.raises(RequestError, match="a prompt is given twice"):
        Recordings([[1], [1]], [[2], [3]], [])
