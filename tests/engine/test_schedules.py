"""Many requests at once, each exactly as if it were alone, whatever comes, goes or gives way."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest

from cascade_engine import Engine, FixedCascade, PlainDecoding, SamplingParams
from cascade_engine.policy import Policy
from tests.data import data_path

POLICIES: list[Policy] = [
    PlainDecoding(),
    FixedCascade([[0, 10], [0, 10]]),
    FixedCascade([[5, 3], [0, 6]], lenience=3.0),
    FixedCascade([[4, 0], [0, 0]]),
]
BEGINNINGS = [
    "Once upon a time, there was a little girl named Lily. She loved to play with her dog.",
    "Once upon a time, there was a little boy. He had a red ball",
    "Tom",
]


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
            policy=rng.choice(POLICIES),
            threads=1,
            max_rows=rng.choice([1, 3, 8]),
            max_context=120,
            # Pages of 16 tokens take 2 x 10 KiB for the two models together.
            kv_cache_bytes=rng.choice([8, 10, 40]) * 16 * 2 * 5 * 2 * 4 * 8 * 4,
            reuse_cache=rng.random() < 0.7,
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


def test_those_schedules_preempt_fork_abort_and_share(requests: Requests) -> None:
    """Guards the test above: what it is about does happen in it."""
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
    assert cached > 200
    assert forked > 20
    assert aborted > 5


def test_a_soak_of_short_requests_leaks_nothing() -> None:
    engine = Engine.load(
        data_path("stories260k"), policy=FixedCascade([[4]]), threads=1, max_rows=32
    )
    rng = random.Random(0)
    added = finished = 0
    while finished < 20_000:
        while added < 20_000 and len(engine._cycle.waiting) < 8:
            prompt = [rng.randrange(3, 512) for _ in range(rng.randint(1, 6))]
            engine.add_request(prompt, SamplingParams(max_tokens=rng.randint(1, 4)))
            added += 1
        finished += sum(out.finish_reason is not None for out in engine.step())
    engine.check_integrity()
    stats = engine.stats()
    assert stats["requests"] == {
        "added": 20_000,
        "finished": 20_000,
        "aborted": 0,
        "preempted": 0,
    }
    engine.clear_cache()
    assert engine.neural[0].pages.free_pages == engine.neural[0].pages.pages


def test_statistics_add_up(requests: Requests) -> None:
    engine = Engine.load(data_path("stories260k"), [data_path("llama2xs")], threads=1)
    results = engine.generate(BEGINNINGS, SamplingParams(max_tokens=40, ignore_eos=True))
    stats = engine.stats()
    assert stats["new_tokens"] == 120
    assert sum((i + 1) * n for i, n in enumerate(stats["tokens_per_pass"])) >= 120
    for i, level in enumerate(stats["levels"]):
        assert sum(level["accepted"]) <= sum(level["drafted"])
        assert level["rows"] == sum(result.stats.levels[i].calls for result in results)
    assert stats["requests"]["finished"] == 3
    engine.reset_stats()
    assert engine.stats()["new_tokens"] == 0
