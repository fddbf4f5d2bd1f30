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
        abort: Callable[[], object],
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
        """Ends the request where it is; its finish reason becomes "abort"."""
        if self._out.finish_reason is None:
            self._abort()
            self._out = replace(self._out, finish_reason="abort")
        self._pieces.clear()

    def result(self) -> Generation:
        """What was produced so far; `finish_reason` is None while the request runs."""
        return Generation.of(self._out)
