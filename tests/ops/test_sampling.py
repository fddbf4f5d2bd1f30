"""The native sampler against the float64 oracle and against transformers' processors."""

from __future__ import annotations

import dataclasses
import math
import random

import pytest
import torch
import transformers.generation.logits_process as hf

from cascade_engine import _C
from tests.ops.native import context, distribution, every_isa, mask_words, sample, sampler
from tests.reference import sampling as oracle
from tests.reference.sampling import Params

NAN, INF = math.nan, math.inf
CLEAR = 2e-5  # margins below it are left to rounding


def random_params(rng: random.Random, vocab: int, prefix: int) -> Params:
    """Each parameter on or off by the toss of a coin."""

    def maybe(value, off):
        return value if rng.random() < 0.5 else off

    ids = [rng.randrange(vocab) for _ in range(6)]
    return Params(
        temperature=rng.choice([0.0, 0.5, 1.0, 1.7]),
        top_k=maybe(rng.choice([1, 2, 7, 40, vocab - 1, vocab, vocab + 9]), 0),
        top_p=maybe(rng.choice([0.05, 0.5, 0.9, 0.99]), 1.0),
        min_p=maybe(rng.choice([0.01, 0.2]), 0.0),
        repetition_penalty=maybe(rng.choice([0.7, 1.3]), 1.0),
        presence_penalty=maybe(rng.choice([-0.5, 0.8]), 0.0),
        frequency_penalty=maybe(rng.choice([-0.3, 0.4]), 0.0),
        logit_bias=maybe(((ids[0], 3.0), (ids[1], -2.5), (ids[2], -INF)), ()),
        min_tokens=maybe(rng.choice([1, 5, 100]), 0),
        stop_ids=(ids[3], ids[4]),
        seed=rng.randrange(2**64),
        sample_index=rng.randrange(4),
        prompt_length=rng.randrange(prefix + 1),
    )


def random_case(seed: int):
    rng = random.Random(seed)
    vocab = rng.choice([20, 64, 65, 300, 1500])
    prefix = [rng.randrange(vocab) for _ in range(rng.randrange(1, 40))]
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(1, vocab, generator=generator) * rng.choice([1.0, 4.0])
    if rng.random() < 0.2:
        logits[0, rng.randrange(vocab)] = NAN
    allowed = None
    if rng.random() < 0.3:
        allowed = [[rng.random() < 0.5 for _ in range(vocab)]]
        allowed[0][0] = True
    return random_params(rng, vocab, len(prefix)), logits, prefix, allowed


@every_isa
def test_choices_and_probabilities_are_the_oracles(isa: str) -> None:
    ctx, unclear = context(isa), 0
    for seed in range(250):
        p, logits, prefix, allowed = random_case(seed)
        masks = None if allowed is None else mask_words(allowed)
        values = oracle.processed(
            logits[0].double().tolist(), prefix, p, None if allowed is None else allowed[0]
        )
        expected, lead = oracle.choose(values, len(prefix), p)
        dist = oracle.distribution(values, p)
        [(token, prob)] = sample(ctx, logits, [prefix], [sampler(p)], masks)
        if min(lead, dist.margin) < CLEAR:
            unclear += 1
            continue
        assert token == expected, (seed, p)
        assert prob == pytest.approx(dist.probs[token], rel=1e-4, abs=1e-9), (seed, p)
    assert unclear < 25


def test_whole_distributions_are_the_oracles() -> None:
    ctx, unclear = context(), 0
    for seed in range(1000, 1200):
        p, logits, prefix, allowed = random_case(seed)
        masks = None if allowed is None else mask_words(allowed)
        values = oracle.processed(
            logits[0].double().tolist(), prefix, p, None if allowed is None else allowed[0]
        )
        dist = oracle.distribution(values, p)
        if dist.margin < CLEAR:
            unclear += 1
            continue
        found = distribution(ctx, logits[0], prefix, p, masks)
        assert found.keys() == dist.probs.keys(), (seed, p)
        for token, prob in dist.probs.items():
            assert found[token] == pytest.approx(math.log(prob), rel=1e-5, abs=2e-5)
        order = [-logprob for logprob in found.values()]
        assert order == sorted(order)
    assert unclear < 20


