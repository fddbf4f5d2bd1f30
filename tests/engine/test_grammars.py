"""Functions that say which tokens may follow: under speculation as in plain decoding."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from cascade_engine import Engine, SamplingParams
from cascade_engine.policy import Policy
from tests.engine.borders import CHAIN, PROMPTS, TARGET, TREE, run
from tests.engine.test_surface import everything

DRAFTING = pytest.mark.parametrize("policy", [CHAIN, TREE], ids=["chain", "tree"])


class OnlyAnswers:
    """Allows everything, and raises for a row that is not a beginning of one of `rows`."""

    def __init__(self, rows: Sequence[Sequence[int]]) -> None:
        self.rows = rows
        self.raised = 0

    def __call__(self, prefix: Sequence[int]) -> None:
        if not any(list(prefix) == list(row[: len(prefix)]) for row in self.rows):
            self.raised += 1
            raise KeyError("no such state")


@DRAFTING
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_grammar_that_raises_for_drafts_costs_the_drafts_alone(
    policy: Policy, temperature: float, plain: Engine, cascade: Engine
) -> None:
    """Plain decoding never asks about a rejected draft, so that it must not end the request."""
    cascade.set_policy(policy)
    raised = 0
    for prompt in PROMPTS:
        params: dict[str, Any] = {"max_tokens": 60, "temperature": temperature, "seed": 4}
        params |= {"n": 1 if temperature == 0 else 2, "logprobs": 1, "ignore_eos": True}
        expected = plain.generate(prompt, SamplingParams(**params))
        rows = [[*r.prompt_token_ids, *r.token_ids] for r in expected]
        grammar = OnlyAnswers(rows)
        params["allowed_tokens"] = grammar
        results = cascade.generate(prompt, SamplingParams(**params))
        assert [everything(r) for r in results] == [everything(r) for r in expected]
        raised += grammar.raised
        cascade.check_integrity()
    assert raised


@DRAFTING
def test_a_grammar_that_ends_with_the_answer(policy: Policy, plain: Engine, tmp_path: Path) -> None:
    """It raises behind a stop token and behind the last token that it allows: what is accepted past
    those is neither needed nor an error."""
    engine = Engine.load(TARGET, [TARGET], policy=policy, threads=1, max_rows=2)
    free = plain.generate(PROMPTS[0], SamplingParams(max_tokens=40))[0]
    for end in range(1, 14):
        stop = free.token_ids[end]
        first = free.token_ids.index(stop) + 1
        row = [*free.prompt_token_ids, *free.token_ids[:first]]

        def grammar(prefix: Sequence[int], row: list[int] = row) -> list[int]:
            return row[len(prefix) : len(prefix) + 1]  # nothing is allowed behind its end

        params = SamplingParams(stop_token_ids=[stop], allowed_tokens=grammar, max_tokens=40)
        (result,) = engine.generate(PROMPTS[0], params)
        assert result.token_ids == free.token_ids[:first]
        assert (result.finish_reason, result.stop) == ("stop", stop)
        short = SamplingParams(max_tokens=first, allowed_tokens=grammar, ignore_eos=True)
        assert engine.generate(PROMPTS[0], short)[0].token_ids == free.token_ids[:first]
        engine.check_integrity()


@DRAFTING
def test_a_request_fails_where_plain_decoding_does(policy: Policy, plain: Engine) -> None:
    """Every token before the failure is delivered first."""
    free = plain.generate(PROMPTS[0], SamplingParams(max_tokens=40))[0]
    row = [*free.prompt_token_ids, *free.token_ids]
    engine = Engine.load(TARGET, [TARGET], policy=policy, threads=1, max_rows=2)
    for length in (1, 2, 7, 12):
        grammar = OnlyAnswers([row[: len(free.prompt_token_ids) + length - 1]])
        engine.add_request(PROMPTS[0], SamplingParams(allowed_tokens=grammar), "bad")
        tokens, errors = run(engine)
        assert [error.request_ids for error in errors] == [["bad"]]
        assert "no such state" in str(errors[0])
        assert tokens == {"bad": free.token_ids[:length]}
        engine.check_integrity()


@DRAFTING
def test_a_request_without_a_token_left_fails_alone(policy: Policy, plain: Engine) -> None:
    """The rule forbids everything at one position: a failure of native code, in a pass that the
    request shares with others."""
    params = SamplingParams(max_tokens=40, ignore_eos=True)
    free = plain.generate(PROMPTS[0], params)[0]
    other = plain.generate(PROMPTS[1], params)[0]
    fatal = len(free.prompt_token_ids) + 9

    def grammar(prefix: Sequence[int]) -> list[int] | None:
        return [5] if len(prefix) == fatal else None

    bad = SamplingParams(max_tokens=40, allowed_tokens=grammar, min_tokens=30, stop_token_ids=[5])
    engine = Engine.load(TARGET, [TARGET], policy=policy, threads=1, max_rows=3)
    engine.add_request(PROMPTS[0], bad, "bad")
    engine.add_request(PROMPTS[1], params, "good")
    tokens, errors = run(engine)
    assert [error.request_ids for error in errors] == [["bad"]]
    assert tokens == {"bad": free.token_ids[:9], "good": other.token_ids}
