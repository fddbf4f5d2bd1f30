"""The tokens of one request of an AsyncEngine, for one consumer."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable, Generator
from typing import Any

from cascade_engine.engine import Generation, Piece, StepOutput
from cascade_engine.engine.requests import Prompt
from cascade_engine.errors import RequestError
from cascade_engine.params import SamplingParams


class AsyncStream:
    """The tokens of one request, for one consumer: `async for piece in stream`.

    Awaiting it sends the request, if it has not been sent, and gives the stream. The request is
    aborted when the consumer goes away: on `aclose`, at the end of `async with`, or when the task
    that waits for the next token is cancelled.
    """

    def __init__(
        self,
        prompt: Prompt,
        params: SamplingParams,
        wait: bool,
        *,
        send: Callable[[AsyncStream], Awaitable[None]],
        forget: Callable[[AsyncStream], None],
    ) -> None:
        self.prompt = prompt
        self.params = params
        self.wait = wait
        self.request_id = ""
        self.started: asyncio.Future[None]
        self._send_request = send
        self._forget = forget
        self._loop: asyncio.AbstractEventLoop | None = None
        """Of the consumer, once the request is sent."""
        self._queue: asyncio.Queue[StepOutput | Exception | None] = asyncio.Queue()
        self._pieces: list[Piece] = []
        self._out: StepOutput | None = None
        self._ended = False

    def __await__(self) -> Generator[Any, None, AsyncStream]:
        return self._send().__await__()

    async def _send(self) -> AsyncStream:
        if self._loop is None and not self._ended:
            self._loop = asyncio.get_running_loop()
            self.started = self._loop.create_future()
            try:
                await self._send_request(self)
            except BaseException:
                self.abandon()
                raise
        return self

    def __aiter__(self) -> AsyncStream:
        return self

    async def __anext__(self) -> Piece:
        await self._send()
        while not self._pieces:
            if self._ended:
                raise StopAsyncIteration
            try:
                item = await self._queue.get()
            except asyncio.CancelledError:
                self.abandon()
                raise
            if item is None or isinstance(item, Exception):
                self._ended = True
                if item is not None:
                    raise item
            else:
                self._out = item if self._out is None else self._out.followed_by(item)
                self._pieces = item.pieces[::-1]
        return self._pieces.pop()

    async def __aenter__(self) -> AsyncStream:
        return await self._send()

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Aborts the request if it has not ended."""
        self.abandon()

    def abandon(self) -> None:
        """As `aclose`, from a plain function of the event loop."""
        if not self._ended:
            self._ended = True
            self._pieces = []
            self._forget(self)

    def result(self) -> Generation:
        """What was produced so far. Raises RequestError before the first token."""
        if self._out is None:
            raise RequestError("the request has produced nothing yet")
        return Generation.of(self._out)

    # Called in the engine thread

    def start(self) -> None:
        call(self._loop, lambda: resolve(self.started, None))

    def fail_to_start(self, error: Exception) -> None:
        self._ended = True
        call(self._loop, functools.partial(reject, self.started, error))

    def deliver(self, out: StepOutput) -> None:
        call(self._loop, lambda: self._queue.put_nowait(out))

    def end(self, error: Exception | None) -> None:
        call(self._loop, lambda: self._queue.put_nowait(error))


def resolve(future: asyncio.Future[Any], value: object) -> None:
    if not future.done():
        future.set_result(value)


def reject(future: asyncio.Future[Any], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)


def call(loop: asyncio.AbstractEventLoop | None, function: Callable[[], object]) -> None:
    """In the loop's thread; a loop that has been closed has nobody waiting."""
    if loop is not None and not loop.is_closed():
        loop.call_soon_threadsafe(function)
