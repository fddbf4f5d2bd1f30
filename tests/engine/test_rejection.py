"""The rejection rule in the engine: samples have the target's distribution, whatever drafts."""

from __future__ import annotations

import collections
import dataclasses
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from cascade_engine import AutoCascade, Engine, FixedCascade, PlainDecoding, SamplingParams
from cascade_engine.engine import items as engine_items
from cascade_engine.errors import RequestError
from cascade_engine.levels import DraftItem, Rejection
from cascade_engine.policy import Policy
from tests.data import data_path
from tests.engine.test_against_transformers import chi_square, target_distribution
from tests.models.support import random_llama

PROMPT = "Once upon a time, there was a"
TOKENS = 4
SAMPLES = 2500
SAMPLING = SamplingParams(
    max_tokens=TOKENS + 1, temperature=1.6, top_k=3, top_p=0.97, ignore_eos=True,
    acceptance="rejection",
)  # fmt: skip


@pytest.fixture(scope="module")
def law() -> dict[tuple[int, ...], float]:
    """The target's probability of each continuation of TOKENS tokens."""
    path = data_path("stories260k")
    model = LlamaForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    prompt = prompt_ids(Engine.load(path))
    joint: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(TOKENS):
        joint = {
            (*row, token): prob * p
            for row, prob in joint.items()
            for token, p in enumerate(
                target_distribution(
                    model, [*prompt, *row], SAMPLING.temperature, SAMPLING.top_k, SAMPLING.top_p
                ).tolist()
            )
            if p > 0
        }
    return joint


def prompt_ids(engine: Engine) -> list[int]:
    assert engine.tokenizer is not None
    return engine.tokenizer.encode(PROMPT)


def excess(policy: Policy, law: dict[tuple[int, ...], float], drafts: int = 1) -> float:
    """Pearson's statistic of the continuations in standard deviations above its mean."""
    paths = [data_path("llama2xs"), data_path("stories260k")][:drafts]
    engine = Engine.load(
        data_path("stories260k"), paths, dtype="float32", policy=policy, max_rows=64
    )
    params = [dataclasses.replace(SAMPLING, seed=seed) for seed in range(SAMPLES)]
    results = engine.generate([prompt_ids(engine)] * SAMPLES, params)
    engine.check_integrity()
    cells = list(law)
    seen = collections.Counter(tuple(result.token_ids[:TOKENS]) for result in results)
    assert set(seen) <= set(cells)
    observed = collections.Counter({cells.index(row): count for row, count in seen.items()})
    statistic, used = chi_square(observed, torch.tensor(list(law.values())), SAMPLES)
    assert used > 20
    return (statistic - (used - 1)) / (2 * (used - 1)) ** 0.5


@pytest.mark.parametrize(
    ("policy", "drafts"),
    [
        (FixedCascade([[4, 0], [0, 0]]), 1),  # block verification of a model's drafts
        (FixedCascade([[3, 2], [0, 3]]), 1),  # of reviewed tables, then tables
        (FixedCascade([[4, 0], [0, 3]], lenience=4.0), 1),
        (FixedCascade([[3, 0], [0, 4]], 1.0, (24, 8), 2), 1),  # trees
        (FixedCascade([[3, 0, 0], [0, 2, 0], [0, 0, 2]], 3.0), 2),  # nested, up to the limit
        (FixedCascade([[3, 0, 0], [0, 2, 0], [0, 0, 2]], 3.0, (24, 8), 2), 2),
        (FixedCascade([[3, 0, 0], [0, 3, 0], [0, 0, 0]], min_confidence=0.3), 2),  # stops early
        (FixedCascade([[5]], tree=12), 0),
        (PlainDecoding(), 0),
        (AutoCascade(cache=None), 1),
        (AutoCascade(cache=None), 2),
    ],
)
def test_samples_have_the_target_s_distribution(
    policy: Policy, drafts: int, law: dict[tuple[int, ...], float]
) -> None:
    """Chi-square of whole continuations. Five standard deviations are beyond one in a million for
    fixed seeds that were not chosen."""
    assert excess(policy, law, drafts) < 5


