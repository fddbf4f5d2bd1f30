"""Everything a request can ask for, right under speculation: tokens, text, stops, logprobs."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from cascade_engine import Engine, FixedCascade, Generation, PlainDecoding, SamplingParams
from cascade_engine.errors import DecodingError
from tests.data import data_path

PROMPT = "Once upon a time, there was a little girl named Lily. She loved to play"
K_MATRICES = [[[4, 0], [0, 6]], [[0, 10], [0, 10]], [[8, 4], [0, 3]], [[3, 0], [0, 0]]]


@pytest.fixture(scope="module")
def target() -> Path:
    return data_path("stories260k")


@pytest.fixture(scope="module")
def engines(target: Path) -> dict[str, Engine]:
    """A plain engine, which forgets, and a cascade, which reuses caches."""
    return {
        "plain": Engine.load(target, policy=PlainDecoding(), reuse_cache=False, threads=1),
        "cascade": Engine.load(target, [data_path("llama2xs")], threads=1, max_rows=6),
    }


def even_tokens_after_a_vowel(prefix: Sequence[int]) -> list[int] | None:
    """A made-up grammar: a pure function of the prefix."""
    return None if prefix[-1] % 3 else list(range(3 + prefix[-1] % 2, 512, 2))


def no_double_tokens(prefix: Sequence[int]) -> torch.Tensor:
    allowed = torch.ones(512, dtype=torch.bool)
    allowed[prefix[-1]] = False
    return allowed


def random_policy(rng: random.Random) -> FixedCascade:
    tree = rng.choice([0, (12,), (64, 6)])
    siblings = 2 if tree and rng.random() < 0.7 else 0
    return FixedCascade(rng.choice(K_MATRICES), rng.choice([1.0, 3.0]), tree, siblings)


def random_params(rng: random.Random) -> SamplingParams:
    temperature = rng.choice([0.0, 0.6, 1.0])
    options: dict[str, Any] = {
        "max_tokens": rng.randint(1, 50),
        "temperature": temperature,
        "seed": rng.randrange(2**32),
        "n": rng.choice([1, 1, 3]) if temperature else 1,
    }
    extras: dict[str, Any] = {
        "top_k": rng.choice([1, 7, 100]),
        "top_p": rng.choice([0.3, 0.9]),
        "min_p": rng.choice([0.02, 0.3]),
        "repetition_penalty": rng.choice([0.8, 1.3]),
        "presence_penalty": rng.choice([-0.5, 1.5]),
        "frequency_penalty": rng.choice([-0.2, 0.7]),
        "logit_bias": {rng.randrange(512): rng.uniform(-5, 5) for _ in range(4)},
        "allowed_tokens": rng.choice([even_tokens_after_a_vowel, no_double_tokens]),
        "min_tokens": rng.randint(1, 30),
        "ignore_eos": True,
        "stop": rng.choice([" the", ["e", "ay "], ["Lily", "\n"], ["was a", "."]]),
        "stop_token_ids": [rng.randrange(3, 512) for _ in range(5)],
        "include_stop": True,
        "logprobs": rng.choice([0, 3]),
        "processed_logprobs": True,
        "prediction": "One day, she went to the park and saw a big dog. The dog was sad.",
    }
    for name in rng.sample(sorted(extras), rng.randint(1, 7)):
        options[name] = extras[name]
    options["min_tokens"] = min(options.get("min_tokens", 0), options["max_tokens"])
    options["processed_logprobs"] = "processed_logprobs" in options and "logprobs" in options
    return SamplingParams(**options)


def everything(result: Generation) -> tuple[object, ...]:
    return (
        result.token_ids,
        result.text,
        [piece.text for piece in result.pieces],
        result.finish_reason,
        result.stop,
        result.logprobs,
        result.seed,
    )


@pytest.mark.parametrize("seed", range(200))
def test_cascade_equals_plain_in_every_respect(seed: int, engines: dict[str, Engine]) -> None:
    rng = random.Random(seed)
    plain, cascade = engines["plain"], engines["cascade"]
    cascade.set_policy(random_policy(rng))
    prompts = [PROMPT[: rng.randint(5, len(PROMPT))] for _ in range(rng.choice([1, 2]))]
    params = [random_params(rng) for _ in prompts]
    expected = [
        everything(result)
        for prompt, each in zip(prompts, params, strict=True)
        for result in plain.generate(prompt, each)
    ]
    assert [everything(result) for result in cascade.generate(prompts, params)] == expected
    cascade.check_integrity()


def test_stopping_really_happens_in_those_cases(engines: dict[str, Engine]) -> None:
    """Guards the test above: it meets stop strings, stop tokens and accepted runs around them."""
    kinds = set()
    cascade = engines["cascade"]
    cascade.set_policy(FixedCascade([[8, 4], [0, 10]]))
    for seed in range(200):
        rng = random.Random(seed)
        random_policy(rng)
        result = cascade.generate(PROMPT, random_params(rng))[0]
        kinds.add((result.finish_reason, type(result.stop)))
    assert kinds == {("stop", int), ("stop", str), ("length", type(None))}


def test_nothing_after_a_stop_is_emitted_counted_or_cached(target: Path) -> None:
    engine = Engine.load(target, [target], policy=FixedCascade([[20, 0], [0, 0]]), max_rows=1)
    free = engine.generate(PROMPT, SamplingParams(max_tokens=40))[0]
    stop = free.text[30:34]
    engine.clear_cache()
    result = engine.generate(PROMPT, SamplingParams(max_tokens=40, stop=stop))[0]
    assert result.finish_reason == "stop"
    assert result.stop == stop
    assert result.text == free.text[: free.text.index(stop)]
    assert result.stats.new_tokens == len(result.token_ids) < 40
    assert result.token_ids == free.token_ids[: len(result.token_ids)]
    cached = engine.neural[0].pages.length[0]
    assert cached <= len(result.prompt_token_ids) + len(result.token_ids)


def test_streamed_text_never_shows_a_stop_or_its_beginning(engines: dict[str, Engine]) -> None:
    cascade = engines["cascade"]
    params = SamplingParams(max_tokens=60, stop=["park and", "play with the"])
    shown = ""
    stream = cascade.stream(PROMPT, params)
    for piece in stream:
        shown += piece.text
        assert not shown.endswith(("park", "park a", "park an"))
    assert shown == stream.result().text


def test_n_samples_differ_and_each_is_reproducible(engines: dict[str, Engine]) -> None:
    params = SamplingParams(max_tokens=30, temperature=1.0, seed=3, n=4)
    first = engines["cascade"].generate(PROMPT, params)
    assert [result.index for result in first] == [0, 1, 2, 3]
    assert len({tuple(result.token_ids) for result in first}) == 4
    again = engines["plain"].generate(PROMPT, params)
    assert [r.token_ids for r in again] == [r.token_ids for r in first]


def test_samples_share_the_prompt(target: Path) -> None:
    engine = Engine.load(target, policy=PlainDecoding())
    prompt = [1, *list(range(10, 70))]
    results = engine.generate(prompt, SamplingParams(n=3, temperature=1.0, max_tokens=5))
    assert [result.stats.cached_tokens for result in results] == [0, 60, 60]


def test_a_later_prompt_reuses_the_cache_of_an_earlier_one(target: Path) -> None:
    fresh = Engine.load(target, reuse_cache=False)
    engine = Engine.load(target)
    params = SamplingParams(max_tokens=20, temperature=0.9, seed=1)
    first = engine.generate(PROMPT, params)[0]
    longer = [*first.prompt_token_ids, *first.token_ids, 300, 301]
    second = engine.generate(longer, params)[0]
    assert second.stats.cached_tokens >= len(first.prompt_token_ids) + 15
    assert second.token_ids == fresh.generate(longer, params)[0].token_ids
    engine.check_integrity()
    engine.clear_cache()
    assert engine.neural[0].pages.free_pages == engine.neural[0].pages.pages


def test_a_drawn_seed_is_reported_and_reproduces(engines: dict[str, Engine]) -> None:
    drawn = engines["plain"].generate(PROMPT, SamplingParams(max_tokens=20, temperature=1.0))[0]
    params = SamplingParams(max_tokens=20, temperature=1.0, seed=drawn.seed)
    assert engines["cascade"].generate(PROMPT, params)[0].token_ids == drawn.token_ids


def test_a_good_prediction_saves_passes(engines: dict[str, Engine]) -> None:
    plain = engines["plain"].generate(PROMPT, SamplingParams(max_tokens=60))[0]
    cascade = engines["cascade"]
    cascade.set_policy(FixedCascade([[0, 10], [0, 10]]))
    calls = {}
    for prediction in (None, plain.text):
        result = cascade.generate(PROMPT, SamplingParams(max_tokens=60, prediction=prediction))[0]
        assert result.token_ids == plain.token_ids
        calls[prediction is None] = result.stats.target_calls
    assert calls[False] < calls[True] / 2


def test_an_allowed_tokens_function_that_raises_drops_its_request_alone(target: Path) -> None:
    engine = Engine.load(target, policy=FixedCascade([[5]]))

    def broken(prefix: Sequence[int]) -> list[int]:
        return [] if len(prefix) > 12 else [10, 11]

    engine.add_request([1, 10, 11], SamplingParams(allowed_tokens=broken), "bad")
    engine.add_request([1, 10, 11], SamplingParams(max_tokens=20, ignore_eos=True), "good")
    tokens: list[int] = []
    errors: list[DecodingError] = []
    while engine.has_work():
        try:
            outputs = engine.step()
        except DecodingError as error:
            errors.append(error)
            continue
        for out in outputs:
            if out.request_id == "good":
                tokens += out.token_ids
    assert [error.request_ids for error in errors] == [["bad"]]
    assert "allows no token after 13 tokens" in str(errors[0])
    engine.set_policy(PlainDecoding())
    alone = engine.generate([1, 10, 11], SamplingParams(max_tokens=20, ignore_eos=True))[0]
    assert tokens == alone.token_ids
    engine.check_integrity()


def test_abort_frees_and_disturbs_nobody(target: Path) -> None:
    engine = Engine.load(target, max_rows=2, reuse_cache=False)
    params = SamplingParams(max_tokens=30, ignore_eos=True)
    for name in ("a", "b", "c"):
        engine.add_request(PROMPT, params, name)
    engine.step()
    assert engine.abort("a")
    assert not engine.abort("a")
    tokens: dict[str, list[int]] = {"b": [], "c": []}
    finished = set()
    while engine.has_work():
        for out in engine.step():
            tokens[out.request_id] += out.token_ids
            if out.finish_reason:
                finished.add(out.request_id)
        engine.check_integrity()
    assert finished == {"b", "c"}
    alone = engine.generate(PROMPT, params)[0].token_ids
    assert tokens["c"] == alone
    assert engine.neural[0].pages.free_pages == engine.neural[0].pages.pages


def test_a_closed_stream_shows_what_was_held_back(engines: dict[str, Engine]) -> None:
    cascade = engines["cascade"]
    cascade.set_policy(PlainDecoding())
    free = cascade.generate(PROMPT, SamplingParams(max_tokens=30))[0]
    params = SamplingParams(max_tokens=30, stop=free.text[:5] + "never")
    stream = cascade.stream(PROMPT, params)
    pieces = [next(stream) for _ in range(3)]
    stream.close()
    result = stream.result()
    assert result.finish_reason == "abort"
    assert result.token_ids == free.token_ids[:3] == [piece.token_id for piece in pieces]
    assert free.text.startswith(result.text)
    assert len(result.text) > sum(len(piece.text) for piece in pieces)
