"""Neural drafts on the device: what the statistical level drafts for them, and what they draft on
their own. The tokens, counts and probabilities of the host's way, with one wait for each review."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cascade_engine import Engine, FixedCascade, PlainDecoding, SamplingParams
from cascade_engine.levels import (
    DraftItem,
    Proposal,
    ReviewItem,
    Speculated,
    Speculation,
    StatisticalLevel,
)
from cascade_engine.ops import CudaSpeculation, Sampler
from cascade_engine.ops.cuda_review import CudaReview
from cascade_engine.ops.cuda_segments import CudaSegments
from cascade_engine.ops.device_rows import DeviceRows
from cascade_engine.ops.launch import Launcher
from tests.cuda.engines import DRAWN, GREEDY, MODEL, make_engine
from tests.cuda.support import BF16
from tests.cuda.test_backend import SHAPE, make_level, random_row
from tests.models.support import random_llama
from tests.ops.support import random_weights


class Calls:
    """Waits for the device, and what was waited for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.waits = 0
        self.rows: list[tuple[str, int]] = []
        for owner, name in ((Launcher, "wait"), (Launcher, "fetch")):
            self._wrap(monkeypatch, owner, name, self._waited)
        for owner, name in ((CudaSpeculation, "run"), (CudaSpeculation, "draft")):
            self._wrap(monkeypatch, owner, name, lambda n, asks: self.rows.append((n, len(asks))))
        for owner, name in (
            (CudaReview, "accept"),
            (StatisticalLevel, "propose"),
            (StatisticalLevel, "propose_trees"),
        ):
            self._wrap(monkeypatch, owner, name, lambda n, _: self.rows.append((n, 0)))
        self._wrap(monkeypatch, CudaSegments, "_act", lambda *_: self.rows.append(("segments", 0)))

    def clear(self) -> None:
        self.rows.clear()
        self.waits = 0

    def _waited(self, name: str, _: Any) -> None:
        self.waits += 1

    def _wrap(self, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, heard: Any) -> None:
        original = getattr(owner, name)

        def call(this: Any, *args: Any, **options: Any) -> Any:
            heard(name, args[0] if args else None)
            return original(this, *args, **options)

        monkeypatch.setattr(owner, name, call)

    def of(self, name: str) -> list[int]:
        return [rows for called, rows in self.rows if called == name]


def on_host(engine: Engine) -> None:
    """Everything that neural levels draft goes by reviews, what is drafted for them by the host."""
    engine._cycle._speculating = None
    for level in engine.neural:
        level.drafts = False


