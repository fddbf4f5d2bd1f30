"""What a prompt finds of earlier ones: many prefixes, every level, samples, preemption."""

from __future__ import annotations

import random

import pytest

from cascade_engine import Engine, FixedCascade, PlainDecoding, SamplingParams
from tests.data import data_path

PAGE_BYTES = 16 * 2 * 5 * 4 * 8 * 4
"""Of stories260k; llama2xs has the same."""
CASCADE = FixedCascade([[5, 3], [0, 6]])
SHORT = SamplingParams(max_tokens=6, ignore_eos=True)


def load(**options: object) -> Engine:
    return Engine.load(
        data_path("stories260k"), [data_path("llama2xs")], policy=CASCADE, threads=1, **options
    )


def prompts_of(count: int, tokens: int, seed: int = 0) -> list[list[int]]:
    rng = random.Random(seed)
    return [[1, *(rng.randrange(3, 512) for _ in range(tokens - 1))] for _ in range(count)]


@pytest.fixture(scope="module")
def plain() -> Engine:
    return Engine.load(
        data_path("stories260k"), policy=PlainDecoding(), threads=1, reuse_cache=False
    )


def test_far_more_prefixes_than_rows_stay_cached(plain: Engine) -> None:
    engine = load(max_rows=2)
    prompts = prompts_of(20, 40)
    expected = [plain.generate(prompt, SHORT)[0].token_ids for prompt in prompts]
    for cached in (0, 32):
        results = engine.generate(prompts, SHORT)
        assert [result.token_ids for result in results] == expected
        assert [result.stats.cached_tokens // 16 * 16 for result in results] == [cached] * 20
        engine.check_integrity()
    pages = engine.stats()["pages"]
    for level in engine.neural:
        found = pages[level.name]
        assert found["used"] == 0
        assert found["cached"] >= 40
        assert found["cached"] + level.pages.free_pages == found["total"]


def test_the_least_recently_used_prefix_is_evicted_first() -> None:
    """Ten pages a level hold two requests of four pages, and part of a third."""
    first, second, third = prompts_of(3, 56)
    engine = load(max_rows=3, max_context=64, kv_cache_bytes=2 * 10 * PAGE_BYTES)
    cached = [
        engine.generate([prompt], SHORT)[0].stats.cached_tokens
        for prompt in (first, second, first, third, first, second)
    ]
    assert cached[:2] == [0, 0]
    assert cached[2] >= 48
    assert cached[3] == 0
    assert cached[4] >= 48
    assert cached[5] < 48


def test_drafts_start_from_their_own_cache() -> None:
    engine = load()
    (prompt,) = prompts_of(1, 70)
    engine.generate([prompt], SHORT)
    engine.add_request(prompt, SHORT, "again")
    slots = engine._cycle.roster.slots
    (row,) = engine._cycle.roster.waiting
    assert slots.admit(engine._cycle.roster.waiting.popleft())
    assert [level.pages.length[row.slot] for level in engine.neural] == [64, 64]
    assert engine.abort("again")
    engine.check_integrity()


def test_a_prompt_that_goes_on_from_all_of_an_earlier_row_starts_there(plain: Engine) -> None:
    engine = load()
    (prompt,) = prompts_of(1, 20)
    first = engine.generate([prompt], SHORT)[0]
    longer = [*prompt, *first.token_ids, 300, 301]
    second = engine.generate([longer], SHORT)[0]
    assert second.stats.cached_tokens == len(prompt) + len(first.token_ids) - 1
    assert second.token_ids == plain.generate([longer], SHORT)[0].token_ids


def test_a_row_waits_for_a_prefix_that_another_is_computing() -> None:
    engine = load(prefill_tokens=40)
    (begin,) = prompts_of(1, 100)
    for name, end in (("a", [5]), ("b", [6, 7]), ("c", [8])):
        engine.add_request([*begin, *end], SHORT, name)
    cached: dict[str, int] = {}
    while engine.has_work():
        for out in engine.step():
            cached.setdefault(out.request_id, out.stats.cached_tokens)
        engine.check_integrity()
    assert cached == {"a": 0, "b": 96, "c": 96}


def test_rows_with_nothing_in_common_do_not_wait() -> None:
    engine = load()
    for prompt in prompts_of(3, 100):
        engine.add_request(prompt, SHORT)
    assert len(engine.step()) == 3


def test_what_an_aborted_row_cached_serves_others() -> None:
    engine = load(prefill_tokens=64)
    (prompt,) = prompts_of(1, 100)
    engine.add_request(prompt, SHORT, "gone")
    engine.step()
    assert engine.abort("gone")
    assert engine.generate([prompt], SHORT)[0].stats.cached_tokens == 64


@pytest.mark.parametrize("reuse", [True, False])
def test_samples_and_forks_share_everything(reuse: bool) -> None:
    """The opt-out is about other requests."""
    engine = load(reuse_cache=reuse)
    (prompt,) = prompts_of(1, 45)
    params = SamplingParams(n=3, temperature=1.0, seed=1, max_tokens=40, ignore_eos=True)
    engine.add_request(prompt, params, "r")
    engine.step()
    engine.step()
    assert [row.stats.cached_tokens for row in engine._cycle.roster.slots.running] == [0, 44, 44]
    pages = engine.neural[0].pages
    assert pages.available_pages >= pages.pages - 2 - 2 * 3
    (index,) = engine.fork("r", 1)
    parent = engine._cycle.roster.slots.running[0]
    emitted = parent.final
    row = engine._cycle.roster.waiting.popleft()
    assert engine._cycle.roster.slots.admit(row)
    assert pages.length[row.slot] == emitted - 1
    assert row.index == index
    assert row.stats.cached_tokens == 45
    engine.abort("r")
    engine.check_integrity()
    again = engine.generate([prompt], SHORT)[0]
    assert (again.stats.cached_tokens > 0) == reuse


def test_a_preempted_row_finds_what_nobody_took(plain: Engine) -> None:
    """Two rows outgrow a pool together; the younger starts over from what is left of it."""
    engine = load(max_rows=2, max_context=112, kv_cache_bytes=2 * 9 * PAGE_BYTES)
    prompts = prompts_of(2, 30)
    params = SamplingParams(max_tokens=70, ignore_eos=True)
    results = engine.generate(prompts, params)
    for prompt, result in zip(prompts, results, strict=True):
        assert result.token_ids == plain.generate([prompt], params)[0].token_ids
        assert result.stats.cached_tokens == 0
    assert engine.stats()["requests"]["preempted"] >= 1
    engine.check_integrity()
