"""What actions of the device leave between them: rows that the host changes, memory that moves,
learnt tokens that grow, logits that are no numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from cascade_engine.levels import (
    NeuralLevel,
    Proposal,
    Speculated,
    Speculation,
    StatisticalLevel,
)
from cascade_engine.ops import Ask, Sampler
from cascade_engine.ops.launch import Launcher
from tests.cuda.support import BF16, RecordingLauncher
from tests.cuda.test_backend import SHAPE, make_level, random_row
from tests.ops.support import random_weights


def test_a_row_whose_logits_are_no_numbers_stays_as_it_was(run: Launcher) -> None:
    weights = random_weights(2, BF16, **SHAPE)
    level = make_level(run, weights)
    statistical = StatisticalLevel(level.backend, level.rows)
    speculation = Speculation.of(level, statistical)
    assert speculation is not None
    level.rows.write(0, [1, 2, 3] * 4)
    level.prefill(0, 11)
    level.weights.head.memory.fill_(torch.nan)  # type: ignore[attr-defined]
    asked = [Speculated(Proposal(0, 12, 3), 3, Sampler(temperature=0.0))]
    with pytest.raises(ValueError, match="the logits for position 12 are NaN"):
        speculation.review(asked, False, 1)
    assert level.pages.length[0] == 11
    assert level.rows.read(0, 0, 12) == [1, 2, 3] * 4
    level.pages.check_integrity()


def test_what_passes_of_the_host_changed_is_sent_again(graphs: Launcher) -> None:
    """A row gets the pages and tokens back that it had, after another one was there."""
    weights, sampler = random_weights(2, BF16, **SHAPE), Sampler(temperature=0.0)
    level = make_level(graphs, weights)
    statistical = StatisticalLevel(level.backend, level.rows)
    speculation = Speculation.of(level, statistical)
    assert speculation is not None
    first, second = [t % 5 for t in random_row(33)], [50 + t % 5 for t in random_row(33)]
    asked = [Speculated(Proposal(0, 33, 4), 4, sampler)]
    level.rows.write(0, first)
    level.prefill(0, 32)
    [(item, verdict)] = speculation.review(asked, False, 1)
    expected = level.rows.read(0, 33, 34 + verdict.num_accepted)
    level.truncate(0, 32)
    level.fork(0, 1, 32)
    level.truncate(0, 0)
    level.rows.write(0, second)
    level.prefill(0, 32)
    level.truncate(0, 0)
    level.fork(1, 0, 32)
    level.rows.write(0, first)
    [(again, verdict)] = speculation.review(asked, False, 1)
    assert again.drafted == item.drafted
    assert level.rows.read(0, 33, 34 + verdict.num_accepted) == expected
    level.truncate(0, 32)
    level.rows.write(0, first)
    drafts = speculation._action.run([ask_of(level, 33, sampler)], False)[0].tokens
    (count,) = statistical.propose([Proposal(0, 33, 4)])
    assert drafts == level.rows.read(0, 33, 33 + count)


def ask_of(level: NeuralLevel, length: int, sampler: Any) -> Ask:
    """Of slot 0, whose pages are reserved."""
    level.pages.reserve(0, length + 4, level.storage.copy_page)
    return Ask(0, length, 4, 4, sampler, length - 1, length)


def test_graphs_of_memory_that_moved_are_dropped(emulated: Launcher) -> None:
    graphs = RecordingLauncher(emulated)
    level = make_level(graphs, random_weights(2, BF16, **SHAPE))
    speculation = Speculation.of(level, StatisticalLevel(level.backend, level.rows))
    assert speculation is not None
    level.rows.write(0, [1, 2, 3] * 4)
    level.prefill(0, 11)
    replays = []
    for count in (3, 3, 3, 40, 3, 3):
        asked = [Speculated(Proposal(0, 12, count), count, Sampler(temperature=0.0))]
        speculation.review(asked, False, 1)
        level.truncate(0, 11)
        replays.append(graphs.replays)
    assert replays == [0, 1, 2, 2, 2, 3]


def test_what_is_learnt_may_grow(emulated: Launcher) -> None:
    """Graphs know where it was; as long as it fits there, they go on."""
    graphs = RecordingLauncher(emulated)
    level = make_level(graphs, random_weights(2, BF16, **SHAPE))
    statistical = StatisticalLevel(level.backend, level.rows, learn_tokens=4096)
    speculation = Speculation.of(level, statistical)
    assert speculation is not None
    level.rows.write(0, [1, 2, 3])
    replays, drafted = [], []
    for learnt in ([], [], [], [1, 2, 3, 9, 8, 7] * 6, [], [2, 3, 5], []):
        if learnt:
            statistical.begin(1, learnt, 0)
            statistical.finish(1)
        asked = [Speculated(Proposal(0, 3, 5), 4, Sampler(temperature=0.0))]
        [(item, _)] = speculation.review(asked, True, 1)
        level.truncate(0, 2)
        level.rows.write(0, [1, 2, 3])
        replays.append(graphs.replays)
        drafted.append(sorted(item.tree.tokens) if item.tree else [])
    assert replays == [0, 1, 2, 2, 3, 4, 5]
    assert drafted[:3] == [[]] * 3
    assert drafted[3] == drafted[4] == [1, 7, 8, 9]
    assert drafted[5] == drafted[6] == [1, 5, 7, 8, 9]
