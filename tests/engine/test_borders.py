"""Where drafts and the row's own borders meet: requests that fail, few tokens, forks and preemption
with trees at work."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cascade_engine import Engine, FixedCascade, SamplingParams
from cascade_engine.errors import DecodingError
from tests.data import data_path
from tests.engine.borders import PROMPTS, TARGET, TREE, run
from tests.engine.test_surface import everything
from tests.models.support import random_llama

CHAIN_ALONE = FixedCascade([[5]])


@pytest.mark.parametrize("abort", [False, True])
def test_what_a_failing_step_emitted_is_delivered_by_the_next(abort: bool, plain: Engine) -> None:
    """Also where it ended all other requests; not to one that was aborted meanwhile."""
    engine = Engine.load(TARGET, policy=CHAIN_ALONE, threads=1, max_rows=2)
    params = SamplingParams(max_tokens=1, ignore_eos=True)
    bad = SamplingParams(allowed_tokens=lambda prefix: [5], min_tokens=2, stop_token_ids=[5])
    engine.add_request(PROMPTS[0], bad, "bad")
    engine.add_request(PROMPTS[1], params, "good")
    with pytest.raises(DecodingError) as caught:
        engine.step()
    assert caught.value.request_ids == ["bad"]
    assert engine.has_work()
    if abort:
        engine.abort("good")
        assert not engine.has_work()
        assert engine.step() == []
        return
    (out,) = engine.step()
    assert (out.request_id, out.finish_reason) == ("good", "length")
    assert out.token_ids == plain.generate(PROMPTS[1], params)[0].token_ids
    assert not engine.has_work()


@pytest.mark.parametrize("max_tokens", [1, 2, 3, 4])
@pytest.mark.parametrize("padding", [None, "left"])
def test_few_tokens(max_tokens: int, padding: str | None, plain: Engine) -> None:
    options = {"padding": padding, "threads": 1, "max_rows": 4, "max_context": 40}
    engine = Engine.load(TARGET, [data_path("llama2xs")], policy=TREE, **options)
    for temperature in (0.0, 1.0):
        params = SamplingParams(
            max_tokens=max_tokens, temperature=temperature, seed=1, ignore_eos=True
        )
        prompts = [[1, *range(10, 10 + n)] for n in (1, 3, 34, 35, 36)]
        results = engine.generate(prompts, params)
        expected = [plain.generate(prompt, params)[0].token_ids for prompt in prompts]
        assert [r.token_ids for r in results] == [
            tokens[: 40 - len(prompt)] for tokens, prompt in zip(expected, prompts, strict=True)
        ]
        engine.check_integrity()


def test_a_stop_inside_an_accepted_path(plain: Engine) -> None:
    """Nothing behind it is emitted, and the request's positions count what was reviewed."""
    free = plain.generate(PROMPTS[0], SamplingParams(max_tokens=40))[0]
    prediction = free.text
    engine = Engine.load(TARGET, policy=FixedCascade([[0]], tree=30), threads=1)
    inside = 0
    for end in range(2, 20):
        text = "".join(piece.text for piece in free.pieces[:end])
        params = SamplingParams(max_tokens=40, prediction=prediction, stop=text[-4:], seed=0)
        (expected,) = plain.generate(PROMPTS[0], params)
        (result,) = engine.generate(PROMPTS[0], params)
        assert everything(result) == everything(expected)
        reviews = result.stats.reviews
        reviewed = sum((k + 1) * n for k, n in enumerate(reviews.tokens_per_pass))
        inside += reviewed > len(result.token_ids)
    assert inside > 3


def test_an_abort_while_others_draft_trees(plain: Engine, cascade: Engine) -> None:
    cascade.set_policy(TREE)
    params = SamplingParams(max_tokens=30, ignore_eos=True)
    expected = plain.generate(PROMPTS[1], params)[0].token_ids
    for steps in range(4):
        cascade.add_request(PROMPTS[0], params, "gone")
        cascade.add_request(PROMPTS[1], params, "stays")
        tokens: list[int] = []
        for i in range(100):
            if i == steps:
                assert cascade.abort("gone")
            out = cascade.step() if cascade.has_work() else []
            assert i < steps or all(o.request_id == "stays" for o in out)
            tokens += [t for o in out if o.request_id == "stays" for t in o.token_ids]
            cascade.check_integrity()
        assert tokens == expected