CASES: list[tuple[list[list[int]], list[str], dict[str, Any], float]] = [
    ([[5, 3], [0, 4]], ["self:1"], GREEDY, 1.0),
    ([[5, 0], [0, 4]], ["twin"], DRAWN, 2.0),  # agrees always: it lags by two tokens
    ([[4, 2], [0, 0]], ["twin"], DRAWN, 1.0),
    ([[6, 0, 2], [0, 3, 0], [0, 0, 3]], ["twin", "self:1"], GREEDY, 1.5),
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
    """And every level's counts, where policies look at rows between reviews; each pass of a review
    is one wait, and so are passes of a level on its own together."""
    random_llama(tmp_path / "target", 3, **{**MODEL, "num_hidden_layers": 2})
    random_llama(tmp_path / "twin", 3, **{**MODEL, "num_hidden_layers": 2})
    paths = [d if d.startswith("self") else str(tmp_path / d) for d in drafts]
    prompts = [[t % 40 for t in random_row(n)] for n in (9, 30)]
    sampling = [SamplingParams(max_tokens=n, ignore_eos=True, **params) for n in (16, 9)]
    cascade = FixedCascade(k_matrix, lenience=lenience)
    found, stats, calls = [], [], Calls(monkeypatch)
    for where in ("plain", "host", "device"):
        policy = PlainDecoding() if where == "plain" else cascade
        engine = make_engine(tmp_path / "target", graphs, monkeypatch, policy=policy, drafts=paths)
        engine._cycle._segmenting._segments = [None] * len(engine.neural)
        if where == "host":
            on_host(engine)
        calls.clear()
        found.append([g.token_ids for g in engine.generate(prompts, sampling)])
        engine.check_integrity()
        stats.append(engine.stats())
        assert calls.waits == len(calls.rows) - len(calls.of("propose"))
        assert bool(calls.of("run") or calls.of("draft")) == (where == "device")
    assert found[0] == found[1] == found[2]
    counted = [[{**level, "seconds": 0, "passes": 0} for level in each["levels"]] for each in stats]
    assert counted[1] == counted[2]
    passes = [[level["passes"] for level in each["levels"][:-1]] for each in stats]
    assert passes[1] == passes[2]  # nobody's review was made apart
    alone = k_matrix[1:] == [[0, 0]]
    assert bool(calls.of("draft")) == alone
    assert len(calls.of("run") + calls.of("draft")) > 3
    assert max(calls.of("draft" if alone else "run")) == 2
    assert len(calls.of("propose")) <= 1  # for the target, while a row waits for another level


@pytest.mark.parametrize(("lenience", "lags"), [(1.0, (1, 3)), (100.0, (1, 3)), (1.0, (92, 70))])
def test_a_review_leaves_the_hosts_probabilities(
    graphs: Launcher, lenience: float, lags: tuple[int, int]
) -> None:
    """Lenience of better levels compares with them. The level lags, by other numbers of tokens, or
    has read nothing of the prompts yet."""
    weights, sampler = random_weights(3, BF16, **SHAPE), Sampler(temperature=0.8, seed=5)
    torch.manual_seed(4)
    sizes = lags if min(lags) > 3 else (30, 22)
    prompts = [[t % n for t in random_row(size)] for n, size in zip((7, 5), sizes, strict=True)]
    outcomes = []
    for device in (False, True):
        level = make_level(graphs, weights)
        statistical = StatisticalLevel(level.backend, level.rows)
        proposals = []
        for slot, (prompt, lag) in enumerate(zip(prompts, lags, strict=True)):
            level.rows.write(slot, prompt)
            level.prefill(slot, len(prompt) - lag)
            proposals.append(Proposal(slot, len(prompt), 5))
        if device:
            speculation = Speculation.of(level, statistical)
            assert speculation is not None
            asked = [Speculated(p, 5, sampler) for p in proposals]
            assert speculation.fits(asked)
            found = speculation.review(asked, False, 1, lenience, probs=True)
            verdicts = [verdict for _, verdict in found]
        else:
            counts = statistical.propose(proposals)
            items = [
                ReviewItem(p.slot, p.length, p.length + n, sampler)
                for p, n in zip(proposals, counts, strict=True)
            ]
            verdicts = level.review(items, lenience)
        gained = [
            slice(len(p), len(p) + v.num_accepted + 1)
            for p, v in zip(prompts, verdicts, strict=True)
        ]
        rows = level.rows
        outcomes.append(
            [
                (rows.tokens[i, g].tolist(), rows.draft_probs[i, g].tolist())
                for i, g in enumerate(gained)
            ]
        )
    assert outcomes[0] == outcomes[1]
    if lenience > 1:
        assert any(len(tokens) > 1 for tokens, _ in outcomes[0])


PENALISED = {"temperature": 0.9, "seed": 2, "top_k": 9, "repetition_penalty": 1.2}


@pytest.mark.parametrize("params", [{"temperature": 0.0}, PENALISED])
def test_drafts_of_a_level_on_its_own(graphs: Launcher, params: dict[str, Any]) -> None:
    """What as many reviews of nothing append, by one wait; rows want other numbers of tokens, lag
    behind, and take turns with reviews of the host."""
    weights, sampler = random_weights(4, BF16, **SHAPE), Sampler(**params)
    torch.manual_seed(6)
    prompts, counts = [random_row(9), random_row(90)], [5, 3]
    plain = make_level(graphs, weights)
    for slot, prompt in enumerate(prompts):
        plain.rows.write(slot, prompt)
        for n in range(len(prompt), len(prompt) + 24):
            plain.review([ReviewItem(slot, n, n, sampler)], 1.0)
    level, lengths = make_level(graphs, weights), [len(p) for p in prompts]
    for slot, prompt in enumerate(prompts):
        level.rows.write(slot, prompt)
    for turn in range(4):
        items = [
            DraftItem(s, n, k, sampler)
            for s, (n, k) in enumerate(zip(lengths, counts, strict=True))
        ]
        assert level.draft(items) == counts
        for slot, count in enumerate(counts):
            lengths[slot] += count
            assert level.pages.length[slot] == lengths[slot] - 1
        if turn == 1:  # taken back, by a better level with another token
            lengths[0] -= 2
            level.rows.tokens[0, lengths[0] - 1] = plain.rows.tokens[0, lengths[0] - 1]
            level.truncate(0, lengths[0] - 2)
        if turn == 2:
            level.review([ReviewItem(1, lengths[1], lengths[1], sampler)], 1.0)
            lengths[1] += 1
    for slot, length in enumerate(lengths):
        for ours, theirs in (
            (level.rows.tokens, plain.rows.tokens),
            (level.rows.draft_probs, plain.rows.draft_probs),
        ):
            assert torch.equal(ours[slot, :length], theirs[slot, :length])
    level.pages.check_integrity()


def test_drafts_stop_where_confidence_falls(run: Launcher) -> None:
    """Behind the token with which the product of the probabilities is too low, each row alone."""
    weights, sampler = random_weights(4, BF16, **SHAPE), Sampler(temperature=0.0)
    torch.manual_seed(6)
    prompts, free, stops = [random_row(9), random_row(12)], make_level(run, weights), []
    items = [DraftItem(slot, len(prompt), 4, sampler) for slot, prompt in enumerate(prompts)]
    level = make_level(run, weights)
    for each in (free, level):
        for slot, prompt in enumerate(prompts):
            each.rows.write(slot, prompt)
    assert free.draft(items) == [4, 4]
    for item, n in zip(items, (2, 3), strict=True):
        probs = free.rows.read_probs(item.slot, item.length, item.length + n)
        stops.append(replace(item, min_confidence=math.prod(probs) * 1.001))
    assert level.draft(stops) == [2, 3]
    for item, n in zip(items, (2, 3), strict=True):
        end = item.length + n
        assert level.rows.read(item.slot, 0, end) == free.rows.read(item.slot, 0, end)
        assert level.pages.length[item.slot] == end - 1
    again = [replace(s, length=s.length + n, tokens=9) for s, n in zip(stops, (2, 3), strict=True)]
    assert max(level.draft(again)) <= 4


def test_a_long_draft_comes_in_parts(run: Launcher) -> None:
    level = make_level(run, random_weights(4, BF16, **SHAPE))
    level.rows.write(0, [1, 2, 3])
    assert level.draft([DraftItem(0, 3, 40, Sampler(temperature=0.0))]) == [16]


def test_logits_that_allow_no_token_end_a_draft(run: Launcher) -> None:
    level = make_level(run, random_weights(2, BF16, **SHAPE))
    level.rows.write(0, [1, 2, 3] * 4)
    level.prefill(0, 11)
    level.weights.head.memory.fill_(torch.nan)  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="the logits for position 12 are NaN"):
        level.draft([DraftItem(0, 12, 4, Sampler(temperature=0.0))])
    assert level.pages.length[0] == 11
    level.pages.check_integrity()


