"""Requests on their way in and out: what is refused, which samples forks are, and aborts."""

from __future__ import annotations

import copy
import itertools
import pickle
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from cascade_engine import Engine, PlainDecoding, SamplingParams
from cascade_engine.errors import CapacityError, DecodingError, RequestError
from cascade_engine.policy import Listener
from tests.data import data_path

PROMPT = [1, *range(300, 320)]


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine.load(
        data_path("stories260k"), policy=PlainDecoding(), reuse_cache=False, threads=1
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_tokens": 0}, "max_tokens must be an integer >= 1, got 0"),
        ({"max_tokens": True}, "max_tokens must be an integer >= 1, got True"),
        ({"temperature": -0.1}, "temperature must be a number in 0"),
        ({"temperature": float("nan")}, "temperature must be a number"),
        ({"top_p": 0.0}, "top_p must be > 0"),
        ({"top_p": 1.1}, "top_p must be a number in 0..1, got 1.1"),
        ({"top_k": -1}, "top_k must be an integer >= 0, got -1"),
        ({"min_p": 2}, "min_p must be a number in 0..1, got 2"),
        ({"repetition_penalty": 0}, "repetition_penalty must be > 0"),
        ({"logit_bias": {3: float("inf")}}, r"logit_bias\[3\] must be a number below inf"),
        ({"logit_bias": {-3: 1.0}}, "must be an integer >= 0, got -3"),
        ({"n": 2}, "n=2 samples at temperature 0"),
        ({"seed": -1}, "seed must be an integer >= 0, got -1"),
        ({"seed": 2**64}, "seed must be at most"),
        ({"stop": [""]}, r"stop\[0\] must be a string that is not empty"),
        ({"logprobs": -1}, "logprobs must be an integer >= 0"),
        ({"stop": None}, "stop must be a text or a list of texts, got None"),
        ({"stop_token_ids": 2}, "stop_token_ids must be a list of token ids, got 2"),
        ({"logit_bias": [3]}, r"logit_bias must map token ids to numbers, got \[3\]"),
        ({"prediction": 5}, "prediction must be a text or a list of token ids, got 5"),
        ({"decoder_prefix": b"x"}, "decoder_prefix must be a text or a list of token ids"),
        ({"allowed_tokens": [1]}, r"allowed_tokens must be a function .*, got \[1\]"),
        ({"ignore_eos": "no"}, "ignore_eos must be True or False, got 'no'"),
        ({"logprobs": 1001}, "logprobs must be at most 1000, got 1001"),
        ({"min_tokens": 9, "max_tokens": 8}, "min_tokens .* max_tokens=8, got 9: lower it or"),
        ({"processed_logprobs": True}, r"processed_logprobs .* none are asked .*: set logprobs"),
    ],
)
def test_bad_parameters(options: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        SamplingParams(**options)


def test_bad_requests(engine: Engine) -> None:
    with pytest.raises(RequestError, match="the prompt is empty"):
        engine.generate([[]])
    with pytest.raises(RequestError, match=r"prompt\[1\] must be a token id in 0..511, got 512"):
        engine.generate([[1, 512]])
    with pytest.raises(CapacityError, match="no room for an answer in a context of 512"):
        engine.generate([[5] * 512])
    with pytest.raises(
        RequestError, match="stop_token_ids names token 600; the vocabulary has 512"
    ):
        engine.generate("x", SamplingParams(stop_token_ids=[600]))
    with pytest.raises(RequestError, match=r"policy must be 'auto', .*, got None"):
        engine.set_policy(None)  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="a stream has one sample"):
        engine.stream("x", SamplingParams(n=2, temperature=1.0))
    small = Engine.load(data_path("stories260k"), kv_cache_bytes=2 * 5 * 4 * 8 * 4 * 64, max_rows=1)
    with pytest.raises(
        CapacityError, match=r"row of 103 tokens .* cache of 64 tokens: lower max_tok"
    ):
        small.generate([[5, 6, 7]], SamplingParams(max_tokens=100))
    engine.add_request("x", request_id="twice")
    with pytest.raises(RequestError, match="'twice' is in use"):
        engine.add_request("x", request_id="twice")
    assert engine.abort("twice")
    assert not engine.has_work()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_rows": True}, "max_rows must be an integer >= 1, got True"),
        ({"max_rows": None}, "max_rows must be an integer >= 1, got None"),
        ({"prefill_tokens": 0}, "prefill_tokens must be an integer >= 1, got 0"),
        ({"prefill_tokens": 0.5}, "prefill_tokens must be an integer >= 1, got 0.5"),
        ({"threads": 0}, "threads must be an integer >= 1, got 0"),
        ({"kv_cache_bytes": 1e9}, "kv_cache_bytes must be an integer >= 1, got 1000000000.0"),
        ({"learn_tokens": False}, "learn_tokens must be 0 .* got False"),
        ({"compress_weights": 1}, "compress_weights must be 'auto', True or False, got 1"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    """Refused before any model is looked at."""
    with pytest.raises(RequestError, match=message):
        Engine.load("no such directory", **options)


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        (None, "list of such prompts, got NoneType$"),
        (iter(["x"]), r"list of such prompts, got list_iterator: pass list\(\) of it"),
        (torch.tensor([1, 2]), r"list of such prompts, got Tensor: pass its tolist\(\)"),
        ([torch.tensor([1, 2])], r"the prompt must be a text .* got Tensor: call its tolist\(\)"),
        ([None], "the prompt must be a text or a list of token ids, got NoneType"),
        (b"abc", "the prompt must be a text or a list of token ids, got bytes"),
    ],
)
def test_what_is_no_prompt(prompts: Any, message: str, engine: Engine) -> None:
    with pytest.raises(RequestError, match=message):
        engine.generate(prompts)