@pytest.mark.parametrize("tree", [0, 20])
def test_a_draft_of_nan_with_trees(tree: int, tmp_path: Path, plain: Engine) -> None:
    """A level that retires takes its tree along and leaves caches that hold the row: with one that
    is ahead of it, the level below would fail as well."""
    model = random_llama(tmp_path, 1, vocab_size=512, tie_word_embeddings=False)
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    model.save_pretrained(tmp_path)
    policy = FixedCascade([[4, 3, 2], [0, 3, 0], [0, 0, 5]], tree=(40, tree), siblings=2)
    drafts = [tmp_path, data_path("llama2xs")]
    engine = Engine.load(TARGET, drafts, policy=policy, threads=1, max_rows=3)
    params = SamplingParams(max_tokens=40, temperature=0.8, seed=9, ignore_eos=True, n=2)
    expected = [plain.generate(prompt, params) for prompt in PROMPTS]
    for prompt in PROMPTS:
        engine.add_request(prompt, params, prompt)
    tokens: dict[tuple[str, int], list[int]] = {}
    retired: set[int] = set()
    while engine.has_work():
        for out in engine.step():
            tokens.setdefault((out.request_id, out.index), []).extend(out.token_ids)
        retired.update(*(row.retired for row in engine._cycle.roster.slots.running))
        engine.check_integrity()
    assert retired == {1}
    for prompt, each in zip(PROMPTS, expected, strict=True):
        assert [tokens[prompt, i] for i in (0, 1)] == [r.token_ids for r in each]
    levels = engine.stats()["levels"]
    assert levels[1]["passes"] == 0
    assert sum(levels[3]["drafted"]) > 100


def test_preemption_and_forks_of_rows_with_trees(plain: Engine) -> None:
    """Rows that gave way start their statistics over; forks go on with noise of their own."""
    params = SamplingParams(max_tokens=50, temperature=1.0, seed=2, ignore_eos=True)
    engine = Engine.load(
        TARGET,
        policy=FixedCascade([[4]], tree=32),
        threads=1,
        max_rows=4,
        max_context=96,
        kv_cache_bytes=10 * 16 * 2 * 5 * 4 * 8 * 4,
        learn_tokens=1000,
    )
    tokens: dict[tuple[str, int], list[int]] = {}
    for prompt in PROMPTS:
        engine.add_request(prompt, params, prompt)
    for step in range(200):
        if step == 3:
            assert engine.fork(PROMPTS[0], 2) == [1, 2]
            begun = list(tokens[PROMPTS[0], 0])
        for out in engine.step():
            tokens.setdefault((out.request_id, out.index), []).extend(out.token_ids)
        engine.check_integrity()
    assert engine.stats()["requests"]["preempted"] > 0
    # Four answers of 50 tokens, each with 8 of its prompt and a border.
    assert engine.statistical.learned == 4 * (8 + 50 + 1)
    for prompt in PROMPTS:
        assert tokens[prompt, 0] == plain.generate(prompt, params)[0].token_ids
    assert plain.tokenizer is not None
    rest = SamplingParams(max_tokens=50 - len(begun), temperature=1.0, seed=2, ignore_eos=True, n=3)
    forked = plain.generate([plain.tokenizer.encode(PROMPTS[0]) + begun], rest)
    for index in (1, 2):
        assert tokens[PROMPTS[0], index] == forked[index].token_ids


def test_new_rows_of_a_wide_batch_start_in_a_step_of_their_own() -> None:
    """Breaks when their first token waits for all rows, or running rows wait twice in a row."""
    engine = Engine.load(TARGET, policy=CHAIN_ALONE, reuse_cache=False, threads=1, max_rows=20)
    params = SamplingParams(max_tokens=12, ignore_eos=True)
    alone = engine.generate(PROMPTS[0], params)[0].token_ids
    for i in range(17):
        engine.add_request(PROMPTS[0], SamplingParams(max_tokens=60, ignore_eos=True), f"r{i}")
    engine.step()
    found: dict[str, list[int]] = {}
    seen = []
    for name in ("new", "newer", "newest"):
        engine.add_request(PROMPTS[0], params, name)
        outputs = engine.step()
        seen.append({out.request_id for out in outputs})
        for out in outputs:
            found.setdefault(out.request_id, []).extend(out.token_ids)
    assert seen[0] == {"new"}
    assert len(seen[1]) == 19
    assert seen[2] == {"newest"}
    for request_id, tokens in run(engine)[0].items():
        found.setdefault(request_id, []).extend(tokens)
    assert found["new"] == found["newer"] == found["newest"] == alone
