"""An engine behind asyncio: one thread runs it, any number of tasks ask it."""

from __future__ import annotations

import asyncio
import functools
import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from cascade_engine.async_stream import AsyncStream, call, resolve
from cascade_engine.engine import Engine, Generation
from cascade_engine.engine.requests import Prompt
from cascade_engine.errors import CapacityError, DecodingError, RequestError
from cascade_engine.params import SamplingParams

Command = Callable[[], None]
Answer = TypeVar("Answer")


class AsyncEngine:
    """Runs an `Engine` in a thread of its own. Thread-safe; the engine must not be used elsewhere.

    At most `max_pending` requests are unfinished at a time: a further one raises CapacityError, or
    waits for its turn with `wait=True`. Use as `async with AsyncEngine(engine) as engine:`; leaving
    the block finishes what was asked.
    """

    def __init__(self, engine: Engine, max_pending: int = 256) -> None:
        if max_pending < 1:
            raise RequestError(f"max_pending must be >= 1, got {max_pending}")
        self._engine = engine
        self._max_pending = max_pending
        self._commands: queue.SimpleQueue[Command] = queue.SimpleQueue()
        self._streams: dict[str, AsyncStream] = {}
        """By request id; owned by the engine thread."""
        self._lock = threading.Lock()
        self._pending = 0
        self._closing = False
        self._vacancies: list[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = []
        self._thread = threading.Thread(target=self._run, name="cascade-engine", daemon=True)
        self._thread.start()

    async def __aenter__(self) -> AsyncEngine:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.shutdown()

    def stream(
        self, prompt: Prompt, params: SamplingParams | None = None, *, wait: bool = False
    ) -> AsyncStream:
        """A request of one sample: `async for piece in engine.stream(...)`.

        It is sent when it is awaited, entered with `async with` or asked for its first token, which
        raises RequestError or CapacityError as `Engine.add_request` does, CapacityError when too
        many requests are pending (unless `wait`), RequestError after `shutdown`.
        """
        params = params or SamplingParams()
        if params.n != 1:
            raise RequestError(f"a stream has one sample, got n={params.n}")
        return AsyncStream(prompt, params, wait, send=self._open, forget=self._forget)

    async def generate(
        self, prompt: Prompt, params: SamplingParams | None = None, *, wait: bool = False
    ) -> Generation:
        """One request of one sample to its end."""
        async with self.stream(prompt, params, wait=wait) as stream:
            async for _ in stream:
                pass
        return stream.result()

    async def stats(self) -> dict[str, Any]:
        """`Engine.stats`, and how many requests are unfinished."""
        return await self._ask(lambda: {**self._engine.stats(), "pending": self._pending})

    async def reset_stats(self) -> None:
        """`Engine.reset_stats`."""
        await self._ask(self._engine.reset_stats)

    async def clear_learned(self) -> None:
        """`Engine.clear_learned`."""
        await self._ask(self._engine.clear_learned)

    async def shutdown(self, drain: bool = True) -> None:
        """Takes no more requests, finishes those there are (or with `drain=False` aborts them),
        and ends the thread."""
        with self._lock:
            already, self._closing = self._closing, True
        if not already:
            self._commands.put(lambda: None if drain else self._abort_all())
        await asyncio.to_thread(self._thread.join)

    # Called by streams, in their event loop

    async def _open(self, stream: AsyncStream) -> None:
        await self._enter(stream.wait)
        self._commands.put(lambda: self._add(stream))
        await asyncio.shield(stream.started)

    def _forget(self, stream: AsyncStream) -> None:
        self._commands.put(lambda: self._drop(stream))

    async def _enter(self, wait: bool) -> None:
        while True:
            with self._lock:
                if self._closing:
                    raise RequestError("the engine is shutting down and takes no more requests")
                if self._pending < self._max_pending:
                    self._pending += 1
                    return
                if not wait:
                    raise CapacityError(
                        f"{self._pending} requests are pending, the most allowed: try again later, "
                        "wait=True, or raise max_pending"
                    )
                loop = asyncio.get_running_loop()
                vacancy = loop.create_future()
                self._vacancies.append((loop, vacancy))
            await vacancy

    async def _ask(self, question: Callable[[], Answer]) -> Answer:
        """The answer that the engine thread finds between two steps."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Answer] = loop.create_future()

        def answer() -> None:
            found = question()
            call(loop, lambda: resolve(future, found))

        with self._lock:
            if self._closing:
                raise RequestError("the engine is shutting down and takes no more requests")
            self._commands.put(answer)
        return await future

    # In the engine thread

    def _run(self) -> None:
        while True:
            idle = not self._engine.has_work()
            if idle and self._closing and self._pending == 0 and self._commands.empty():
                return
            self._obey(block=idle)
            if self._engine.has_work():
                self._step()

    def _obey(self, block: bool) -> None:
        """Carries out what has been asked; with `block`, waits until something is."""
        try:
            while True:
                self._commands.get(block)()
                block = False
        except queue.Empty:
            return

    def _step(self) -> None:
        try:
            outputs = self._engine.step()
        except DecodingError as error:
            for request_id in error.request_ids:
                self._end(request_id, error)
            return
        except Exception as error:
            for request_id in list(self._streams):
                self._engine.abort(request_id)
                self._end(request_id, error)
            return
        for out in outputs:
            stream = self._streams.get(out.request_id)
            if stream is not None:
                stream.deliver(out)
            if out.finish_reason is not None:
                self._end(out.request_id, None)

    def _add(self, stream: AsyncStream) -> None:
        try:
            stream.request_id = self._engine.add_request(stream.prompt, stream.params)
        except Exception as error:
            self._leave()
            stream.fail_to_start(error)
            return
        self._streams[stream.request_id] = stream
        stream.start()

    def _drop(self, stream: AsyncStream) -> None:
        if self._streams.get(stream.request_id) is stream:
            self._engine.abort(stream.request_id)
            self._end(stream.request_id, None)

    def _abort_all(self) -> None:
        for request_id in list(self._streams):
            self._engine.abort(request_id)
            self._end(request_id, RequestError("the engine was shut down"))

    def _end(self, request_id: str, error: Exception | None) -> None:
        stream = self._streams.pop(request_id, None)
        if stream is not None:
            stream.end(error)
            self._leave()

    def _leave(self) -> None:
        with self._lock:
            self._pending -= 1
            vacancies, self._vacancies = self._vacancies, []
        for loop, vacancy in vacancies:
            call(loop, functools.partial(resolve, vacancy, None))