@pytest.mark.parametrize("params", [{"max_tokens": 3}, [{"max_tokens": 3}]])
def test_what_are_no_parameters(params: Any, engine: Engine) -> None:
    with pytest.raises(RequestError, match="params must be SamplingParams"):
        engine.generate(["x"], params)
    assert not engine.has_work()


def test_drafts_are_a_list() -> None:
    with pytest.raises(RequestError, match="drafts must be a list, got 'small/': put it into"):
        Engine.load("no such directory", "small/")


def test_parameters_and_errors_go_to_other_processes() -> None:
    params = SamplingParams(logit_bias={3: -1.0}, stop="a", seed=5)
    for other in (pickle.loads(pickle.dumps(params)), copy.deepcopy(params)):
        assert other == params
        with pytest.raises(TypeError):
            other.logit_bias[3] = 0.0
    error = pickle.loads(pickle.dumps(DecodingError("why", ["a"])))
    assert (str(error), error.request_ids) == ("why", ["a"])


def test_an_id_is_free_when_all_of_it_is_delivered_or_aborted(engine: Engine) -> None:
    few, more = (SamplingParams(max_tokens=n, ignore_eos=True) for n in (2, 9))
    for _ in range(2):
        engine.add_request(PROMPT, few, "a")
        engine.generate(PROMPT, more)
        with pytest.raises(RequestError, match="'a' is in use"):
            engine.add_request(PROMPT, few, "a")
        assert not engine.abort("a")
        assert not engine.has_work()
        assert engine.step() == []


def test_a_fork_is_no_sample_that_there_was(engine: Engine) -> None:
    """Breaks when forks are numbered behind the samples that still run: they would get the noise
    of one that is through, and be delivered as that one."""
    options: dict[str, Any] = {"temperature": 1.0, "seed": 5, "ignore_eos": True}
    first, _, last = engine.generate([PROMPT], SamplingParams(max_tokens=30, n=3, **options))
    stop = last.token_ids[3]
    assert stop not in first.token_ids[:6], "sample 2 ends before sample 0: else another seed"
    options["stop_token_ids"] = [stop]
    request_id = engine.add_request(PROMPT, SamplingParams(max_tokens=30, n=3, **options))
    got: dict[int, list[int]] = {}

    def step() -> None:
        for out in engine.step():
            got.setdefault(out.index, []).extend(out.token_ids)

    for _ in range(5):
        step()
    begun = len(got[0])
    assert engine.fork(request_id, 1) == [3]
    assert engine.fork(request_id, 2) == [4, 5]
    while engine.has_work():
        step()
    assert got[2] == last.token_ids[: 1 + last.token_ids.index(stop)]
    rest = SamplingParams(max_tokens=30 - begun, n=6, **options)
    alone = engine.generate([PROMPT + got[0][:begun]], rest)
    assert [got[index] for index in (3, 4, 5)] == [alone[i].token_ids for i in (3, 4, 5)]


def test_a_fork_finds_a_stop_that_began_before_it(engine: Engine) -> None:
    """Breaks when a fork's search for stops starts with its own first token."""

    def fork(**options: Any) -> tuple[str, str, list[int], int | str | None]:
        """The text up to the fork, the fork's, its tokens, and what ended it."""
        params = SamplingParams(max_tokens=20, temperature=1.0, seed=5, ignore_eos=True, **options)
        request_id = engine.add_request(PROMPT, params)
        outputs = [out for _ in range(5) for out in engine.step()]
        begun = "".join(out.text for out in outputs)
        assert engine.fork(request_id, 1) == [1]
        while engine.has_work():
            outputs += engine.step()
        forked = [out for out in outputs if out.index == 1]
        tokens = [token for out in forked for token in out.token_ids]
        return begun, "".join(out.text for out in forked), tokens, forked[-1].stop

    begun, rest, tokens, _ = fork()
    stop = begun[-2:] + rest[:2]
    assert len(stop) == 4
    assert (begun + rest).index(stop) == len(begun) - 2
    _, _, stopped, reason = fork(stop=[stop])
    assert reason == stop
    assert stopped == tokens[: len(stopped)]
    assert len(stopped) < 4


