"""AsyncEngine: streams, cancellation, limits, shutdown."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable

import pytest

from cascade_engine import AsyncEngine, Engine, FixedCascade, PlainDecoding, SamplingParams
from cascade_engine.errors import CapacityError, DecodingError, RequestError
from tests.data import data_path

PROMPT = "Once upon a time, there was a little girl named Lily."
LONG = SamplingParams(max_tokens=400, ignore_eos=True)


def load(**options: object) -> Engine:
    return Engine.load(data_path("stories260k"), policy=FixedCascade([[10]]), threads=1, **options)


def run(body: Callable[[AsyncEngine], Awaitable[None]], max_pending: int = 16) -> Engine:
    """Runs `body` with an engine that is shut down behind it; nothing may be left in it."""
    engine = load()

    async def main() -> None:
        async with AsyncEngine(engine, max_pending) as served:
            await body(served)

    asyncio.run(asyncio.wait_for(main(), 60))
    assert not engine.has_work()
    engine.check_integrity()
    assert not [t for t in threading.enumerate() if t.name == "cascade-engine"]
    return engine


def test_many_streams_at_once_are_each_as_if_alone() -> None:
    params = [SamplingParams(max_tokens=40, temperature=1.0, seed=seed) for seed in range(12)]
    alone = Engine.load(data_path("stories260k"), policy=PlainDecoding(), threads=1)
    expected = [alone.generate(PROMPT, each)[0].text for each in params]

    async def body(engine: AsyncEngine) -> None:
        async def one(each: SamplingParams) -> str:
            return "".join([piece.text async for piece in engine.stream(PROMPT, each)])

        assert await asyncio.gather(*map(one, params)) == expected
        results = await asyncio.gather(*(engine.generate(PROMPT, each) for each in params))
        assert [result.text for result in results] == expected
        assert (await engine.stats())["requests"]["finished"] == 24

    run(body)


def test_a_request_ends_with_its_consumer() -> None:
    async def body(engine: AsyncEngine) -> None:
        async with await engine.stream(PROMPT, LONG) as stream:
            await anext(stream)
        waiting = asyncio.create_task(consume(await engine.stream(PROMPT, LONG)))
        await asyncio.sleep(0.005)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        starting = asyncio.ensure_future(engine.stream(PROMPT, LONG))
        await asyncio.sleep(0)
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        while (await engine.stats())["pending"]:
            await asyncio.sleep(0.001)
        assert (await engine.stats())["requests"]["aborted"] >= 2

    engine = run(body)
    assert engine.stats()["new_tokens"] < 800


async def consume(stream: object) -> None:
    async for _ in stream:  # type: ignore[attr-defined]
        await asyncio.sleep(0.002)


def test_a_full_queue_says_so_or_waits() -> None:
    async def body(engine: AsyncEngine) -> None:
        streams = [await engine.stream(PROMPT, LONG) for _ in range(2)]
        with pytest.raises(CapacityError, match="2 requests are pending, the most allowed"):
            await engine.stream(PROMPT, LONG)
        late = asyncio.create_task(engine.generate(PROMPT, wait=True))
        await asyncio.sleep(0.01)
        assert not late.done()
        await streams[0].aclose()
        assert (await late).finish_reason in ("stop", "length")
        await streams[1].aclose()

    run(body, max_pending=2)


def test_a_stream_is_sent_once_and_only_when_it_is_asked_for() -> None:
    async def body(engine: AsyncEngine) -> None:
        never = engine.stream(PROMPT, LONG)
        assert (await engine.stats())["requests"]["added"] == 0
        await never.aclose()
        assert [piece async for piece in never] == []
        stream = engine.stream(PROMPT, SamplingParams(max_tokens=5, ignore_eos=True))
        assert await stream is stream
        async with stream as same:
            assert len([piece async for piece in same]) == 5
        assert (await engine.stats())["requests"]["added"] == 1
        with pytest.raises(RequestError, match="one sample, got n=2"):
            engine.stream(PROMPT, SamplingParams(n=2, temperature=1.0))
        refused = engine.stream([])
        with pytest.raises(RequestError, match="the prompt is empty"):
            await refused
        assert [piece async for piece in refused] == []
        assert (await engine.stats())["pending"] == 0

    run(body)


def test_counters_start_over_between_two_steps() -> None:
    async def body(engine: AsyncEngine) -> None:
        await engine.generate(PROMPT, SamplingParams(max_tokens=5, ignore_eos=True))
        assert (await engine.stats())["new_tokens"] == 5
        stream = await engine.stream(PROMPT, LONG)
        await anext(stream)
        await engine.reset_stats()
        stats = await engine.stats()
        assert stats["requests"]["added"] == 0
        assert stats["pending"] == 1
        await stream.aclose()
        served.append(engine)

    served: list[AsyncEngine] = []
    run(body)
    with pytest.raises(RequestError, match="takes no more requests"):
        asyncio.run(served[0].reset_stats())


def test_errors_reach_their_own_request_alone() -> None:
    async def body(engine: AsyncEngine) -> None:
        def broken(prefix: object) -> list[int]:
            raise KeyError("no such state")

        good = asyncio.create_task(engine.generate(PROMPT, LONG))
        with pytest.raises(RequestError, match="the prompt is empty"):
            await engine.stream([])
        with pytest.raises(DecodingError, match="no such state"):
            await engine.generate(PROMPT, SamplingParams(allowed_tokens=broken))
        assert len((await good).token_ids) == 400

    run(body)


@pytest.mark.parametrize("drain", [True, False])
def test_shutdown(drain: bool) -> None:
    engine = load()

    async def main() -> None:
        served = AsyncEngine(engine)
        task = asyncio.create_task(served.generate(PROMPT, LONG))
        await asyncio.sleep(0.01)
        await served.shutdown(drain)
        if drain:
            assert len((await task).token_ids) == 400
        else:
            with pytest.raises(RequestError, match="was shut down"):
                await task
        with pytest.raises(RequestError, match="takes no more requests"):
            await served.stream(PROMPT)

    asyncio.run(asyncio.wait_for(main(), 60))
    assert not engine.has_work()


def test_from_several_event_loops() -> None:
    engine = load()
    served = AsyncEngine(engine)
    texts: list[str] = []

    def worker() -> None:
        texts.append(asyncio.run(served.generate(PROMPT, SamplingParams(max_tokens=50))).text)

    threads = [threading.Thread(target=worker) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    asyncio.run(served.shutdown())
    assert len(texts) == 4
    assert len(set(texts)) == 1
