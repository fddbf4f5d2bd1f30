"""Which row of memory a request gets, and what it finds cached there."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch

from cascade_engine.cache import PAGE_TOKENS, pages_for
from cascade_engine.engine.row import NO_SLOT, Row
from cascade_engine.levels import NeuralLevel, TokenRows


class Slots:
    """Hands out slots, as long as every level's cache can hold all rows at their limits.

    With `reuse`, a finished row's cache stays until its slot or its pages are needed, and a new row
    starts from the longest common prefix with a finished or a running row. What is cached for a
    token depends on the tokens up to it alone, so this changes no token.
    """

    def __init__(self, levels: Sequence[NeuralLevel], rows: TokenRows, reuse: bool) -> None:
        self._levels = levels
        self._rows = rows
        self._reuse = reuse
        self._free = list(range(rows.tokens.shape[0]))[::-1]
        self._idle: OrderedDict[int, int] = OrderedDict()
        """Finished rows, least recently used first: slot -> tokens."""

    def fits(self, rows: Sequence[Row]) -> bool:
        """Whether every level can hold these rows at their limits."""
        return all(
            level.pages.fits(*(min(row.limit, level.context) for row in rows))
            for level in self._levels
        )

    def acquire(self, row: Row, running: Sequence[Row]) -> bool:
        """Gives `row` a slot with its prompt in it, or leaves everything as it was (False)."""
        if not (self._free or self._idle) or not self.fits([*running, row]):
            return False
        source, shared, is_idle = self._longest_prefix(row, running)
        if is_idle:
            self._idle.pop(source)
            slot = source
            self._truncate(slot, shared)
        else:
            slot = self._free.pop() if self._free else self._evict()
        self._make_room([*running, row])
        if not is_idle and shared:
            for level in self._levels:
                level.fork(source, slot, shared)
        self._rows.write(slot, row.prompt)
        row.slot = slot
        row.stats.cached_tokens = self._levels[0].pages.length[slot]
        return True

    def release(self, row: Row) -> None:
        """The row is done: its slot is free, or idle with what it holds."""
        if self._reuse:
            self._truncate(row.slot, row.final)
            self._idle[row.slot] = row.final
        else:
            self._truncate(row.slot, 0)
            self._free.append(row.slot)
        row.slot = NO_SLOT

    def clear(self) -> None:
        """Forgets what finished rows left."""
        while self._idle:
            self._free.append(self._evict())

    def check_integrity(self, running: Sequence[Row]) -> None:
        """Raises AssertionError unless each slot is free, idle or running, and free ones hold
        nothing."""
        slots = [*self._free, *self._idle, *(row.slot for row in running)]
        assert sorted(slots) == list(range(self._rows.tokens.shape[0])), f"slots: {slots}"
        for level in self._levels:
            level.pages.check_integrity()
            for slot in self._free:
                assert level.pages.held(slot) == 0, f"{level.name}: slot {slot} leaks pages"

    def _longest_prefix(self, row: Row, running: Sequence[Row]) -> tuple[int, int, bool]:
        """The slot that shares most with the prompt, how many tokens, and whether it is idle. At
        least one prompt token is left to feed; less than a page is not worth sharing."""
        best = (NO_SLOT, 0, False)
        if not self._reuse:
            return best
        prompt = torch.tensor(row.prompt[:-1], dtype=torch.int32)
        candidates = [(slot, tokens, True) for slot, tokens in self._idle.items()]
        candidates += [(other.slot, other.final, False) for other in running]
        for slot, tokens, is_idle in candidates:
            length = min(len(prompt), tokens, self._levels[0].pages.length[slot])
            if length >= PAGE_TOKENS and length > best[1]:
                differ = (self._rows.tokens[slot, :length] != prompt[:length]).nonzero()
                shared = int(differ[0]) if len(differ) else length
                if shared >= PAGE_TOKENS and shared > best[1]:
                    best = (slot, shared, is_idle)
        return best

    def _make_room(self, rows: Sequence[Row]) -> None:
        """Evicts idle rows until what is left fits beside `rows` at their limits."""
        while self._idle and not all(self._has_room(level, rows) for level in self._levels):
            self._free.append(self._evict())

    def _has_room(self, level: NeuralLevel, rows: Sequence[Row]) -> bool:
        needed = sum(pages_for(min(row.limit, level.context)) for row in rows)
        return needed + sum(level.pages.held(slot) for slot in self._idle) <= level.pages.pages

    def _evict(self) -> int:
        slot, _ = self._idle.popitem(last=False)
        self._truncate(slot, 0)
        return slot

    def _truncate(self, slot: int, tokens: int) -> None:
        for level in self._levels:
            level.truncate(slot, tokens)