HF_PROCESSORS = {
    "repetition": (
        Params(repetition_penalty=1.3),
        lambda p: [hf.RepetitionPenaltyLogitsProcessor(p.repetition_penalty)],
    ),
    "bias": (
        Params(logit_bias=((3, 2.0), (5, -1.5))),
        lambda p: [hf.SequenceBiasLogitsProcessor({(t,): b for t, b in p.logit_bias})],
    ),
    "min_tokens": (
        Params(min_tokens=9, stop_ids=(2, 7), prompt_length=4),
        lambda p: [hf.MinNewTokensLengthLogitsProcessor(4, p.min_tokens, list(p.stop_ids), "cpu")],
    ),
    "temperature": (Params(temperature=0.6), lambda p: [hf.TemperatureLogitsWarper(0.6)]),
    "top_k": (Params(top_k=12), lambda p: [hf.TopKLogitsWarper(12)]),
    "top_p": (Params(top_p=0.8), lambda p: [hf.TopPLogitsWarper(0.8)]),
    "min_p": (Params(min_p=0.1), lambda p: [hf.MinPLogitsWarper(0.1)]),
    "all": (
        Params(
            temperature=1.4,
            top_k=50,
            top_p=0.9,
            min_p=0.02,
            repetition_penalty=1.2,
            logit_bias=((3, 2.0), (5, -1.5)),
            min_tokens=9,
            stop_ids=(2, 7),
            prompt_length=4,
        ),
        lambda p: [
            hf.SequenceBiasLogitsProcessor({(t,): b for t, b in p.logit_bias}),
            hf.RepetitionPenaltyLogitsProcessor(1.2),
            hf.MinNewTokensLengthLogitsProcessor(4, 9, [2, 7], "cpu"),
            hf.TemperatureLogitsWarper(1.4),
            hf.TopKLogitsWarper(50),
            hf.TopPLogitsWarper(0.9),
            hf.MinPLogitsWarper(0.02),
        ],
    ),
}


@pytest.mark.parametrize("name", HF_PROCESSORS)
def test_distributions_are_transformers(name: str) -> None:
    p, make = HF_PROCESSORS[name]
    for seed in range(20):
        logits = torch.randn(1, 200, generator=torch.Generator().manual_seed(seed)) * 3
        prefix = [random.Random(seed).randrange(200) for _ in range(10)]
        scores = logits.clone()
        for processor in make(p):
            scores = processor(torch.tensor([prefix]), scores)
        expected = torch.log_softmax(scores.double(), -1)[0]
        found = distribution(context(), logits[0], prefix, p)
        assert set(found) == set((expected > -INF).nonzero()[:, 0].tolist())
        for token, logprob in found.items():
            assert logprob == pytest.approx(expected[token].item(), abs=1e-5)


def test_frequency_and_presence_count_the_output_only() -> None:
    logits = torch.zeros(8)
    p = Params(temperature=0.0, frequency_penalty=0.5, presence_penalty=0.25, prompt_length=3)
    found = distribution(context(), logits, [1, 1, 2, 2, 3, 3, 3], p)
    base = found[0]
    assert found[1] == pytest.approx(base)  # in the prompt only
    assert found[2] == pytest.approx(base - 0.75)
    assert found[3] == pytest.approx(base - 1.75)


def test_ties_go_to_the_lowest_id() -> None:
    flat = torch.zeros(130)
    assert set(distribution(context(), flat, [0], Params(top_k=3))) == {0, 1, 2}
    assert set(distribution(context(), flat[:8], [0], Params(top_p=0.5))) == {0, 1, 2, 3}
    [(token, prob)] = sample(context(), flat[None], [[0]], [sampler(Params(temperature=0.0))])
    assert (token, prob) == (0, pytest.approx(1 / 130))


def test_filters_that_keep_everything_change_nothing() -> None:
    logits = torch.randn(1, 999, generator=torch.Generator().manual_seed(5))
    for seed in range(50):
        plain = sample(context(), logits, [[1]], [sampler(Params(seed=seed))])
        kept = [Params(seed=seed, top_k=999), Params(seed=seed, min_p=1e-30)]
        for p in kept:
            assert sample(context(), logits, [[1]], [sampler(p)])[0][0] == plain[0][0]


def test_scratch_memory_carries_nothing_over() -> None:
    """The same thread serves other vocabularies, samplers and rows in between."""
    ctx, cases = context(), [random_case(seed) for seed in range(40)]

    def results(order):
        out = {}
        for i in order:
            p, logits, prefix, allowed = cases[i]
            masks = None if allowed is None else mask_words(allowed)
            out[i] = sample(ctx, logits, [prefix], [sampler(p)], masks)
        return out

    orders = [list(range(40)), list(range(39, -1, -1)), random.Random(0).sample(range(40), 40)]
    assert results(orders[0]) == results(orders[1]) == results(orders[2])


