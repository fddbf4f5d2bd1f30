"""Segments on the device: what a call for each proposal and each review leaves, with one wait for
several of them."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cascade_engine import FixedCascade, PlainDecoding, SamplingParams
from cascade_engine.levels import SegmentItem, Segments, StatisticalLevel
from cascade_engine.ops import NgramTable, Sampler
from cascade_engine.ops.cuda_segments import CudaSegments
from cascade_engine.ops.launch import Launcher
from tests.cuda.engines import DRAWN, GREEDY, MODEL, make_engine
from tests.cuda.support import BF16
from tests.cuda.test_backend import SHAPE, make_level, random_row
from tests.levels.test_draft_loop import GREEDY as SAMPLER
from tests.levels.test_draft_loop import random_sampler
from tests.levels.test_segments import Pair
from tests.models.support import random_llama
from tests.ops.support import random_weights
from tests.ops.test_drafter import small_table


class DevicePair(Pair):
    """A level of a device with statistics below it."""

    def __init__(
        self,
        run: Launcher,
        seed: int,
        table: NgramTable | None,
        rows: int = 2,
        broken: int | None = None,
    ) -> None:
        weights = random_weights(seed, BF16, **SHAPE)
        if broken is not None:  # a token whose embedding is not a number
            weights.embedding[broken] = torch.nan  # type: ignore[index]
        self.level = make_level(run, weights, rows)
        self.rows = self.level.rows
        self.statistical = StatisticalLevel(self.level.backend, self.rows, table)
        segments = Segments.of(self.level, self.statistical)
        assert segments is not None
        self.segments = segments


class Actions:
    """What was waited for: rounds of each action of segments, the most drafts that one had room
    for, and waits in all."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rounds: list[int] = []
        self.waits = self.room = 0
        act = CudaSegments._act

        def acted(this: Any, kind: Any, *given: Any) -> Any:
            self.rounds.append(kind.rounds)
            self.room = max(self.room, kind.capacity)
            return act(this, kind, *given)

        monkeypatch.setattr(CudaSegments, "_act", acted)
        for name in ("wait", "fetch"):
            monkeypatch.setattr(Launcher, name, self._counted(getattr(Launcher, name)))

    def _counted(self, original: Any) -> Any:
        def waited(*given: Any) -> Any:
            self.waits += 1
            return original(*given)

        return waited


@pytest.mark.parametrize("seed", range(6))
def test_segments_are_what_calls_leave(graphs: Launcher, seed: int) -> None:
    """Rows of all kinds together, one segment behind the other, against each row alone: tokens,
    probabilities, counts, caches."""
    rng = random.Random(seed)
    table = small_table(rng, 66) if seed % 2 else None
    lenience = rng.choice([1.0, 4.0, 1e6])
    together = DevicePair(graphs, seed, table, 3)
    alone = DevicePair(graphs, seed, table, 3)
    slots = rng.sample(range(3), rng.choice([2, 3]))
    samplers = [random_sampler(rng, False) for _ in slots]
    rows = [[rng.randrange(9) for _ in range(rng.randint(1, 60))] for _ in slots]
    for slot, row in zip(slots, rows, strict=True):
        cached = rng.randrange(len(row))
        for pair in (together, alone):
            pair.rows.write(slot, row)
            pair.level.prefill(slot, cached)
    lengths = [len(row) for row in rows]
    for _ in range(3):
        items = [
            SegmentItem(
                slot,
                length,
                tokens=rng.randint(1, 12),
                most=rng.randint(1, 20),
                width=rng.randint(1, 6),
                least=rng.randint(1, 8),
                sampler=sampler,
                prediction=torch.tensor(row[-3:] + row[:7], dtype=torch.int32)
                if rng.random() < 0.5
                else None,
                min_confidence=rng.choice([0.0, 1e-6, 1e-2, 1.0]),
            )
            for slot, length, sampler, row in zip(slots, lengths, samplers, rows, strict=True)
        ]
        assert together.segments.fits(items)
        lags = sum(item.length - 1 - together.level.pages.length[item.slot] for item in items)
        found = together.segments.draft(items, lenience)
        expected = [alone.one_by_one(item, lenience) for item in items]
        assert found.rows == expected
        given = sum(sum(row.proposed) for row in found.rows)
        reviews = sum(len(row.accepted) for row in found.rows)
        assert sum(each.rows for each in found.proposals) == sum(row.asked for row in found.rows)
        assert sum(each.tokens for each in found.proposals) == given
        assert sum(each.rows for each in found.reviews) == reviews
        assert sum(each.tokens for each in found.reviews) == lags + reviews + given
        for i, row_found in enumerate(expected):
            lengths[i] += sum(row_found.accepted) + len(row_found.accepted)
            assert together.level.pages.length[slots[i]] == lengths[i] - 1
            for name in ("tokens", "draft_probs"):
                ours, theirs = (getattr(p.rows, name)[slots[i]] for p in (together, alone))
                assert torch.equal(ours[: lengths[i]], theirs[: lengths[i]]), name
    together.level.pages.check_integrity()


