"""The rows of all requests: waiting, running, pushed back, gone."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from cascade_engine.engine.drafting import Drafting
from cascade_engine.engine.row import NO_SLOT, Row
from cascade_engine.engine.slots import Slots
from cascade_engine.engine.stats import EngineStats
from cascade_engine.engine.watching import Audience
from cascade_engine.errors import DecodingError
from cascade_engine.levels import NeuralLevel


class Roster:
    """Owns the rows. Those with memory are `slots.running`; the others wait in turn."""

    def __init__(
        self, slots: Slots, drafting: Drafting, stats: EngineStats, audience: Audience
    ) -> None:
        self.waiting: deque[Row] = deque()
        self.slots = slots
        self._drafting = drafting
        self._stats = stats
        self._audience = audience

    def rows(self) -> list[Row]:
        return [*self.waiting, *self.slots.running]

    def enqueue(self, rows: Sequence[Row]) -> None:
        self.waiting.extend(rows)
        self._stats.requests["added"] += len(rows)
        self._stats.prompt_tokens += sum(row.stats.prompt_tokens for row in rows)
        self._audience.watcher.enqueued(rows)

    def drop(self, request_id: str) -> bool:
        """Forgets a request's rows and frees what they hold; False if there are none."""
        dropped = [row for row in self.rows() if row.request_id == request_id]
        for row in dropped:
            if row.slot == NO_SLOT:
                self.waiting.remove(row)
            else:
                self._drafting.forget(row)
                self.slots.release(row)
            self._audience.watcher.dropped(row)
        self._stats.requests["aborted"] += len(dropped)
        return bool(dropped)

    def admit(self) -> None:
        """Gives those who wait a slot, first come first served, while there is room."""
        while self.waiting and self.slots.admit(self.waiting[0]):
            row = self.waiting.popleft()
            cached = 0 if row.started else row.stats.cached_tokens
            self._stats.cached_prompt_tokens += cached
            row.begin()
            self._audience.watcher.admitted(row, cached)

    def make_room(self, level: NeuralLevel, rows: Sequence[Row]) -> list[Row]:
        """Pages for feeding these rows to a level; rows preempted for it wait again."""
        preempted = self.slots.reserve(level, rows)
        self.waiting.extendleft(preempted)
        self._stats.requests["preempted"] += len(preempted)
        self._audience.watcher.preempted(preempted)
        return [row for row in rows if row.slot != NO_SLOT]

    def fail(self, rows: Sequence[Row], message: str) -> DecodingError:
        """Drops the requests that cannot go on."""
        request_ids = list(dict.fromkeys(row.request_id for row in rows))
        for request_id in request_ids:
            self.drop(request_id)
        return DecodingError(message, request_ids)

    def finish(self, row: Row) -> None:
        """A row is complete: drafters learn from it, others get its room."""
        self._drafting.finish(row)
        self.slots.release(row)
        self._stats.requests["finished"] += 1
