"""Which row of memory a request gets, what it finds cached there, and who gives way when pages run
out."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch

from cascade_engine.cache import PAGE_TOKENS, pages_for
from cascade_engine.engine.row import NO_SLOT, Row
from cascade_engine.levels import NeuralLevel, TokenRows


class Slots:
    """Owns the running rows' memory: token rows and every level's pages.

    With `reuse`, a finished row's cache stays until its slot or its pages are needed, and a new row
    starts from the longest common prefix with a finished or a running row (pages are shared, and
    copied when written). What is cached for a token depends on the tokens up to it alone, so this
    changes no token.
    """

    def __init__(self, levels: Sequence[NeuralLevel], rows: TokenRows, reuse: bool) -> None:
        self.running: list[Row] = []
        """Rows with a slot, oldest first."""
        self._levels = levels
        self._rows = rows
        self._reuse = reuse
        self._free = list(range(rows.tokens.shape[0]))[::-1]
        self._idle: OrderedDict[int, int] = OrderedDict()
        """Finished rows, least recently used first: slot -> tokens."""

    @property
    def capacity(self) -> int:
        """Tokens that the smallest of the levels' caches holds."""
        return PAGE_TOKENS * min(level.pages.pages for level in self._levels)

    def could_hold(self, row: Row) -> bool:
        """Whether the row fits at its limit when it is alone."""
        return all(
            pages_for(min(row.limit, level.context)) <= level.pages.pages for level in self._levels
        )

    def admit(self, row: Row) -> bool:
        """Gives `row` a slot with its tokens in it, or leaves everything as it was (False).

        A row is admitted while its tokens fit beside the running rows with a page for each to grow.
        """
        if not (self._free or self._idle) or not self._has_room_for(row):
            return False
        prefix = self._longest_prefix(row)
        if prefix is None:
            return False
        source, shared, is_idle = prefix
        if is_idle:
            self._idle.pop(source)
            slot = source
            self._truncate(slot, shared)
        else:
            slot = self._free.pop() if self._free else self._evict()
            if shared:
                for level in self._levels:
                    level.fork(source, slot, shared)
        self._rows.write(slot, row.tokens)
        row.slot = slot
        row.stats.cached_tokens = max(row.stats.cached_tokens, self._levels[0].pages.length[slot])
        self.running.append(row)
        return True

    def release(self, row: Row) -> None:
        """The row is done: its slot is free, or idle with what it holds."""
        self.running.remove(row)
        if self._reuse:
            self._truncate(row.slot, row.final)
            self._idle[row.slot] = row.final
        else:
            self._truncate(row.slot, 0)
            self._free.append(row.slot)
        row.slot = NO_SLOT

    def reserve(self, level: NeuralLevel, rows: Sequence[Row]) -> list[Row]:
        """Makes sure that `level` can feed these rows to their ends; returns rows preempted for it.

        Pages come from finished rows first, then from the youngest running rows, whose caches are
        dropped: they start over from their tokens when there is room.
        """
        preempted: list[Row] = []
        staying = list(rows)
        while staying:
            missing = sum(level.pages.missing(row.slot, row.length) for row in staying)
            if missing <= level.pages.free_pages:
                break
            if self._idle:
                self._free.append(self._evict())
                continue
            youngest = self.running[-1]
            preempted.append(youngest)
            self._preempt(youngest)
            staying = [row for row in staying if row is not youngest]
        return preempted

    def clear(self) -> None:
        """Forgets what finished rows left."""
        while self._idle:
            self._free.append(self._evict())

    def check_integrity(self) -> None:
        """Raises AssertionError unless each slot is free, idle or running, and free ones hold
        nothing."""
        slots = [*self._free, *self._idle, *(row.slot for row in self.running)]
        assert sorted(slots) == list(range(self._rows.tokens.shape[0])), f"slots: {slots}"
        for level in self._levels:
            level.pages.check_integrity()
            for slot in self._free:
                assert level.pages.held(slot) == 0, f"{level.name}: slot {slot} leaks pages"

    def _has_room_for(self, row: Row) -> bool:
        for level in self._levels:
            idle = sum(level.pages.held(slot) for slot in self._idle)
            needed = pages_for(min(row.length, level.context)) + len(self.running)
            if self.running and needed > level.pages.free_pages + idle:
                return False
        return True

    def _longest_prefix(self, row: Row) -> tuple[int, int, bool] | None:
        """The slot that shares most with the row, how many cached tokens, and whether it is idle.
        At least one token is left to feed; less than a page is not worth sharing. None: a running
        row is about to cache more than that, and it pays to wait."""
        best, promised = (NO_SLOT, 0, False), 0
        if not self._reuse:
            return best
        wanted = torch.tensor(row.tokens[:-1], dtype=torch.int32)
        candidates = [(slot, tokens, True) for slot, tokens in self._idle.items()]
        candidates += [(other.slot, other.final, False) for other in self.running]
        for slot, tokens, is_idle in candidates:
            length = min(len(wanted), tokens)
            differ = (self._rows.tokens[slot, :length] != wanted[:length]).nonzero()
            shared = int(differ[0]) if len(differ) else length
            if not is_idle:
                promised = max(promised, shared)
            cached = min(shared, self._levels[0].pages.length[slot])
            if cached >= PAGE_TOKENS and cached > best[1]:
                best = (slot, cached, is_idle)
        return best if promised - best[1] < PAGE_TOKENS else None

    def _preempt(self, row: Row) -> None:
        self.running.remove(row)
        row.tokens = self._rows.read(row.slot, 0, row.final)
        row.roll_back()
        self._truncate(row.slot, 0)
        self._free.append(row.slot)
        row.slot = NO_SLOT

    def _evict(self) -> int:
        slot, _ = self._idle.popitem(last=False)
        self._truncate(slot, 0)
        return slot

    def _truncate(self, slot: int, tokens: int) -> None:
        for level in self._levels:
            level.truncate(slot, tokens)
