"""Drafts, their review, acceptance and commit as one action of the device: the tokens of plain
decoding, the drafts of the host's drafters, one wait and one graph."""

from __future__ import annotations

import contextlib
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from cascade_engine import FixedCascade, PlainDecoding, SamplingParams
from cascade_engine.levels import (
    LogprobRequest,
    Proposal,
    ReviewItem,
    Speculated,
    Speculation,
    StatisticalLevel,
)
from cascade_engine.ops import CudaSpeculation, Sampler
from cascade_engine.ops.launch import Launcher
from cascade_engine.trace import load
from tests.cuda.engines import DRAWN, GREEDY, MODEL, make_engine
from tests.cuda.support import BF16, RecordingLauncher
from tests.cuda.test_backend import SHAPE, make_level, random_row
from tests.engine.traced import check_statistics, replayed
from tests.models.support import random_llama
from tests.ops.support import random_weights
from tests.ops.test_drafter import small_table


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, bool, int, int]]:
    """Rows and kind of every action of the device, the longest that a row could get, and the last
    of the rows whose logits come back (-1: none)."""
    calls: list[tuple[int, bool, int, int]] = []
    original = CudaSpeculation.run

    def run(self: CudaSpeculation, asks: Any, trees: bool, *options: Any) -> Any:
        last = max(i if ask.brings_logits else -1 for i, ask in enumerate(asks))
        calls.append((len(asks), trees, max(ask.length + ask.depth for ask in asks), last))
        return original(self, asks, trees, *options)

    monkeypatch.setattr(CudaSpeculation, "run", run)
    return calls


class Heard:
    """What policies that learn hear of reviews."""

    listening = True

    def __init__(self) -> None:
        self.fed: list[int] = []

    def drafted(self, *_: Any) -> None:
        pass

    stepped = drafted_segments = drafted

    def reviewed(self, *heard: Any) -> None:
        self.fed.append(heard[4])


@pytest.mark.parametrize(("tree", "params"), [(0, GREEDY), (12, DRAWN), (0, DRAWN), (12, GREEDY)])
def test_an_engine_keeps_its_tokens(
    graphs: Launcher,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    counted: list[tuple[int, bool, int, int]],
    tree: int,
    params: dict[str, Any],
) -> None:
    """Rows come and go and stop at their own lengths; one is not drafted for on the device while it
    is there, and others tell of log-probabilities."""
    random_llama(tmp_path, 3, **MODEL)
    prompts = [[t % 40 for t in random_row(n)] for n in (9, 30, 3, 17)]
    sampling = [
        SamplingParams(
            max_tokens=n,
            ignore_eos=True,
            allowed_tokens=(lambda row: None) if i == 2 else None,
            logprobs=(None, 3, None, 2)[i],
            processed_logprobs=i == 3,
            **params,
        )
        for i, n in enumerate((20, 9, 3, 12))
    ]
    cascade = FixedCascade([[5]], tree=tree)
    found, stats, heard = [], [], [Heard() for _ in range(3)]
    for where, policy in (("host", PlainDecoding()), ("host", cascade), ("device", cascade)):
        engine = make_engine(tmp_path, graphs, monkeypatch, policy=policy, learn_tokens=64)
        engine._cycle.audience.listeners.append(heard[len(found)])
        if where == "host":
            engine._cycle._speculating = None
        found.append([(g.token_ids, g.logprobs) for g in engine.generate(prompts, sampling)])
        engine.check_integrity()
        stats.append(engine.stats())
        assert bool(counted) == (where == "device")
    assert found[0] == found[1] == found[2]
    assert {trees for _, trees, _, _ in counted} == {tree > 0}
    assert max(rows for rows, *_ in counted) > 1
    assert {-1, 1} <= {last for *_, last in counted}  # only of rows that ask, wherever they are
    # The target's own token ends the review of a row that gets to its limit.
    limits = [len(p) + q.max_tokens for p, q in zip(prompts, sampling, strict=True)]
    assert max(reach for _, _, reach, _ in counted) == max(limits) - 1
    if not tree:  # trees near a row's end are cut in other ways
        assert heard[1].fed == heard[2].fed
        assert stats[1]["levels"] == [
            {**level, "seconds": other["seconds"]}
            for level, other in zip(stats[2]["levels"], stats[1]["levels"], strict=True)
        ]


