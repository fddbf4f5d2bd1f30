"""Reviews by the rejection rule on the device: those of the host's rule over the device's logits,
whoever drafts, and wherever."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from cascade_engine import _C, Engine, FixedCascade, SamplingParams
from cascade_engine.engine import loading
from cascade_engine.levels import NeuralLevel, ReviewItem, TokenRows
from cascade_engine.levels.rows import Rejection
from cascade_engine.levels.tree import TokenTree
from cascade_engine.ops import CudaBackend, CudaSpeculation, Sampler
from cascade_engine.ops.launch import Launcher
from tests.cuda import engines
from tests.cuda.support import BF16, RecordingLauncher, cpu_function
from tests.cuda.test_backend import SHAPE, on, random_row
from tests.models.support import random_llama
from tests.ops.support import random_weights

VOCAB = 66


class HostJudged(CudaBackend):
    """Every review is the CPU's, over a copy of the device's logits."""

    def distributions(self, rows: int, vocab: int) -> Any:
        return _C.DraftDistributions(rows, vocab)

    def accept(
        self, runners_up: int = 0, logprobs: Sequence[int] = (), **given: Any
    ) -> list[tuple[int, int, list[int]]]:
        return cpu_function(self, "accept", **given)

    def siblings(self, **arguments: Any) -> Any:
        return cpu_function(self, "siblings", **arguments)


def make_level(run: Launcher, rows: int, kind: type[CudaBackend] = CudaBackend) -> NeuralLevel:
    backend = kind(threads=1, launcher=run)
    weights = on(backend, random_weights(7, BF16, **SHAPE))
    shared = TokenRows(rows, 320, VOCAB, backend)
    return NeuralLevel("t", weights, backend, shared, 320, 640, VOCAB)


def test_verdicts_are_those_of_the_rule(run: Launcher) -> None:
    """A chain and a tree that reject beside a row that does not: each gets what it gets alone and
    what the host gives it."""
    torch.manual_seed(3)
    rejecting = Sampler(temperature=1.0, seed=5, rejection=True)
    exact = Sampler(temperature=1.0, seed=6)
    prompts = [random_row(9), random_row(12), random_row(7)]
    tree = TokenTree(random_row(5), [-1, 0, -1, 1, 2], [1.0] * 5, [1] * 5)
    drafts = random_row(3)
    items = [
        ReviewItem(0, 9, 12, rejecting, rejection=Rejection(0, True, 3)),
        ReviewItem(1, 12, 12, exact),
        ReviewItem(2, 7, 7, rejecting, tree=tree, rejection=Rejection(4, False, 0)),
    ]

    def fresh(kind: type[CudaBackend] = CudaBackend) -> NeuralLevel:
        level = make_level(run, 3, kind)
        for slot, prompt in enumerate([[*prompts[0], *drafts], *prompts[1:]]):
            level.rows.write(slot, prompt)
        return level

    together, host = fresh(), fresh(HostJudged)
    for lenience in (1.0, 1.5):
        verdicts = together.review(items, lenience)
        assert host.review(items, lenience) == verdicts
        laws, wanted = together.rows.distributions, host.rows.distributions
        assert laws is not None
        assert wanted is not None
        assert laws.held == wanted.held == verdicts[0].num_accepted + 1
        for slot, item in enumerate(items):
            alone = fresh()
            assert alone.review([item], lenience) == [verdicts[slot]]
            end = item.frontier + verdicts[slot].num_accepted + 1
            row = together.rows.read(slot, 0, end)
            assert alone.rows.read(slot, 0, end) == host.rows.read(slot, 0, end) == row
        for position in range(9, 10 + verdicts[0].num_accepted):
            probs = laws.find(0, position)  # type: ignore[union-attr]
            expected = torch.tensor(wanted.read(0, position))  # type: ignore[union-attr]
            torch.testing.assert_close(probs.cpu(), expected, rtol=1e-5, atol=1e-8)
        for level in (together, host):
            level.rows.forget(0)
            for slot, item in enumerate(items):
                level.truncate(slot, item.frontier - 1)
                level.rows.tokens[slot, 9:12] = torch.tensor(drafts)
                level.rows.write(slot, [[*prompts[0], *drafts], *prompts[1:]][slot])


MODEL = {**engines.MODEL, "vocab_size": 97}
CASCADES = {
    "statistics": (0, FixedCascade([[4]])),
    "trees": (0, FixedCascade([[4]], tree=10)),
    "vertical": (1, FixedCascade([[3, 2], [0, 4]])),
    "lenient": (1, FixedCascade([[4, 1], [0, 3]], lenience=2.0)),
    "alone": (1, FixedCascade([[3, 0], [0, 0]])),
    "branches": (1, FixedCascade([[3, 2], [0, 2]], tree=9)),
}


@pytest.mark.parametrize("name", CASCADES)
def test_an_engine_rejects_as_the_host(
    run: Launcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Drafts made and judged on the device give the tokens that they give when reviews are the
    host's, and a request beside them keeps its own. Breaks with another number of a review, or a
    distribution that is not the one a draft was drawn from."""
    drafts, policy = CASCADES[name]
    for seed, model in ((3, "target"), (4, "draft")):
        random_llama(tmp_path / model, seed, **MODEL)
    monkeypatch.setattr(loading, "_memory", lambda place: 1 << 26)
    calls: list[bool] = []
    original = CudaSpeculation._report

    def report(self: CudaSpeculation, kind: Any, *asked: Any) -> Any:
        calls.append(kind.alone > 0)
        return original(self, kind, *asked)

    monkeypatch.setattr(CudaSpeculation, "_report", report)
    exact = SamplingParams(max_tokens=14, temperature=0.8, seed=4, ignore_eos=True)
    rejection = dataclasses.replace(exact, acceptance="rejection")
    penalised = dataclasses.replace(rejection, top_k=12, repetition_penalty=1.3)
    torch.manual_seed(1)
    prompts = [random_row(9), random_row(4) * 3, random_row(12)]
    found = []
    for kind in (HostJudged, CudaBackend):
        launcher = run if run.captures else RecordingLauncher(run)
        backend = kind("cuda", 1, launcher)
        monkeypatch.setattr(loading, "make_backend", lambda options: backend)  # noqa: B023
        paths = [tmp_path / "draft"] * drafts
        engine = Engine.load(
            tmp_path / "target", paths, device="cuda", dtype="bfloat16", policy=policy
        )
        if kind is HostJudged:
            engine._cycle._speculating = None
            for level in engine._cycle._neural:
                level.drafts = False
        answers = engine.generate(prompts, [exact, rejection, penalised])
        engine.check_integrity()
        found.append([answer.token_ids for answer in answers])
        assert bool(calls) == (kind is CudaBackend)
    assert found[0] == found[1]
    assert (True in calls) == (name in ("alone",))
