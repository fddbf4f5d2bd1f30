"""One request, token by token."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace

from cascade_engine.engine.results import Generation, Piece, StepOutput


class Stream(Iterator[Piece]):
    """The tokens of one request as they become final; each carries the level that drafted it.

    The engine advances while the iterator is asked for tokens. `close` aborts a request that is
    still running; `result` tells what was produced so far.
    """

    def __init__(
        self,
        nothing_yet: StepOutput,
        *,
        step: Callable[[], list[StepOutput]],
        abort: Callable[[], str],
    ) -> None:
        self._step = step
        self._abort = abort
        self._pieces: deque[Piece] = deque()
        self._out = nothing_yet

    def __next__(self) -> Piece:
        while not self._pieces:
            if self._out.finish_reason is not None:
                raise StopIteration
            for out in self._step():
                self._out = self._out.followed_by(out)
                self._pieces.extend(out.pieces)
        return self._pieces.popleft()

    def close(self) -> None:
        """Ends the request where it is; its finish reason becomes "abort". Text that was held back
        because a stop string could begin in it joins the last piece of `result`."""
        if self._out.finish_reason is None:
            held_back = self._abort()
            pieces = self._out.pieces
            if held_back and pieces:
                pieces = [*pieces[:-1], pieces[-1]._replace(text=pieces[-1].text + held_back)]
            self._out = replace(self._out, pieces=pieces, finish_reason="abort")
        self._pieces.clear()

    def result(self) -> Generation:
        """What was produced so far; `finish_reason` is None while the request runs."""
        return Generation.of(self._out)