@pytest.mark.parametrize(
    ("policy", "drafts"),
    [
        (FixedCascade([[5]]), []),
        (FixedCascade([[5]], tree=12), []),
        (FixedCascade([[4, 2], [0, 3]]), ["self:1"]),
    ],
    ids=["chain", "tree", "vertical"],
)
def test_a_trace_tells_what_the_device_does(
    graphs: Launcher,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    counted: list[tuple[int, bool, int, int]],
    policy: FixedCascade,
    drafts: list[str],
) -> None:
    """And changes nothing of it: drafts and reviews of which each meets what those before it left,
    with the host's probabilities."""
    random_llama(tmp_path, 3, **{**MODEL, "num_hidden_layers": 2})
    prompts = [[t % 40 for t in random_row(n)] for n in (9, 21)]
    sampling = SamplingParams(max_tokens=12, ignore_eos=True, temperature=0.7, seed=4)
    actions, histories = [], []
    for way in ("untraced", "traced", "host"):
        engine = make_engine(tmp_path, graphs, monkeypatch, policy=policy, drafts=drafts)
        if way == "host":
            engine._cycle._speculating = None
        counted.clear()
        path = tmp_path / f"{way}.jsonl"
        with contextlib.nullcontext() if way == "untraced" else engine.trace(path):
            found = [g.token_ids for g in engine.generate(prompts, sampling)]
        actions.append(list(counted))
        if way == "untraced":
            continue
        histories.append(load(path))
        check_statistics(histories[-1], engine)
        assert [replayed(row) for row in histories[-1].rows] == found
    assert actions[1] != actions[2] == []
    assert drafts or actions[0] == actions[1]  # segments of a neural draft are told one by one
    told = [
        (a.level, a.at, [] if policy.tree[0] else [*a.tokens, *a.probs], a.token, a.prob)
        for history in histories
        for row in history.rows
        for this in row.rounds
        for a in this.actions
        if a.kind == "review"  # near a row's end trees are cut in other ways
    ]
    assert told[: len(told) // 2] == told[len(told) // 2 :]


@pytest.mark.parametrize("trees", [False, True])
def test_drafts_are_the_hosts(graphs: Launcher, trees: bool) -> None:
    """Of rows that grow, with a table, what was learnt, and a prediction that one of them has."""
    rng = random.Random(5)
    weights, table = random_weights(3, BF16, **SHAPE), small_table(rng, 66)
    level = make_level(graphs, weights)
    statistical = StatisticalLevel(level.backend, level.rows, table, learn_tokens=256)
    speculation = Speculation.of(level, statistical)
    assert speculation is not None
    samplers = [Sampler(temperature=0.0), Sampler(temperature=0.9, seed=8)]
    prompts = [[t % 9 for t in random_row(40)], random_row(21)]
    prediction = torch.tensor([t % 9 for t in random_row(60)], dtype=torch.int32)
    lengths = [len(p) for p in prompts]
    for slot, prompt in enumerate(prompts):
        level.rows.write(slot, prompt)
        level.prefill(slot, len(prompt) - 1)
    drafted = 0
    for step in range(6):
        if step in (1, 4):
            end = level.rows.read(0, lengths[0] - 9, lengths[0])
            statistical.begin(1, [*end, 60 + step, 61, 62], 0)
            statistical.finish(1)
        texts = [prediction if step % 2 else None, None]
        proposals = [Proposal(s, lengths[s], 7, texts[s]) for s in range(2)]
        for slot in range(2):
            statistical.begin(slot, level.rows.read(slot, 0, lengths[slot]), 0)
        if trees:
            hosts = [
                (t.tokens.tolist(), t.parents.tolist(), t.probs.tolist())
                for t in statistical.propose_trees(proposals, depth=4)
            ]
        else:
            counts = statistical.propose(proposals)
            hosts = [
                (level.rows.read(s, lengths[s], lengths[s] + n), [], [])
                for s, n in enumerate(counts)
            ]
        asked = [Speculated(p, 4, s) for p, s in zip(proposals, samplers, strict=True)]
        assert speculation.fits(asked)
        action = speculation._action.run

        def run(asks: Any, trees: bool, *_: Any, hosts: Any = hosts, action: Any = action) -> Any:
            found = action(asks, trees)
            assert [(r.tokens, r.parents, r.path_probs) for r in found] == hosts
            return found

        speculation._action.run = run  # type: ignore[method-assign]
        for slot, (item, verdict) in enumerate(speculation.review(asked, trees, 1)):
            chances = [] if item.tree is None else item.tree.chances()
            assert chances == pytest.approx(hosts[slot][2])
            lengths[slot] += verdict.num_accepted + 1
            level.truncate(slot, lengths[slot] - 1)
        speculation._action.run = action  # type: ignore[method-assign]
        drafted += sum(len(tokens) for tokens, _, _ in hosts)
    assert drafted > 40
    plain = make_level(graphs, weights)
    for slot, prompt in enumerate(prompts):
        plain.rows.write(slot, prompt)
        for n in range(len(prompt), lengths[slot]):
            plain.review([ReviewItem(slot, n, n, samplers[slot])], 1.0)
        assert level.rows.read(slot, 0, lengths[slot]) == plain.rows.read(slot, 0, lengths[slot])


def test_one_wait_for_a_review(graphs: Launcher, monkeypatch: pytest.MonkeyPatch) -> None:
    """And from the second time on one graph, for chains and trees each, whether log-probabilities
    are asked for or not."""
    level = make_level(graphs, random_weights(2, BF16, **SHAPE))
    statistical = StatisticalLevel(level.backend, level.rows)
    speculation = Speculation.of(level, statistical)
    assert speculation is not None
    level.rows.write(0, [1, 2, 3] * 4)
    level.prefill(0, 11)
    waits: list[str] = []
    launches: list[str] = []
    sends: list[torch.Tensor] = []
    wait, call, send = Launcher.wait, Launcher.__call__, Launcher.send

    def sent(launcher: Launcher, tensor: torch.Tensor) -> torch.Tensor:
        sends.append(tensor)
        return send(launcher, tensor)

    def waited(launcher: Launcher) -> None:
        waits.append("wait")
        wait(launcher)

    def launched(launcher: Launcher, name: str, *args: Any, **arguments: Any) -> None:
        launches.append(name)
        call(launcher, name, *args, **arguments)

    monkeypatch.setattr(Launcher, "wait", waited)
    monkeypatch.setattr(Launcher, "send", sent)
    monkeypatch.setattr(Launcher, "__call__", launched)
    greedy = Sampler(temperature=0.0)
    for trees in (False, True):
        length, replays = 12, getattr(graphs, "replays", 0)
        level.truncate(0, 11)
        level.rows.write(0, [1, 2, 3] * 4)
        for turn in range(5):
            waits.clear()
            sends.clear()
            launches.clear()
            wanted = LogprobRequest(2, processed=False) if turn % 2 else None
            asked = [Speculated(Proposal(0, length, 3), 3, greedy, logprobs=wanted)]
            ((_, verdict),) = speculation.review(asked, trees, 1)
            told = [len(each.top) for each in verdict.logprobs]
            assert told == ([2] * (verdict.num_accepted + 1) if wanted else [])
            length += verdict.num_accepted + 1
            level.truncate(0, length - 1)
            assert len(waits) == 1
            assert turn == 0 or not sends  # what was accepted is on the device
            assert turn < 2 or not launches
        if isinstance(graphs, RecordingLauncher):
            assert graphs.replays - replays == 4
