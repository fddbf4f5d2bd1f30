"""Learning from complete answers: off by default, bounded, clearable, and never a token of anyone's
text."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from cascade_engine import AsyncEngine, Engine, FixedCascade, PlainDecoding, SamplingParams
from cascade_engine.errors import DecodingError, RequestError
from tests.data import data_path

TARGET = data_path("stories260k")
PROMPTS = [f"{name} went to the" for name in ("Tom", "Lily", "Sam", "The cat")]
PARAMS = SamplingParams(max_tokens=60, ignore_eos=True)

CONTEXT = 8
"""Of the prompt's last tokens: the contexts of the answer's first."""


def learnt_of(prompt: Sequence[int], answer: Sequence[int]) -> int:
    """Tokens that an answer adds, with a border behind it."""
    return min(CONTEXT, len(prompt)) + len(answer) + 1


def load(learn_tokens: int = 0, **options: Any) -> Engine:
    options.setdefault("policy", FixedCascade([[0]], tree=16))
    return Engine.load(TARGET, threads=1, learn_tokens=learn_tokens, **options)


def test_answers_come_sooner_and_are_the_same() -> None:
    plain = load(policy=PlainDecoding())
    calls, learnt = {}, 0
    for learn_tokens in (0, 1000):
        engine = load(learn_tokens)
        results = [engine.generate(prompt, PARAMS)[0] for prompt in PROMPTS * 2]
        for prompt, result in zip(PROMPTS * 2, results, strict=True):
            learnt += learnt_of(result.prompt_token_ids, result.token_ids) * (learn_tokens > 0)
            assert result.token_ids == plain.generate(prompt, PARAMS)[0].token_ids
        assert engine.statistical.learned == (0 if not learn_tokens else learnt)
        calls[learn_tokens] = sum(result.stats.target_calls for result in results)
    assert calls[1000] < 0.7 * calls[0]


def test_only_complete_requests_are_learnt() -> None:
    engine = load(1000)
    engine.add_request(PROMPTS[0], PARAMS, "aborted")
    for _ in range(4):
        engine.step()
    assert engine.abort("aborted")
    stream = engine.stream(PROMPTS[0], PARAMS)
    next(stream)
    stream.close()
    assert engine.statistical.learned == 0

    def broken(prefix: Sequence[int]) -> None:
        if len(prefix) > 20:
            raise KeyError

    with pytest.raises(DecodingError):
        engine.generate(PROMPTS[0], SamplingParams(allowed_tokens=broken))
    assert engine.statistical.learned == 0
    stopped = engine.generate(PROMPTS[0], SamplingParams(max_tokens=9))[0]
    learnt = learnt_of(stopped.prompt_token_ids, stopped.token_ids)
    assert engine.statistical.learned == learnt


@pytest.mark.parametrize("tree", [0, 16])
def test_answers_only_whatever_drafted_them(tree: int) -> None:
    """Of a prompt no more than what the answer's first tokens stand behind. Chains are learnt from
    and do not use it: the policy may change."""
    engine = load(1000, policy=FixedCascade([[5]], tree=tree))
    engine.generate([1, *range(20, 60)], SamplingParams(max_tokens=7, ignore_eos=True))
    assert engine.statistical.learned == CONTEXT + 7 + 1


def test_it_is_bounded_and_cleared() -> None:
    engine = load(100)
    held = []
    for _ in range(3):
        for prompt in PROMPTS:
            engine.generate(prompt, PARAMS)
            held.append(engine.statistical.learned)
    assert max(held) <= 100
    assert min(held) > 30
    engine.clear_learned()
    assert engine.statistical.learned == 0
    fresh = load(0).generate(PROMPTS[0], PARAMS)[0]
    again = engine.generate(PROMPTS[0], PARAMS)[0]
    assert again.stats.target_calls == fresh.stats.target_calls
    assert again.stats.as_dict()["levels"][1]["drafted"] == fresh.stats.levels[1].drafted


def test_each_engine_learns_for_itself() -> None:
    learning, other = load(1000), load(1000)
    learning.generate(PROMPTS[0], PARAMS)
    assert other.statistical.learned == 0


def test_a_served_engine_forgets_between_two_steps() -> None:
    engine = load(1000)

    async def main() -> None:
        async with AsyncEngine(engine) as served:
            await served.generate(PROMPTS[0], PARAMS)
            assert engine.statistical.learned
            await served.clear_learned()
            assert not engine.statistical.learned

    asyncio.run(asyncio.wait_for(main(), 60))


@pytest.mark.parametrize("value", [-1, 63, 2**24 + 1, 100.0, True])
def test_bad_values(value: object) -> None:
    with pytest.raises(RequestError, match=r"learn_tokens must be 0 \(off\) or an integer in 64"):
        Engine.load(TARGET, learn_tokens=value)  # type: ignore[arg-type]
