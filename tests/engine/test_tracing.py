"""A trace tells all that an engine did, and changes none of it."""

from __future__ import annotations

import errno
import gc
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from cascade_engine import Engine, FixedCascade, SamplingParams
from cascade_engine.demo.family import family
from cascade_engine.demo.formats import question_prompt
from cascade_engine.engine.row import Row
from cascade_engine.errors import DecodingError, RequestError, TraceError
from cascade_engine.policy import AutoCascade, PlainDecoding, Policy
from cascade_engine.trace import load, statistics
from tests.engine.traced import check_statistics, replayed
from tests.models.support import random_llama

PROMPTS = [question_prompt("How can I save water at home?"), question_prompt("Who is <b>Tom</b>?")]
CHAIN = FixedCascade([[6, 3], [0, 8]], lenience=2.0)
ALONE = FixedCascade([[3, 2], [0, 0]], min_confidence=0.3)
TREE = FixedCascade([[4, 0], [0, 4]], tree=(32, 8), siblings=2)


@pytest.fixture(scope="module")
def engine() -> Engine:
    models = family("llama")
    return Engine.load(
        models.target,
        models.drafts,
        models.table,
        threads=1,
        max_rows=4,
        max_context=192,
        kv_cache_bytes=1_500_000,
        prefill_tokens=8,
    )


def finish(engine: Engine) -> None:
    while engine.has_work():
        engine.step()


def generated(engine: Engine, policy: Policy, params: SamplingParams) -> list[Any]:
    engine.set_policy(policy)
    engine.clear_cache()
    return [(r.token_ids, r.sources, r.text) for r in engine.generate(PROMPTS, params)]


@pytest.mark.parametrize(
    "policy",
    [CHAIN, TREE, ALONE, PlainDecoding(), AutoCascade()],
    ids=["chain", "tree", "alone", "plain", "auto"],
)
@pytest.mark.parametrize("acceptance", ["exact", "rejection"])
def test_a_trace_tells_all_and_changes_nothing(
    engine: Engine, policy: Policy, acceptance: str, tmp_path: Path
) -> None:
    """Breaks when an event is left out, told twice, told with the tokens after the review, or for
    another row."""
    params = SamplingParams(
        max_tokens=30, temperature=0.9, seed=3, n=2, acceptance=acceptance, ignore_eos=True
    )
    expected = generated(engine, policy, params)
    engine.reset_stats()
    with engine.trace(tmp_path / "trace.jsonl"):
        found = generated(engine, policy, params)
    if acceptance == "exact":
        assert [tokens for tokens, _, _ in found] == [tokens for tokens, _, _ in expected]
    if policy in (CHAIN, TREE, ALONE):  # an automatic policy goes by times
        assert found == expected
    history = load(tmp_path / "trace.jsonl")
    assert history.levels == engine.level_names
    assert "prefill" in {each.kind for each in history.passes}
    assert not history.truncated
    check_statistics(history, engine)
    if policy is ALONE:
        own = [p for p in history.passes if p.kind == "draft" and p.level == 1]
        assert max(each.passes for each in own) == 3
    assert [row.index for row in history.rows] == [0, 1, 0, 1]
    for row, prompt, (tokens, sources, text) in zip(
        history.rows, [p for p in PROMPTS for _ in "12"], found, strict=True
    ):
        assert row.text == prompt
        assert replayed(row) == tokens
        assert [level for this in row.rounds for level in this.levels] == sources
        assert "".join("".join(this.texts) for this in row.rounds) == text
        assert row.finish == "length"
        assert row.settings["seed"] == 3
        assert row.asked <= row.begun < row.ended  # type: ignore[operator]
        assert "".join(map(history.piece, tokens)).startswith(text[:8])