def test_the_device_gets_what_it_lacks(emulated: Launcher) -> None:
    """Whatever was written there, or may have been; never more than the row's tokens."""
    host, tables = torch.arange(1, 25, dtype=torch.int32).view(2, 12), torch.zeros(2, 2)
    rows = DeviceRows(emulated, host, tables.int(), 4)
    rows.send_tokens(1, 9)
    assert rows.tokens[1].tolist() == [*host[1, :9].tolist(), *[0] * 7]
    rows.forget(1, 4, 12)
    rows.tokens[1, 4:] = -7  # by a kernel
    rows.send_tokens(1, 6)
    assert rows.tokens[1].tolist() == [*host[1, :6].tolist(), *[-7] * 10]
    host[1, 2] = 99
    rows.wrote(1, 6, [-7] * 9)  # a tree reaches behind the row
    rows.send_tokens(1, 8)
    assert rows.tokens[1].tolist() == [*host[1, :8].tolist(), *[-7] * 8]
    rows.feed([0, 1], [3, 8], [host[0, 3:5], torch.tensor([50, 51], dtype=torch.int32)])
    assert rows.tokens[:, :10].tolist() == [
        [0, 0, 0, 4, 5, 0, 0, 0, 0, 0],
        [*host[1, :8].tolist(), 50, 51],
    ]
    rows.send_tokens(1, 10)
    rows.send_tokens(0, 5)
    assert torch.equal(rows.tokens[1, :10], host[1, :10])
    assert torch.equal(rows.tokens[0, :5], host[0, :5])