def test_what_cannot_be_forked(engine: Engine) -> None:
    with pytest.raises(RequestError, match="cannot fork 'nobody': no such request waits or runs"):
        engine.fork("nobody", 1)
    for n in (0, True, 1.0):
        with pytest.raises(RequestError, match=f"n must be an integer >= 1 to fork 'x', got {n}"):
            engine.fork("x", n)


def test_outputs_hold_nothing_that_the_engine_decodes_with(engine: Engine) -> None:
    """Breaks when they hold a list of the row's, or each a copy of its own."""
    params = SamplingParams(max_tokens=3, ignore_eos=True)
    (expected,) = engine.generate([PROMPT], params)
    engine.add_request(PROMPT, params)
    (first,) = engine.step()
    assert first.prompt_token_ids == PROMPT
    first.prompt_token_ids.clear()
    outputs = [first]
    while outputs[-1].finish_reason is None:
        outputs += engine.step()
    assert outputs[-1].prompt_token_ids is first.prompt_token_ids
    assert [piece.token_id for out in outputs for piece in out.pieces] == expected.token_ids
    assert expected.prompt_token_ids == PROMPT


def test_nothing_of_an_aborted_request_is_delivered(engine: Engine) -> None:
    """Also not what it had emitted while another one was generated."""
    params = SamplingParams(max_tokens=8, ignore_eos=True)
    for request_id in ("gone", "stays"):
        engine.add_request(PROMPT, SamplingParams(max_tokens=30, ignore_eos=True), request_id)
    engine.generate([PROMPT], params)
    assert engine.abort("gone")
    tokens: dict[str, int] = {}
    while engine.has_work():
        for out in engine.step():
            tokens[out.request_id] = tokens.get(out.request_id, 0) + len(out.token_ids)
    assert tokens == {"stays": 30}


def test_a_failure_reaches_its_own_request_alone(engine: Engine) -> None:
    """Breaks when `generate` gives up for another request's error, or when a stream whose request
    failed in somebody else's step waits for it for ever."""

    def broken(tokens: Sequence[int]) -> list[int] | None:
        return [] if len(tokens) > len(PROMPT) + 2 else None

    good = SamplingParams(max_tokens=9, ignore_eos=True)
    bad = SamplingParams(max_tokens=9, ignore_eos=True, allowed_tokens=broken)
    alone = engine.generate([PROMPT], good)[0].token_ids
    stream = engine.stream(PROMPT, bad)
    request_id = engine.add_request(PROMPT, bad)
    assert engine.generate([PROMPT], good)[0].token_ids == alone
    assert [piece.token_id for piece in itertools.islice(stream, 3)] == alone[:3]
    with pytest.raises(DecodingError, match="allows no token"):
        next(stream)
    assert engine.has_work()
    tokens: list[int] = []
    errors: list[DecodingError] = []
    while engine.has_work():
        try:
            tokens += [each for out in engine.step() for each in out.token_ids]
        except DecodingError as error:
            errors.append(error)
    assert tokens == alone[:3]
    assert [error.request_ids for error in errors] == [[request_id]]
    engine.add_request(PROMPT, SamplingParams(allowed_tokens=lambda tokens: []), "at once")
    engine.generate([PROMPT], good)
    assert engine.has_work()
    with pytest.raises(DecodingError, match="allows no token"):
        engine.step()
    assert not engine.has_work()
    engine.check_integrity()


def test_a_listener_that_raises_loses_no_token(engine: Engine) -> None:
    class Broken(Listener):
        def stepped(self, *args: Any) -> None:
            raise ArithmeticError

    params = SamplingParams(max_tokens=5, ignore_eos=True)
    alone = engine.generate([PROMPT], params)[0].token_ids
    engine.add_request(PROMPT, params)
    broken = Broken()
    engine.listeners.append(broken)
    with pytest.raises(ArithmeticError):
        engine.step()
    engine.listeners.remove(broken)
    tokens: list[int] = []
    while engine.has_work():
        tokens += [each for out in engine.step() for each in out.token_ids]
    assert tokens == alone
