"""Many requests at once, each exactly as if it were alone, whatever comes, goes or gives way."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest

from cascade_engine import Engine, FixedCascade, PlainDecoding, SamplingParams
from cascade_engine.cache import PageTable
from cascade_engine.policy import Action, Policy, RowState
from tests.data import data_path

POLICIES: list[Policy] = [
    PlainDecoding(),
    FixedCascade([[0, 10], [0, 10]]),
    FixedCascade([[5, 3], [0, 6]], lenience=3.0),
    FixedCascade([[4, 0], [0, 0]]),
    FixedCascade([[6, 2], [0, 0]], min_confidence=0.3),
    FixedCascade([[0, 10], [0, 10]], tree=24),
    FixedCascade([[5, 3], [0, 6]], lenience=3.0, tree=(64, 9), siblings=2),
]


class Mixed(FixedCascade):
    """Trees for some rows and chains for others, in the same passes."""

    def next_action(self, row: RowState) -> Action:
        chosen = POLICIES[1 + row.frontier[0] % (len(POLICIES) - 1)]
        return chosen.next_action(row)


BEGINNINGS = [
    "Once upon a time, there was a little girl named Lily. She loved to play with her dog.",
    "Once upon a time, there was a little girl named Lily. She loved to play with her cat, Tom.",
    "Once upon a time, there was a little boy. He had a red ball",
    "Tom",
]
PAGE_BYTES = 16 * 2 * 5 * 4 * 8 * 4
"""Of each of the two models."""


class Requests:
    """Random requests, and what each decodes to when it is alone (computed once, plainly)."""

    def __init__(self) -> None:
        self.engine = Engine.load(
            data_path("stories260k"), policy=PlainDecoding(), threads=1, reuse_cache=False
        )
        self._answers: dict[Any, list[list[int]]] = {}

    def draw(self, rng: random.Random) -> tuple[list[int], SamplingParams]:
        assert self.engine.tokenizer is not None
        prompt = self.engine.tokenizer.encode(rng.choice(BEGINNINGS))
        prompt = prompt[: rng.randint(1, len(prompt))]
        temperature = rng.choice([0.0, 1.0])
        return prompt, SamplingParams(
            max_tokens=rng.randint(1, 60),
            temperature=temperature,
            seed=rng.randrange(3),
            n=rng.choice([1, 1, 2]) if temperature else 1,
            repetition_penalty=rng.choice([1.0, 1.2]),
            ignore_eos=True,
        )

    def alone(self, prompt: list[int], params: SamplingParams) -> list[list[int]]:
        key = (tuple(prompt), repr(params))
        if key not in self._answers:
            results = self.engine.generate(prompt, params)
            self._answers[key] = [result.token_ids for result in results]
        return self._answers[key]


@pytest.fixture(scope="module")
def requests() -> Requests:
    return Requests()


class Schedule:
    """Drives one engine at random and keeps what it delivered."""

    def __init__(self, seed: int, requests: Requests) -> None:
        self.rng = rng = random.Random(seed)
        self.requests = requests
        self.engine = Engine.load(
            data_path("stories260k"),
            [data_path("llama2xs")],
            policy=rng.choice([*POLICIES, Mixed([[4, 0], [0, 0]])]),
            threads=1,
            max_rows=rng.choice([1, 3, 8]),
            max_context=120,
            kv_cache_bytes=rng.choice([8, 10, 12, 40]) * 2 * PAGE_BYTES,
            reuse_cache=rng.random() < 0.8,
            prefill_tokens=rng.choice([4, 40, 512]),
            padding=rng.choice([None, None, "left"]),
        )
        self.asked: dict[str, tuple[list[int], SamplingParams]] = {}
        self.got: dict[tuple[str, int], list[int]] = {}
        self.forks: dict[tuple[str, int], int] = {}
        self.finished: set[tuple[str, int]] = set()
        self.aborted: set[str] = set()

    def run(self, requests: int) -> None:
        while len(self.asked) < requests or self.engine.has_work():
            kind = self.rng.random()
            if kind < 0.3 and len(self.asked) < requests:
                prompt, params = self.requests.draw(self.rng)
                self.asked[self.engine.add_request(prompt, params)] = (prompt, params)
            elif kind < 0.33 and self.asked:
                request_id = self.rng.choice(list(self.asked))
                if self.engine.abort(request_id):
                    self.aborted.add(request_id)
            elif kind < 0.37:
                self.fork()
            else:
                for out in self.engine.step():
                    key = (out.request_id, out.index)
                    self.got.setdefault(key, []).extend(out.token_ids)
                    if out.finish_reason is not None:
                        assert key not in self.finished
                        self.finished.add(key)
            self.engine.check_integrity()

    def fork(self) -> None:
        """Forks a sampled request; only those show that the fork has noise of its own."""
        live = [
            request_id
            for request_id, (_, params) in self.asked.items()
            if (request_id, 0) not in self.finished
            and request_id not in self.aborted
            and params.temperature
        ]
        if live:
            request_id = self.rng.choice(live)
            emitted = len(self.got.get((request_id, 0), []))
            for index in self.engine.fork(request_id, 1):
                self.forks[request_id, index] = emitted

    def check(self) -> None:
        for request_id, (prompt, params) in self.asked.items():
            for index, tokens in enumerate(self.requests.alone(prompt, params)):
                got = self.got.get((request_id, index), [])
                if request_id in self.aborted and (request_id, index) not in self.finished:
                    assert got == tokens[: len(got)]
                else:
                    assert (request_id, index) in self.finished
                    assert got == tokens
        for (request_id, index), emitted in self.forks.items():
            self.check_fork(request_id, index, emitted)

    def check_fork(self, request_id: str, index: int, emitted: int) -> None:
        """A fork goes on from what was emitted, as a sample of that index would from there."""
        if request_id in self.aborted:
            return
        assert (request_id, index) in self.finished
        prompt, params = self.asked[request_id]
        begun = prompt + self.got[request_id, 0][:emitted]
        rest = replace(params, n=index + 1, max_tokens=params.max_tokens - emitted)
        assert self.got[request_id, index] == self.requests.alone(begun, rest)[index]


@pytest.mark.parametrize("seed", range(100))
def test_a_schedule_changes_no_token(seed: int, requests: Requests) -> None:
    schedule = Schedule(seed, requests)
    schedule.run(requests=8)
    schedule.check()
    engine = schedule.engine
    engine.clear_cache()
    engine.check_integrity()
    for level in engine.neural:
        assert level.pages.free_pages == level.pages.pages


def test_those_schedules_preempt_fork_abort_share_and_evict(
    requests: Requests, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards the test above: what it is about does happen in it."""
    evictions = count_evictions(monkeypatch)
    preempted = cached = 0
    forked = aborted = 0
    for seed in range(40):
        schedule = Schedule(seed, requests)
        schedule.run(requests=8)
        stats = schedule.engine.stats()
        preempted += stats["requests"]["preempted"]
        cached += stats["cached_prompt_tokens"]
        forked += len(schedule.forks)
        aborted += len(schedule.aborted)
    assert preempted > 10
    assert cached > 500
    assert forked > 20
    assert aborted > 5
    assert len(evictions) > 50