def test_a_trace_has_probabilities_and_runners_up(engine: Engine, tmp_path: Path) -> None:
    params = SamplingParams(
        max_tokens=30, temperature=1.0, seed=1, logprobs=0, processed_logprobs=True
    )
    engine.set_policy(TREE)
    with engine.trace(tmp_path / "trace.jsonl"):
        results = engine.generate(PROMPTS, params)
    actions = [
        a for row in load(tmp_path / "trace.jsonl").rows for r in row.rounds for a in r.actions
    ]
    by_draft = [p for a in actions for p, s in zip(a.probs, a.sources, strict=True) if s == 1]
    assert len({round(p, 3) for p in by_draft}) > 10
    assert all(0.0 <= p <= 1.0 for a in actions for p in [*a.probs, a.prob])
    pairs = [
        (a, node)
        for a in actions
        if a.kind == "draft"
        for node, p in enumerate(a.parents)
        if p >= 0
    ]
    assert any(
        a.probs[node] > a.probs[a.parents[node]] for a, node in pairs
    )  # of one token, no path
    for row, result in zip(load(tmp_path / "trace.jsonl").rows, results, strict=True):
        end = 0
        for this in row.rounds:  # the last token of each, unless a stop cut it, is the target's own
            end += len(this.tokens)
            if this.levels[-1] == 0:
                probability = math.exp(result.logprobs[end - 1].logprob)
                assert this.actions[-1].prob == pytest.approx(probability, abs=1e-5)
    own = [a.prob for a in actions if a.kind == "review" and a.level == 0]
    assert min(own) < 0.9
    text = (tmp_path / "trace.jsonl").read_text()
    assert '"siblings":[[[' in text
    assert '"logprobs":[-' in text


def test_preemption_forks_and_aborts(engine: Engine, tmp_path: Path) -> None:
    """With a request that was there before the trace."""
    params = SamplingParams(max_tokens=100, temperature=1.0, seed=2, ignore_eos=True)
    engine.set_policy(TREE)
    engine.clear_cache()
    engine.add_request(PROMPTS[0], params, "early")
    engine.step()
    before = next(out.token_ids for out in engine.step())
    tokens: dict[tuple[str, int], list[int]] = {}
    cached: dict[tuple[str, int], int] = {}
    with engine.trace(tmp_path / "trace.jsonl"):
        engine.reset_stats()
        engine.add_request(PROMPTS[1], params, "late")
        step = 0
        while engine.has_work():
            if step == 2:
                assert engine.fork("early", 2) == [1, 2]
            if step == 4:
                engine.add_request(PROMPTS[0], params, "gone")
            if step == 6:
                assert engine.abort("gone")
            for out in engine.step():
                tokens.setdefault((out.request_id, out.index), []).extend(out.token_ids)
                cached[out.request_id, out.index] = out.stats.cached_tokens
            step += 1
        gc.collect()
        assert not [row for row in gc.get_objects() if type(row) is Row]
    history = load(tmp_path / "trace.jsonl")
    stats = engine.stats()
    assert stats["requests"]["preempted"] > 0
    counted = statistics(history)
    assert counted["requests"] == {**stats["requests"], "added": stats["requests"]["added"] + 1}
    for key in ("new_tokens", "steps", "tokens_per_pass", "levels", "cached_prompt_tokens"):
        assert counted[key] == stats[key], key
    assert counted["cached_prompt_tokens"] == sum(cached.values()) - cached["early", 0]
    rows = {(row.request, row.index): row for row in history.rows}
    assert rows["gone", 0].finish == "dropped"
    assert rows["early", 0].emitted == before
    assert len(rows["early", 1].emitted) > len(before)
    for key, found in tokens.items():
        assert replayed(rows[key]) == rows[key].emitted + found


