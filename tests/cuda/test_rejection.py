"""The rejection rule over the device's logits: judged on the host, beside rows that are not."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from cascade_engine import _C, Engine, FixedCascade, PlainDecoding, SamplingParams
from cascade_engine.engine import loading
from cascade_engine.levels import NeuralLevel, ReviewItem, TokenRows
from cascade_engine.levels.rows import Rejection
from cascade_engine.levels.tree import TokenTree
from cascade_engine.ops import CudaBackend, Sampler
from cascade_engine.ops.launch import Launcher
from tests.cuda.support import BF16
from tests.cuda.test_backend import SHAPE, on, random_row
from tests.models.support import random_llama
from tests.ops.support import random_weights

VOCAB = 66


def make_level(run: Launcher, rows: int) -> NeuralLevel:
    backend = CudaBackend(threads=1, launcher=run)
    weights = on(backend, random_weights(7, BF16, **SHAPE))
    return NeuralLevel("t", weights, backend, TokenRows(rows, 320, VOCAB), 320, 640, VOCAB)


def test_verdicts_are_those_of_the_rule(run: Launcher) -> None:
    """A chain and a tree that reject beside a row that does not: each gets what it gets alone, the
    rejecting ones what the host's rule says of the device's logits."""
    torch.manual_seed(3)
    rejecting = Sampler(temperature=1.0, seed=5, rejection=True)
    exact = Sampler(temperature=1.0, seed=6)
    prompts = [random_row(9), random_row(12), random_row(7)]
    tree = TokenTree(random_row(5), [-1, 0, -1, 1, 2], [1.0] * 5, [1] * 5)
    drafts = random_row(3)

    def items() -> list[ReviewItem]:
        return [
            ReviewItem(0, 9, 12, rejecting, rejection=Rejection(0, False, 3)),
            ReviewItem(1, 12, 12, exact),
            ReviewItem(2, 7, 7, rejecting, tree=tree, rejection=Rejection(0, False, 0)),
        ]

    def fresh() -> NeuralLevel:
        level = make_level(run, 3)
        for slot, prompt in enumerate([[*prompts[0], *drafts], *prompts[1:]]):
            level.rows.write(slot, prompt)
        return level

    together = fresh()
    verdicts = together.review(items(), 1.0)
    for slot, item in enumerate(items()):
        alone = fresh()
        assert alone.review([item], 1.0) == [verdicts[slot]]
        end = item.frontier + verdicts[slot].num_accepted + 1
        assert alone.rows.read(slot, 0, end) == together.rows.read(slot, 0, end)
    level = fresh()
    logits = level.score(0, 12, 4)
    rows = level.rows
    [(accepted, own, _)] = _C.accept(
        level.backend.context,
        logits=logits.data_ptr(),
        logits_stride=logits.shape[1],
        vocab=VOCAB,
        tokens=rows.tokens.data_ptr(),
        token_stride=rows.tokens.shape[1],
        probs=rows.draft_probs.data_ptr(),
        rows=[0],
        frontiers=[9],
        lengths=[12],
        samplers=[rejecting],
        distributions=rows.distributions,
        rejections=[Rejection(0, False, 3)],
    )
    assert (accepted, own) == (verdicts[0].num_accepted, verdicts[0].token)


def test_the_engine_rejects(run: Launcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a draft model: the exact request beside it keeps its tokens, and nothing is left of the
    distributions."""
    shape = {"head_dim": 8, "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2}
    for seed, name in ((3, "target"), (4, "draft")):
        random_llama(
            tmp_path / name, seed, num_hidden_layers=1, intermediate_size=40, vocab_size=97, **shape
        )
    monkeypatch.setattr(loading, "make_backend", lambda options: CudaBackend("cuda", 1, run))
    monkeypatch.setattr(loading, "_memory", lambda place: 1 << 26)
    torch.manual_seed(1)
    prompts = [random_row(9), random_row(9)]
    exact = SamplingParams(max_tokens=8, temperature=0.8, seed=4, ignore_eos=True)
    rejection = dataclasses.replace(exact, acceptance="rejection")
    found = []
    for draft, policy in ((0, PlainDecoding()), (1, FixedCascade([[3, 2], [0, 4]]))):
        engine = Engine.load(
            tmp_path / "target",
            [tmp_path / "draft"] * draft,
            device="cuda",
            dtype="bfloat16",
            policy=policy,
        )
        answers = engine.generate(prompts, [exact, rejection])
        engine.check_integrity()
        found.append([answer.token_ids for answer in answers])
    assert found[0][0] == found[1][0]
    assert len(found[1][1]) == 8