def test_sampled_tokens_follow_the_filtered_distribution() -> None:
    """Chi-square over 20,000 seeds at once: every row of the call has a sampler of its own."""
    p = Params(temperature=0.9, top_p=0.85, repetition_penalty=1.2, prompt_length=2)
    logits, prefix = torch.tensor([[2.0, 1.0, 0.5, 0.0, -1.0, 1.5, -2.0]]), [0, 5, 1]
    dist = oracle.distribution(oracle.processed(logits[0].tolist(), prefix, p), p)
    draws = 20000
    samplers = [sampler(dataclasses.replace(p, seed=seed)) for seed in range(draws)]
    found = sample(context(threads=2), logits.repeat(draws, 1), [prefix] * draws, samplers)
    statistic = 0.0
    for token, prob in dist.probs.items():
        count = sum(1 for t, _ in found if t == token)
        statistic += (count - draws * prob) ** 2 / (draws * prob)
    assert {t for t, _ in found} == dist.probs.keys()
    assert statistic < 22.5


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"temperature": -1.0}, "temperature must be 0"),
        ({"temperature": NAN}, "temperature must be 0"),
        ({"temperature": 1e-9}, "temperature must be 0"),
        ({"top_k": -1}, "top_k must be >= 0 .* got -1"),
        ({"top_p": 0.0}, "top_p must be in"),
        ({"top_p": 1.5}, "top_p must be in .* got 1.5"),
        ({"top_p": NAN}, "top_p must be in"),
        ({"min_p": 1.5}, "min_p must be in"),
        ({"repetition_penalty": 0.0}, "repetition_penalty must be in"),
        ({"presence_penalty": INF}, "presence_penalty must be in"),
        ({"frequency_penalty": NAN}, "frequency_penalty must be in"),
        ({"logit_bias": [(-1, 0.0)]}, "logit_bias names token -1"),
        ({"logit_bias": [(1, INF)]}, "logit_bias of token 1 is inf"),
        ({"min_tokens": -2}, "min_tokens must be >= 0, got -2"),
        ({"stop_ids": [-3]}, "stop id -3"),
        ({"prompt_length": -1}, "prompt_length must be >= 0"),
    ],
)
def test_wrong_parameters(wrong: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _C.Sampler(**wrong)


@pytest.mark.parametrize(
    "p", [Params(temperature=0.0), Params(), Params(top_k=3), Params(top_p=0.5)]
)
def test_logits_without_a_choice(p: Params) -> None:
    def choose(logits: list[float], params: Params = p, masks=None) -> None:
        sample(context(), torch.tensor([logits]), [[1, 1]], [sampler(params)], masks)

    with pytest.raises(ValueError, match="position 2 are all NaN"):
        choose([NAN] * 5)
    with pytest.raises(ValueError, match=r"token 3 for position 2 is \+inf"):
        choose([NAN, 0.0, 1.0, INF])
    with pytest.raises(ValueError, match="no token is allowed at position 2"):
        choose([0.0, 1.0, 2.0], masks=mask_words([[False] * 3]))
    blocked = dataclasses.replace(p, stop_ids=(0,), min_tokens=3)
    with pytest.raises(ValueError, match="min_tokens exclude all 1"):
        choose([0.0], blocked)


def logprobs(logits: torch.Tensor, row: list[int], p: Params, top: int, processed: bool):
    """Of the tokens row[1:], predicted by the logit rows in order."""
    tokens = torch.tensor([row], dtype=torch.int32)
    rows, vocab = logits.shape
    shapes = (logits.data_ptr(), vocab, vocab, tokens.data_ptr(), len(row))
    [found] = _C.logprobs(
        context(), *shapes, [0], [0], [1], [rows], [sampler(p)], [top], [processed]
    )
    return found


def test_raw_logprobs_are_log_softmax() -> None:
    logits = torch.randn(3, 500, generator=torch.Generator().manual_seed(7)) * 5
    p = Params(temperature=0.5, top_k=4, logit_bias=((9, -INF),))
    found = logprobs(logits, [3, 9, 400, 2], p, top=6, processed=False)
    exact = torch.log_softmax(logits.double(), -1)
    for j, (logprob, top) in enumerate(found):
        assert logprob == pytest.approx(exact[j, [9, 400, 2][j]].item(), abs=1e-5)
        best = exact[j].topk(6)
        assert [t for t, _ in top] == best.indices.tolist()
        assert [x for _, x in top] == pytest.approx(best.values.tolist(), abs=1e-5)


def test_processed_logprobs_follow_the_prefix_and_the_filters() -> None:
    """The second token's distribution is the first's, penalised by the first."""
    logits = torch.arange(10.0).repeat(2, 1)
    p = Params(top_k=2, presence_penalty=1.5, prompt_length=1)
    (first, first_top), (second, second_top) = logprobs(logits, [0, 9, 3], p, 5, processed=True)
    assert first == pytest.approx(math.log(1 / (1 + math.exp(-1))), abs=1e-6)
    assert [t for t, _ in first_top] == [9, 8]
    assert second == -INF
    assert [t for t, _ in second_top] == [8, 9]
    assert second_top[0][1] == pytest.approx(math.log(1 / (1 + math.exp(-0.5))), abs=1e-6)
