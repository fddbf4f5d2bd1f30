"""Runners-up beside the tokens that a review leaves, found on the device: those of the CPU."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from cascade_engine import FixedCascade, PlainDecoding, SamplingParams
from cascade_engine.levels import NeuralLevel, Rejection, ReviewItem, TokenRows, TokenTree
from cascade_engine.ops import CudaBackend, Sampler
from cascade_engine.ops.cuda_review import CudaReview
from cascade_engine.ops.launch import Launcher
from tests.cuda.engines import DRAWN, MODEL, make_engine
from tests.cuda.support import BF16, cpu_function
from tests.cuda.test_backend import SHAPE, on, random_row
from tests.cuda.test_vertical import Calls
from tests.levels.test_draft_loop import random_sampler
from tests.models.support import random_llama
from tests.ops.support import random_weights


class Compared(CudaBackend):
    """Its runners-up are compared with those of the CPU over a copy of the logits."""

    compared = 0

    def siblings(self, **arguments: Any) -> Any:
        found = super().siblings(**arguments)
        expected = cpu_function(self, "siblings", **arguments)
        for ours, theirs in zip(found, expected, strict=True):
            for mine, other in zip(ours, theirs, strict=True):
                assert [token for token, _ in mine] == [token for token, _ in other]
                probs = torch.tensor([[prob for _, prob in each] for each in (mine, other)])
                assert torch.allclose(probs[0], probs[1], rtol=1e-4, atol=1e-7)
                Compared.compared += len(mine)
        return found


def make_level(run: Launcher, seed: int) -> NeuralLevel:
    backend = Compared(threads=1, launcher=run)
    weights = on(backend, random_weights(seed, BF16, **SHAPE))
    rows = TokenRows(3, 320, 66, backend)
    return NeuralLevel("draft", weights, backend, rows, 320, 960, 66)


@pytest.mark.parametrize("seed", range(4))
def test_they_are_the_cpus(run: Launcher, seed: int) -> None:
    """Of rows with all kinds of samplers, chains and trees, whose drafts are kept or not; asked of
    some of them. A filter may leave fewer than are asked for."""
    rng = random.Random(seed)
    level, lenience = make_level(run, seed), rng.choice([1.0, 1e6])
    items, compared = [], Compared.compared
    for slot in rng.sample(range(3), 3):
        rejects, row = slot == 2 and lenience == 1.0, random_row(rng.randint(2, 30))
        level.rows.write(slot, row)
        level.prefill(slot, len(row) - 1)
        sampler, drafted = random_sampler(rng, rejects), rng.randrange(4)
        rejection = Rejection(0, True, drafted) if sampler.rejects else None
        level.rows.append(slot, len(row), random_row(drafted), [0.5] * drafted)
        tree = None
        if rng.random() < 0.5 and rejection is None:
            tree = TokenTree([7, 8, 9], [-1, -1, 0], [1.0] * 3, [0] * 3)
            drafted = 0
        items.append(
            ReviewItem(
                slot,
                len(row),
                len(row) + drafted,
                sampler,
                tree=tree,
                siblings=rng.choice([0, 1, 3]),
                rejection=rejection,
            )
        )
    items[0] = items[0]._replace(siblings=3)
    verdicts = level.review(items, lenience)
    for item, verdict in zip(items, verdicts, strict=True):
        if item.siblings:
            assert len(verdict.siblings) == verdict.num_accepted + 1
    assert Compared.compared > compared


def test_a_filter_leaves_none(run: Launcher) -> None:
    level = make_level(run, 1)
    level.rows.write(0, [1, 2, 3])
    sampler = Sampler(temperature=0.8, top_k=2, seed=3)
    (verdict,) = level.review([ReviewItem(0, 3, 3, sampler, siblings=3)], 1.0)
    assert [len(each) for each in verdict.siblings] == [1]


def test_an_engine_keeps_its_tokens(
    run: Launcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With branches beside what a draft writes, and log-probabilities of a row; a review with
    them is one wait."""
    random_llama(tmp_path, 3, **{**MODEL, "num_hidden_layers": 2})
    prompts = [[t % 40 for t in random_row(n)] for n in (9, 20, 5)]
    wanted, calls = (None, 2, 1), Calls(monkeypatch)
    sampling = [
        SamplingParams(max_tokens=9, ignore_eos=True, logprobs=top, **DRAWN) for top in wanted
    ]
    calls._wrap(monkeypatch, CudaReview, "siblings", lambda n, _: calls.rows.append((n, 0)))
    found = []
    for policy in (PlainDecoding(), FixedCascade([[3, 0], [0, 0]], tree=10, siblings=2)):
        calls.clear()
        engine = make_engine(tmp_path, run, monkeypatch, policy=policy, drafts=["self:1"])
        found.append([(g.token_ids, g.logprobs) for g in engine.generate(prompts, sampling)])
        engine.check_integrity()
        assert calls.waits == len(calls.of("accept"))
    assert found[0] == found[1]
    assert len(calls.of("siblings")) > 8
