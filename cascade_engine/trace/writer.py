"""Writes a trace, one event a line, whole steps at a time."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable, Sequence
from os import PathLike
from typing import Any

from cascade_engine.errors import TraceError
from cascade_engine.trace.format import FORMAT, VERSION, Event, lines_of


class TraceWriter:
    """Collects events; `flush` writes them. Times are `time.perf_counter` values.

    A disk that fails costs the trace, never the decoding: a warning says so, further events are
    dropped, and `close` raises TraceError. Opening raises OSError.
    """

    def __init__(self, path: str | PathLike[str], levels: Sequence[str]) -> None:
        self._file = open(path, "wb")  # noqa: SIM115 - closed by `close`
        self._zero = time.perf_counter()
        self._named: set[int] = set()
        self._error: OSError | None = None
        self._events: list[Event] = [
            {
                "format": FORMAT,
                "version": VERSION,
                "started": round(time.time(), 3),
                "levels": list(levels),
            }
        ]
        self.flush()

    def add(self, event: str, at: float | None = None, s: float | None = None, **more: Any) -> None:
        """An event that began at `at` (None: now) and took `s` seconds, if it took any."""
        at = time.perf_counter() if at is None else at
        entry: Event = {"event": event, "t": round(at - self._zero, 7)}
        if s is not None:
            entry["s"] = s
        self._events.append({**entry, **more})

    def unnamed(self, tokens: Iterable[int]) -> list[int]:
        """Those whose text the trace does not have yet: give them to `name`."""
        return sorted(set(tokens) - self._named)

    def name(self, pieces: dict[int, str]) -> None:
        """How tokens read, before the event that mentions them."""
        self._named.update(pieces)
        named = {str(token): piece for token, piece in pieces.items()}
        self._events.append({"event": "pieces", "pieces": named})

    def flush(self) -> None:
        events, self._events = self._events, []
        if self._error is None and not self._file.closed:
            try:
                self._file.write(lines_of(events))
                self._file.flush()
            except OSError as error:
                self._error = error
                warnings.warn(f"the trace ends here: {error}", RuntimeWarning, stacklevel=2)

    def close(self) -> None:
        """Writes what is left. Raises TraceError if anything could not be written."""
        self.flush()
        try:
            self._file.close()
        except OSError as error:
            self._error = self._error or error
        if self._error is not None:
            raise TraceError(f"the trace is incomplete: {self._error}") from self._error