def test_shared_noise_would_show(
    law: dict[tuple[int, ...], float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test above has the power to see a wrong rule: here the target draws from the residual
    with the uniform that the draft was drawn with."""
    monkeypatch.setattr(
        engine_items, "Rejection", lambda number, keeps, trunk: Rejection(0, keeps, trunk)
    )
    monkeypatch.setattr(engine_items, "DraftItem", lambda *item: DraftItem(*item[:4], reviews=0))
    assert excess(FixedCascade([[4, 0], [0, 0]]), law) > 20


@pytest.mark.parametrize("tree", [0, 24])
def test_more_drafts_stay(tree: int) -> None:
    """The best coupling there is keeps more than shared noise does (DESIGN.md, section 3)."""
    calls = {}
    for acceptance in ("exact", "rejection"):
        engine = Engine.load(
            data_path("stories260k"),
            [data_path("llama2xs")],
            policy=FixedCascade([[5, 0], [0, 0]], tree=tree, siblings=2 if tree else 0),
            max_rows=16,
        )
        params = [
            SamplingParams(
                max_tokens=64, temperature=1.0, seed=s, ignore_eos=True, acceptance=acceptance
            )
            for s in range(16)
        ]
        results = engine.generate([PROMPT] * 16, params)
        calls[acceptance] = sum(result.stats.target_calls for result in results)
    assert calls["rejection"] < (1.0 if tree == 0 else 1.1) * calls["exact"]


def test_greedy_is_exact() -> None:
    path = data_path("stories260k")
    policy = FixedCascade([[4, 3], [0, 5]], 2.0, (16,), 1)
    engine = Engine.load(path, [data_path("llama2xs")], policy=policy)
    for text in (PROMPT, "The dog"):
        exact, rejection = (
            engine.generate(text, SamplingParams(max_tokens=80, acceptance=acceptance))[0]
            for acceptance in ("exact", "rejection")
        )
        assert rejection.token_ids == exact.token_ids


def test_processors_hold_and_rows_of_both_rules_share_passes() -> None:
    """Masks, penalties and bans are obeyed by what drafts leave; exact rows beside are exact."""
    path = data_path("stories260k")
    policy = FixedCascade([[4, 2], [0, 4]], 2.0, (16, 4), 2)
    engine = Engine.load(path, [data_path("llama2xs")], policy=policy, max_rows=4)
    even = list(range(0, engine.neural[0].vocab_size, 2))
    for seed in range(4):
        exact = SamplingParams(max_tokens=40, temperature=1.0, seed=seed, ignore_eos=True)
        rejection = dataclasses.replace(
            exact,
            acceptance="rejection",
            allowed_tokens=lambda row: even if len(row) % 3 else None,
            logit_bias={410: -float("inf")},
            repetition_penalty=1.3,
            logprobs=1,
            processed_logprobs=True,
        )
        both = engine.generate([PROMPT] * 2, [exact, rejection])
        engine.check_integrity()
        alone = Engine.load(path, policy=PlainDecoding()).generate(PROMPT, exact)[0]
        assert both[0].token_ids == alone.token_ids
        begin = len(prompt_ids(engine))
        for i, token in enumerate(both[1].token_ids):
            assert token != 410
            assert (begin + i) % 3 == 0 or token % 2 == 0
        again = engine.generate([PROMPT], [rejection])[0]
        assert again.token_ids == engine.generate([PROMPT], [rejection])[0].token_ids


def test_a_draft_of_nan_costs_nothing(tmp_path: Path) -> None:
    model = random_llama(tmp_path, 1, vocab_size=512, tie_word_embeddings=False)
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    model.save_pretrained(tmp_path)
    engine = Engine.load(
        data_path("stories260k"), [tmp_path], policy=FixedCascade([[4, 3], [0, 5]])
    )
    params = SamplingParams(max_tokens=30, temperature=0.8, seed=9, acceptance="rejection")
    assert engine.generate(PROMPT, params)[0].token_ids
    engine.check_integrity()


def test_preempted_and_aborted_rows_leave_nothing_behind() -> None:
    engine = Engine.load(
        data_path("stories260k"),
        [data_path("llama2xs")],
        policy=FixedCascade([[4, 2], [0, 4]]),
        max_rows=4,
        kv_cache_bytes=400_000,
    )
    params = dataclasses.replace(SAMPLING, max_tokens=60, seed=1, n=4)
    results = engine.generate(PROMPT, params)
    engine.check_integrity()
    assert len({tuple(result.token_ids) for result in results}) == 4


def test_unknown_acceptance() -> None:
    for value in ("typical", None, ""):
        with pytest.raises(RequestError, match="acceptance must be 'exact' or 'rejection'"):
            SamplingParams(acceptance=value)  # type: ignore[arg-type]