def test_a_prediction_may_be_freed_between_segments(graphs: Launcher) -> None:
    """The device keeps a copy of it. Breaks when that is the caller's memory, which a later segment
    with the same prediction finds written over."""
    pair = DevicePair(graphs, 3, None)
    row = [5, 6, 7]
    pair.rows.write(0, row)
    first = torch.tensor([7, 1, 2, 3, 4, 8], dtype=torch.int32)
    found = []
    for prediction in (first, first.clone()):
        item = SegmentItem(0, 3, 1, 8, 5, 5, SAMPLER, prediction=prediction)
        found.append(pair.segments.draft([item], 1.0).rows[0].proposed)
        pair.level.truncate(0, 2)
        pair.rows.write(0, row)
        first.zero_()
    assert found == [[5], [5]]


def test_rounds_follow_what_was_needed(run: Launcher, monkeypatch: pytest.MonkeyPatch) -> None:
    """An action has as many as the segments before it took; few are for nobody."""
    pair = DevicePair(run, 3, None)
    pair.rows.write(0, random_row(9))
    sampler, length = Sampler(temperature=0.0), 9
    actions = Actions(monkeypatch)
    for _ in range(8):
        actions.waits = 0
        actions.rounds.clear()
        item = SegmentItem(0, length, tokens=4, most=40, width=3, least=1, sampler=sampler)
        ((_, accepted, _),) = pair.segments.draft([item], 1.0).rows
        length += sum(accepted) + len(accepted)
        assert actions.waits == len(actions.rounds)
        assert len(accepted) <= sum(actions.rounds) <= len(accepted) + 2
    assert actions.waits == 1