def count_evictions(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """Grows by one with each page that leaves the index for another."""
    evictions: list[None] = []
    evict = PageTable._evict

    def counted(table: PageTable) -> None:
        evictions.append(None)
        evict(table)

    monkeypatch.setattr(PageTable, "_evict", counted)
    return evictions


def test_a_soak_of_short_requests_leaks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beginnings are shared, a pool of 32 pages evicts and preempts, some requests are aborted;
    whatever a request met, its answer is that of its prompt."""
    evictions = count_evictions(monkeypatch)
    engine = Engine.load(
        data_path("stories260k"),
        policy=FixedCascade([[4]]),
        threads=1,
        max_rows=32,
        max_context=128,
        kv_cache_bytes=32 * PAGE_BYTES,
    )
    rng = random.Random(0)
    beginnings = [[rng.randrange(3, 512) for _ in range(40)] for _ in range(8)]
    prompts: dict[str, tuple[int, ...]] = {}
    got: dict[str, list[int]] = {}
    answers: dict[tuple[int, ...], list[int]] = {}
    aborted = 0
    while len(prompts) < 20_000 or engine.has_work():
        while len(prompts) < 20_000 and len(engine._cycle.roster.waiting) < 8:
            prompt = rng.choice(beginnings)[: rng.choice([1, 2, 4, 6, 20, 40])]
            prompt = [*prompt, rng.randrange(3, 8)]
            new = 80 if rng.random() < 0.02 else rng.randint(1, 3)
            params = SamplingParams(max_tokens=new, ignore_eos=True)
            prompts[engine.add_request(prompt, params)] = tuple(prompt)
        if rng.random() < 0.05 and engine._cycle.roster.slots.running:
            row = rng.choice(engine._cycle.roster.slots.running)
            aborted += engine.abort(row.request_id)
            got.pop(row.request_id, None)
        for out in engine.step():
            tokens = got.setdefault(out.request_id, [])
            tokens += out.token_ids
            if out.finish_reason is not None:
                known = answers.setdefault(prompts[out.request_id], [])
                assert tokens[: len(known)] == known[: len(tokens)]
                known += tokens[len(known) :]
                del got[out.request_id]
        if rng.random() < 0.02:
            engine.check_integrity()
    engine.check_integrity()
    assert not got
    stats = engine.stats()
    counts = stats["requests"]
    assert counts["added"] == 20_000
    assert counts["aborted"] == aborted > 100
    assert counts["finished"] == 20_000 - aborted
    assert counts["preempted"] > 3
    assert stats["cached_prompt_tokens"] > 0.3 * stats["prompt_tokens"]
    assert len(evictions) > 1000
    engine.clear_cache()
    assert engine.neural[0].pages.free_pages == engine.neural[0].pages.pages


def test_statistics_add_up(requests: Requests) -> None:
    engine = Engine.load(data_path("stories260k"), [data_path("llama2xs")], threads=1)
    results = engine.generate(BEGINNINGS, SamplingParams(max_tokens=40, ignore_eos=True))
    stats = engine.stats()
    assert stats["new_tokens"] == 160
    assert sum((i + 1) * n for i, n in enumerate(stats["tokens_per_pass"])) >= 160
    for i, level in enumerate(stats["levels"]):
        assert sum(level["accepted"]) <= sum(level["drafted"])
        assert level["rows"] == sum(result.stats.levels[i].calls for result in results)
    assert stats["requests"]["finished"] == 4
    engine.reset_stats()
    assert engine.stats()["new_tokens"] == 0
