"""Rows of encoder-decoders: decoder prefixes, samples, forks, preemption."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import T5ForConditionalGeneration

from cascade_engine import Engine, FixedCascade, PlainDecoding, SamplingParams
from cascade_engine.errors import CapacityError, RequestError
from cascade_engine.levels import EncoderDecoderLevel
from tests.engine.t5_support import VOCAB, Counting, random_prompt, t5_models
from tests.models.support import random_llama


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return t5_models(tmp_path_factory.mktemp("models"))


@pytest.mark.parametrize("padding", [None, "left"])
def test_a_decoder_prefix_is_gone_on_from(models: dict[str, Path], padding: str | None) -> None:
    """An answer's own beginning as prefix gives the rest of it, also in a batch with the cascade
    on: noise belongs to a position. Breaks when a prefix is not fed, or moves what follows."""
    params = SamplingParams(max_tokens=40, temperature=1.0, seed=3, ignore_eos=True)
    prompt = random_prompt(random.Random(2))
    plain = Engine.load(models["v1.0"], policy=PlainDecoding(), max_rows=1)
    whole = plain.generate(prompt, params)[0].token_ids
    cuts = (0, 1, 7, 15, 31)
    each = [replace(params, max_tokens=40 - cut, decoder_prefix=whole[:cut], n=1) for cut in cuts]
    engine = Engine.load(
        models["v1.0"],
        [models["v1.0 near"]],
        policy=FixedCascade([[4, 0], [0, 5]], tree=8),
        padding=padding,
    )
    results = engine.generate([prompt] * len(cuts), each)
    assert [r.token_ids for r in results] == [whole[cut:] for cut in cuts]
    assert [r.stats.prompt_tokens for r in results] == [len(prompt) + cut for cut in cuts]
    assert results[-1].prompt_token_ids == prompt


def test_a_decoder_prefix_is_that_of_transformers(models: dict[str, Path]) -> None:
    """Penalties included, which count it."""
    prompt, prefix = list(range(2, 60)), [9, 8, 7, 90]
    for name in ("v1.0", "v1.1"):
        model = T5ForConditionalGeneration.from_pretrained(models[name]).eval()
        expected = model.generate(
            torch.tensor([prompt]),
            decoder_input_ids=torch.tensor([[0, *prefix]]),
            max_new_tokens=30,
            do_sample=False,
            repetition_penalty=3.0,
            eos_token_id=None,
        )[0, 5:].tolist()
        engine = Engine.load(models[name], [models[f"{name} near"]], dtype="float32")
        params = SamplingParams(
            max_tokens=30, repetition_penalty=3.0, ignore_eos=True, decoder_prefix=prefix
        )
        assert engine.generate(prompt, params)[0].token_ids == expected


def test_decoder_prefixes_that_do_not_fit_are_refused(
    models: dict[str, Path], tmp_path: Path
) -> None:
    engine = Engine.load(models["v1.0"], max_context=50)
    with pytest.raises(CapacityError, match=r"20 tokens and its decoder_prefix 29, which"):
        engine.generate([5] * 20, SamplingParams(decoder_prefix=[5] * 29))
    with pytest.raises(RequestError, match=r"decoder_prefix\[1\] must be a token id in 0..149"):
        engine.generate([5] * 20, SamplingParams(decoder_prefix=[5, VOCAB]))
    random_llama(tmp_path / "llama", 1, vocab_size=VOCAB)
    with pytest.raises(RequestError, match="put it at the end of the prompt"):
        Engine.load(tmp_path / "llama").generate([5], SamplingParams(decoder_prefix=[5]))


def test_samples_and_forks(models: dict[str, Path]) -> None:
    """Samples differ by their noise alone, and a fork goes on from where its parent is."""
    prompt = random_prompt(random.Random(1))[:40] * 2
    params = SamplingParams(max_tokens=30, temperature=1.0, seed=3, n=3, ignore_eos=True)
    engine = Engine.load(
        models["v1.0"], [models["v1.0 near"]], policy=FixedCascade([[3, 2], [0, 3]])
    )
    samples = engine.generate(prompt, params)
    plain = Engine.load(models["v1.0"], policy=PlainDecoding(), max_rows=1)
    expected = plain.generate(prompt, params)
    assert [s.token_ids for s in samples] == [s.token_ids for s in expected]
    assert len({tuple(s.token_ids) for s in samples}) == 3

    one = SamplingParams(max_tokens=30, temperature=1.0, seed=3, ignore_eos=True)
    tokens: dict[int, list[int]] = {}
    request = engine.add_request(prompt, one)
    for _ in range(3):
        for out in engine.step():
            tokens.setdefault(out.index, []).extend(out.token_ids)
    shared = list(tokens[0])
    assert engine.fork(request, 2) == [1, 2]
    while engine.has_work():
        for out in engine.step():
            tokens.setdefault(out.index, []).extend(out.token_ids)
        engine.check_integrity()
    assert tokens[0] == samples[0].token_ids
    assert len({tuple(t) for t in tokens.values()}) == 3
    assert all(len(tokens[i]) == 30 - len(shared) for i in (1, 2))


def test_samples_share_one_encoding(models: dict[str, Path]) -> None:
    """One pass of each level's encoder serves all samples of a request and its forks."""
    engine = Engine.load(
        models["v1.0"], [models["v1.0 near"]], policy=FixedCascade([[3, 0], [0, 3]])
    )
    encoded: dict[str, list[int]] = {}
    for level in engine.neural:
        assert isinstance(level, EncoderDecoderLevel)
        level._encoder = Counting(level._encoder, encoded.setdefault(level.name, []))
    params = SamplingParams(max_tokens=20, temperature=1.0, seed=3, n=4, ignore_eos=True)
    request = engine.add_request(list(range(1, 100)), params)
    engine.step()
    engine.step()
    engine.fork(request, 2)
    while engine.has_work():
        engine.step()
        engine.check_integrity()
    assert [len(slots) for slots in encoded.values()] == [1, 1]


def test_preempted_rows_start_over(models: dict[str, Path]) -> None:
    """Caches too small for all rows: the tokens stay the same. Breaks when a row that lost its
    pages goes on without its source."""
    rng = random.Random(8)
    prompts = [random_prompt(rng, 60) for _ in range(6)]
    params = SamplingParams(max_tokens=60, temperature=0.8, seed=1, ignore_eos=True)
    roomy = Engine.load(models["v1.1"], policy=PlainDecoding())
    expected = [r.token_ids for r in roomy.generate(prompts, params)]
    policy = FixedCascade([[4, 0], [0, 4]], tree=8)
    small = Engine.load(
        models["v1.1"],
        [models["v1.1 near"]],
        policy=policy,
        max_context=200,
        kv_cache_bytes=2 * 2 * 2 * 24 * 4 * 320,
    )
    assert [r.token_ids for r in small.generate(prompts, params)] == expected
    assert small.stats()["requests"]["preempted"] > 0
    small.check_integrity()
