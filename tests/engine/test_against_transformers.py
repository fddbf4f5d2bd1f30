"""Greedy text of a trained model equals transformers generate; sampling is exactly distributed."""

from __future__ import annotations

import collections

import pytest
import torch
from transformers import LlamaForCausalLM

from cascade_engine import Engine, FixedCascade, PlainDecoding, SamplingParams
from tests.data import data_path, prompts

PROMPT_TOKENS = 12
NEW_TOKENS = 200


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(data_path("stories260k"), dtype=torch.float32).eval()


def test_greedy_text_equals_generate(model: LlamaForCausalLM) -> None:
    engine = Engine.load(
        data_path("stories260k"), dtype="float32", policy=FixedCascade([[10]]), max_rows=50
    )
    assert engine.tokenizer is not None
    texts = ["One day, " + text for text in prompts(50)]
    ids = torch.tensor([engine.tokenizer.encode(text)[:PROMPT_TOKENS] for text in texts])
    expected = model.generate(
        ids, max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=None, pad_token_id=0
    )[:, PROMPT_TOKENS:]
    params = SamplingParams(max_tokens=NEW_TOKENS, ignore_eos=True)
    results = engine.generate([row.tolist() for row in ids], params)
    assert len(results) == 50
    for row, (result, theirs) in enumerate(zip(results, expected.tolist(), strict=True)):
        if result.token_ids != theirs:
            assert first_gap(model, ids[row].tolist(), result.token_ids, theirs) < 1e-4
            continue
        tail = engine.tokenizer.decode(theirs, continues=True)
        assert result.text == tail


def first_gap(
    model: LlamaForCausalLM, prompt: list[int], ours: list[int], theirs: list[int]
) -> float:
    """The reference's gap between its two best tokens where the texts part."""
    at = next(i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b)
    with torch.no_grad():
        logits = model(torch.tensor([prompt + theirs[:at]])).logits[0, -1]
    best = logits.topk(2).values
    return (best[0] - best[1]).item()


def target_distribution(
    model: LlamaForCausalLM, prefix: list[int], temperature: float, top_k: int, top_p: float
) -> torch.Tensor:
    """The processed distribution of the next token, float64, from its definition."""
    with torch.no_grad():
        logits = model(torch.tensor([prefix])).logits[0, -1].double() / temperature
    order = logits.argsort(descending=True, stable=True)
    keep = order[: top_k or len(order)]
    probs = logits[keep].softmax(-1)
    size = int((probs.cumsum(-1) < top_p - 1e-12).sum()) + 1
    result = torch.zeros_like(logits)
    result[keep[:size]] = probs[:size] / probs[:size].sum()
    return result


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p", "cascade"),
    [(1.0, 0, 1.0, True), (1.0, 0, 1.0, False), (0.8, 20, 0.9, True)],
)
def test_sampled_pairs_have_the_exact_distribution(
    model: LlamaForCausalLM, temperature: float, top_k: int, top_p: float, cascade: bool
) -> None:
    """Chi-square of the second token given the most frequent first one, over many seeds: the second
    token is one that a cascade drafts and the target accepts or corrects."""
    engine = Engine.load(
        data_path("stories260k"),
        [data_path("llama2xs")] if cascade else [],
        dtype="float32",
        policy=FixedCascade([[3, 0], [0, 0]]) if cascade else PlainDecoding(),
        max_rows=64,
    )
    assert engine.tokenizer is not None
    prompt = engine.tokenizer.encode("Once upon a time, there was a")
    samples = 6000
    params = [
        SamplingParams(max_tokens=3, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
        for seed in range(samples)
    ]
    results = engine.generate([prompt] * samples, params)
    pairs = [result.token_ids[:2] for result in results if len(result.token_ids) > 1]
    first, count = collections.Counter(pair[0] for pair in pairs).most_common(1)[0]
    seconds = collections.Counter(pair[1] for pair in pairs if pair[0] == first)
    first_probs = target_distribution(model, prompt, temperature, top_k, top_p)
    assert abs(count / samples - first_probs[first]) < 5 * (0.25 / samples) ** 0.5
    probs = target_distribution(model, [*prompt, first], temperature, top_k, top_p)
    assert all(probs[token] > 0 for token in seconds)
    statistic, cells = chi_square(seconds, probs, count)
    # The mean is cells - 1, the standard deviation sqrt(2 (cells - 1)): five of them above is
    # beyond one in a million.
    assert statistic < cells - 1 + 5 * (2 * (cells - 1)) ** 0.5


def chi_square(
    observed: collections.Counter[int], probs: torch.Tensor, total: int
) -> tuple[float, int]:
    """Pearson's statistic; cells that expect fewer than 5 are joined. Returns it and the cells."""
    statistic, cells, rare_expected, rare_observed = 0.0, 0, 0.0, 0
    for token, p in enumerate(probs.tolist()):
        expected = p * total
        if expected >= 5:
            statistic += (observed[token] - expected) ** 2 / expected
            cells += 1
        else:
            rare_expected += expected
            rare_observed += observed[token]
    if rare_expected > 0:
        statistic += (rare_observed - rare_expected) ** 2 / max(rare_expected, 1e-9)
        cells += 1
    return statistic, cells