def test_levels_and_requests_that_fail(engine: Engine, tmp_path: Path) -> None:
    """A draft that gives no numbers, a request that its rules leave no token, and one whose rules
    know only real answers."""
    vocabulary = engine.neural[0].vocab_size
    model = random_llama(tmp_path, 1, vocab_size=vocabulary, tie_word_embeddings=False)
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    model.save_pretrained(tmp_path)
    models = family("llama")
    policy = FixedCascade([[4, 3, 2], [0, 3, 0], [0, 0, 5]])
    failing = Engine.load(models.target, [tmp_path, *models.drafts], policy=policy, threads=1)
    ids = engine.tokenizer.encode(PROMPTS[0])  # type: ignore[union-attr]
    bad = SamplingParams(
        max_tokens=40,
        min_tokens=30,
        stop_token_ids=[5],
        allowed_tokens=lambda prefix: [5] if len(prefix) == len(ids) + 9 else None,
    )
    (plain,) = engine.generate(PROMPTS[1], SamplingParams(max_tokens=40, ignore_eos=True))
    known = [*plain.prompt_token_ids, *plain.token_ids]

    def knows(prefix: Sequence[int]) -> None:
        assert list(prefix) == known[: len(prefix)]

    good = SamplingParams(max_tokens=40, ignore_eos=True, allowed_tokens=knows)
    with failing.trace(tmp_path / "trace.jsonl"):
        failing.add_request(ids, bad, "bad")
        failing.add_request(PROMPTS[1], good, "good")
        errors = 0
        while failing.has_work():
            try:
                failing.step()
            except DecodingError:
                errors += 1
    assert errors == 1
    history = load(tmp_path / "trace.jsonl")
    check_statistics(history, failing)
    stats = failing.stats()  # of the failed pass, the rows that were reviewed again alone
    assert stats["levels"][0]["rows"] == sum(stats["tokens_per_pass"])
    by_name = {row.request: row for row in history.rows}
    assert (by_name["bad"].finish, by_name["good"].finish) == ("dropped", "length")
    assert replayed(by_name["good"], True) == plain.token_ids
    for row in history.rows:  # the small model meets the rules, in a pass that they share
        actions = [a for this in row.rounds for a in this.actions]
        assert [action.level for action in actions if action.kind == "retire"] == [1, 2]


def test_rules_that_end_within_a_draft(engine: Engine, tmp_path: Path) -> None:
    """The target's own token is then the last accepted one behind which the rules are known."""
    engine.set_policy(PlainDecoding())
    (plain,) = engine.generate(PROMPTS[0], SamplingParams(max_tokens=40))
    known = [*plain.prompt_token_ids, *plain.token_ids]
    engine.set_policy(FixedCascade([[0, 8], [0, 0]]))
    engine.reset_stats()
    with engine.trace(tmp_path / "trace.jsonl"):
        for end in range(5, 20):

            def knows(prefix: Sequence[int], end: int = end) -> None:
                assert len(prefix) < len(plain.prompt_token_ids) + end

            params = SamplingParams(max_tokens=40, allowed_tokens=knows)
            engine.add_request(PROMPTS[0], params, f"{end}")
            with pytest.raises(DecodingError):
                finish(engine)
    history = load(tmp_path / "trace.jsonl")
    check_statistics(history, engine)
    for row in history.rows:
        end = len(row.prompt) + int(row.request)
        assert row.prompt + replayed(row) == known[:end]


def test_an_encoder_decoder(tmp_path: Path) -> None:
    models = family("t5")
    engine = Engine.load(models.target, models.drafts, models.table, policy=CHAIN, threads=1)
    with engine.trace(tmp_path / "trace.jsonl"):
        results = engine.generate(PROMPTS, SamplingParams(max_tokens=20))
    history = load(tmp_path / "trace.jsonl")
    check_statistics(history, engine)
    for row, result, prompt in zip(history.rows, results, PROMPTS, strict=True):
        assert row.prompt == result.prompt_token_ids
        assert row.text.split() == prompt.split()
        assert replayed(row) == result.token_ids


def test_one_trace_at_a_time(engine: Engine, tmp_path: Path) -> None:
    params = SamplingParams(max_tokens=3)
    first = engine.trace(tmp_path / "first")
    with pytest.raises(RequestError, match="a trace is being written"):
        engine.trace(tmp_path / "second")
    first.close()
    with engine.trace(tmp_path / "second"):
        first.close()  # ends nothing of the second
        engine.generate(PROMPTS[0], params)
    engine.generate(PROMPTS[0], params)
    assert [len(load(tmp_path / name).rows) for name in ("first", "second")] == [0, 1]
    with pytest.raises(FileNotFoundError):
        engine.trace(tmp_path / "nowhere" / "third")
    with engine.trace(tmp_path / "third"):
        pass


def test_a_full_disk_costs_the_trace_alone(engine: Engine) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no /dev/full here")
    expected = generated(engine, CHAIN, SamplingParams(max_tokens=30))
    with pytest.warns(RuntimeWarning, match="the trace ends here"):
        trace = engine.trace(full)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it is said once
        assert generated(engine, CHAIN, SamplingParams(max_tokens=30)) == expected
    with pytest.raises(TraceError, match=r"incomplete.*No space") as caught:
        trace.close()
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == errno.ENOSPC
    assert generated(engine, CHAIN, SamplingParams(max_tokens=30)) == expected