def test_more_drafts_than_an_action_has_room_for(
    run: Launcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A prediction that ends within what was asked for is asked for more, and may then give too
    much: that row waits for an action with room for it."""
    item = SegmentItem(0, 12, tokens=3, most=40, width=7, least=7, sampler=Sampler(temperature=0.0))
    found = []
    for device in (False, True):
        pair, actions = DevicePair(run, 3, None), Actions(monkeypatch)
        pair.rows.write(0, [9, 8, 7, 6, 5, 4, 3, 2, 1, 30, 31, 32])
        pair.rows.write(1, [1, 2] * 5)
        text = torch.tensor([30, 31, 32, 1, 30, 31, 32, 2, 3], dtype=torch.int32)
        items = [item._replace(prediction=text), item._replace(slot=1, length=10)]
        if device:
            found.append(pair.segments.draft(items, 1.0).rows)
        else:
            found.append([pair.one_by_one(each, 1.0) for each in items])
    assert found[0] == found[1]
    assert found[0][0].proposed[0] == 9
    assert actions.room == 13


CASES: list[tuple[list[list[int]], list[str], dict[str, Any], float]] = [
    ([[6, 0], [0, 4]], ["self:1"], GREEDY, 1.0),
    ([[5, 3], [0, 4]], ["twin"], DRAWN, 2.0),
]


@pytest.mark.parametrize(("k_matrix", "drafts", "params", "lenience"), CASES)
def test_an_engine_keeps_its_tokens(
    graphs: Launcher,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    k_matrix: list[list[int]],
    drafts: list[str],
    params: dict[str, Any],
    lenience: float,
) -> None:
    """And every level's counts. Segments of all rows take a wait or two in a cycle, not one for
    each review."""
    random_llama(tmp_path / "target", 3, **{**MODEL, "num_hidden_layers": 2})
    random_llama(tmp_path / "twin", 3, **{**MODEL, "num_hidden_layers": 2})
    paths = [d if d.startswith("self") else str(tmp_path / d) for d in drafts]
    prompts = [[t % 40 for t in random_row(n)] for n in (9, 30)]
    sampling = [SamplingParams(max_tokens=n, ignore_eos=True, **params) for n in (24, 15)]
    sampling[0] = replace(sampling[0], stop_token_ids=[*range(5, 12)], min_tokens=9)
    cascade, actions = FixedCascade(k_matrix, lenience=lenience), Actions(monkeypatch)
    found, stats, waits = [], [], []
    for where in ("plain", "reviews", "segments"):
        policy = PlainDecoding() if where == "plain" else cascade
        engine = make_engine(tmp_path / "target", graphs, monkeypatch, policy=policy, drafts=paths)
        if where == "reviews":
            engine._cycle._segmenting._segments = [None, None]
        actions.waits = 0
        results = engine.generate(prompts, sampling)
        found.append([(r.token_ids, where == "plain" or r.sources) for r in results])
        waits.append(actions.waits)
        engine.check_integrity()
        stats.append(engine.stats())
        assert bool(actions.rounds) == (where == "segments")
    assert [ids for ids, _ in found[0]] == [ids for ids, _ in found[1]]
    assert found[1] == found[2]
    hidden = {"seconds": 0, "passes": 0}
    counted = [[{**level, **hidden} for level in each["levels"]] for each in stats]
    assert counted[1] == counted[2]
    assert waits[2] == stats[2]["steps"] + len(actions.rounds)
    assert waits[2] < waits[1]


def test_logits_that_are_not_numbers_end_segments(graphs: Launcher) -> None:
    """What reviews left before them stays; asked again it is an error, and the row as it was."""
    sampler = Sampler(temperature=0.0)
    item = SegmentItem(0, 3, tokens=7, most=40, width=2, least=1, sampler=sampler)
    clean = DevicePair(graphs, 4, None)
    clean.rows.write(0, [1, 2, 3])
    clean.segments.draft([item], 1.0)
    drafted = clean.rows.read(0, 3, 10)
    kept = next(i for i in range(1, 7) if drafted[i] not in (1, 2, 3, *drafted[:i])) + 1
    pair = DevicePair(graphs, 4, None, broken=drafted[kept - 1])
    pair.rows.write(0, [1, 2, 3])
    ((_, accepted, _),) = pair.segments.draft([item], 1.0).rows
    end = 3 + sum(accepted) + len(accepted)
    assert 3 < end <= 3 + kept
    assert pair.rows.read(0, 3, end) == drafted[: end - 3]
    assert pair.level.pages.length[0] == end - 1
    with pytest.raises(ValueError, match=f"the logits for position {end} are NaN"):
        pair.segments.draft([item._replace(length=end)], 1.0)
    pair.level.truncate(0, end - 1)
    pair.level.pages.check_integrity()


def test_what_goes_another_way(run: Launcher) -> None:
    """Reviews of more drafts than a kernel takes, and rows that go by the rejection rule."""
    pair, sampler = DevicePair(run, 4, None), Sampler(temperature=0.0)
    pair.rows.write(0, [1, 2, 3])
    item = SegmentItem(0, 3, tokens=7, most=90, width=33, least=33, sampler=sampler)
    assert item.drafts == 65
    assert not pair.segments.fits([item])
    assert pair.segments.fits([item._replace(width=32)])
    assert pair.segments.fits([item._replace(most=65)])
    rejecting = Sampler(temperature=0.8, rejection=True)
    assert not pair.segments.fits([item._replace(most=65, sampler=rejecting)])
