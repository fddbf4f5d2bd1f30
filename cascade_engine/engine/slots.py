"""Which row of memory a request gets, what it finds cached there, and who gives way when pages run
out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from cascade_engine.cache import (
    PAGE_TOKENS,
    extend_keys,
    pages_for,
    prefix_key,
    tail_keys,
)
from cascade_engine.engine.row import NO_SLOT, Row
from cascade_engine.levels import NeuralLevel, TokenRows


class Found(NamedTuple):
    """What of a row is cached in one level: whole pages of the index, or tokens of a running
    sample of the same request, whichever is more."""

    pages: int
    shared: int

    @property
    def tokens(self) -> int:
        return max(self.pages * PAGE_TOKENS, self.shared)


class Slots:
    """Owns the running rows' memory: token rows and every level's pages.

    With `reuse`, whole pages of what a row has cached join each level's prefix index while it runs
    and the rest when it leaves; a new row starts from the longest prefix found there. Samples and
    forks of one request share everything, also without `reuse`. What is cached for a token
    depends on the tokens up to it alone, so this changes no token. That goes for prompt and
    generated tokens alike: on the CPU one kernel serves any number of rows, so that there is one
    class of computation. A backend with two publishes prompt pages alone.
    """

    def __init__(self, levels: Sequence[NeuralLevel], rows: TokenRows, reuse: bool) -> None:
        self.running: list[Row] = []
        """Rows with a slot, oldest first."""
        self._levels = [level for level in levels if not level.shares]
        self._sharing = [level for level in levels if level.shares]
        """They have no pages of their own."""
        self._rows = rows
        self.reuse = reuse
        self._free = list(range(rows.tokens.shape[0]))[::-1]

    @property
    def capacity(self) -> int:
        """Tokens that the smallest of the levels' caches holds."""
        return PAGE_TOKENS * min(level.table.pages for level in self._levels)

    def vacancies(self) -> tuple[int, int]:
        """Rows that could start now, and tokens that the cache with the least room still takes."""
        available = min(level.table.available_pages for level in self._levels)
        return len(self._free), PAGE_TOKENS * available

    def could_hold(self, row: Row) -> bool:
        """Whether the row fits at its limit when it is alone."""
        return all(
            pages_for(min(row.limit, level.context)) <= level.table.pages for level in self._levels
        )

    def admit(self, row: Row) -> bool:
        """Gives `row` a slot with its tokens in it, or leaves everything as it was (False).

        A row is admitted while its tokens fit beside the running rows with a page for each to grow,
        and when no running row is about to cache a further page of its prefix: then it pays to
        wait.
        """
        if not self._free:
            return False
        if self.reuse:
            row.extend_keys(row.tokens[len(row.keys) * PAGE_TOKENS :])
            for other in self.running:
                self._publish(other)
        sibling = next((r for r in self.running if r.request_id == row.request_id), None)
        common = 0 if sibling is None else self._common_tokens(row, sibling)
        found = [self._find(level, row, sibling, common) for level in self._levels]
        if self._pays_to_wait(row, found[0], common) or not self._has_room_for(row, found):
            return False
        row.slot = self._free.pop()
        self._rows.write(row.slot, row.tokens, row.source)
        row.probs = self._rows.probs(row.slot)
        for level, each in zip(self._levels, found, strict=True):
            self._start_from(level, row, sibling, each)
        if not row.started:
            row.stats.cached_tokens = min(len(row.prompt), self._levels[0].pages.length[row.slot])
        self.running.append(row)
        return True

    def release(self, row: Row) -> None:
        """The row is done; its slot is free."""
        self.running.remove(row)
        for level in self._sharing:
            level.truncate(row.slot, 0)
        self._truncate(row.slot, row.final)
        if self.reuse:
            self._publish(row)
            self._publish_tails(row)
        self._truncate(row.slot, 0)
        self._rows.forget(row.slot)
        self._free.append(row.slot)
        row.slot = NO_SLOT

    def reserve(self, level: NeuralLevel, rows: Sequence[Row]) -> list[Row]:
        """Makes sure that `level` can feed these rows to their ends; returns rows preempted for it.

        Pages come from the prefix index first, then from the youngest running rows, which let go of
        theirs: they start over from their tokens when there is room.
        """
        preempted: list[Row] = []
        staying = list(rows)
        while staying:
            missing = sum(level.pages.missing(row.slot, row.length) for row in staying)
            if missing <= level.pages.available_pages:
                break
            youngest = self.running[-1]
            preempted.append(youngest)
            youngest.tokens = self._rows.read(youngest.slot, 0, youngest.final)
            youngest.roll_back()
            self.release(youngest)
            staying = [row for row in staying if row is not youngest]
        return preempted

    def occupancy(self) -> dict[str, dict[str, int]]:
        """Pages of each level: used by rows, cached for later ones, all."""
        return {
            level.name: {
                "used": level.table.pages - level.table.available_pages,
                "cached": level.table.cached_pages,
                "total": level.table.pages,
            }
            for level in self._levels
        }

    def clear(self) -> None:
        """Forgets what rows left that are gone."""
        for level in self._levels:
            level.table.clear_index()

    def check_integrity(self) -> None:
        """Raises AssertionError unless each slot is free or running, free ones hold nothing, and
        what rows published is found under their tokens' keys."""
        slots = [*self._free, *(row.slot for row in self.running)]
        assert sorted(slots) == list(range(self._rows.tokens.shape[0])), f"slots: {slots}"
        for level in self._levels:
            level.table.check_integrity()
            for slot in self._free:
                assert level.table.held(slot) == 0, f"{level.name}: slot {slot} leaks pages"
            for row in self.running:
                keys: list[bytes] = []
                extend_keys(keys, self._rows.read(row.slot, 0, row.final), row.root_key)
                published = level.table.published_keys(row.slot)
                assert published == keys[: len(published)], f"{row.request_id}: wrong keys"

    # Admission

    def _common_tokens(self, row: Row, sibling: Row) -> int:
        """Leading tokens that the row shares with another of its request, one left out to feed."""
        begin = len(row.prompt)
        theirs = self._rows.read(sibling.slot, begin, sibling.final)
        pairs = zip(row.tokens[begin:], theirs, strict=False)
        same = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
        if same is None:
            same = min(len(row.tokens) - begin, len(theirs))
        return min(begin + same, len(row.tokens) - 1)

    def _find(self, level: NeuralLevel, row: Row, sibling: Row | None, common: int) -> Found:
        pages = level.table.find(row.keys[: (len(row.tokens) - 1) // PAGE_TOKENS])
        shared = 0 if sibling is None else min(common, level.table.length[sibling.slot])
        return Found(pages, shared)

    def _pays_to_wait(self, row: Row, found: Found, common: int) -> bool:
        """Whether a running row's prompt has the next page of this row's prefix: then the running
        row is about to cache it."""
        if common - found.tokens >= PAGE_TOKENS:
            return True
        page = found.tokens // PAGE_TOKENS
        if page >= (len(row.tokens) - 1) // PAGE_TOKENS or page >= len(row.keys):
            return False
        wanted = row.keys[page]
        return any(len(other.keys) > page and other.keys[page] == wanted for other in self.running)

    def _has_room_for(self, row: Row, found: Sequence[Found]) -> bool:
        """Pages that running rows reference cost nothing when they are shared."""
        if not self.running:
            return True
        for level, each in zip(self._levels, found, strict=True):
            shared = max(level.table.referenced(row.keys[: each.pages]), each.shared // PAGE_TOKENS)
            needed = pages_for(min(row.length, level.context)) - shared + len(self.running)
            if needed > level.table.available_pages:
                return False
        return True

    def _start_from(self, level: NeuralLevel, row: Row, sibling: Row | None, found: Found) -> None:
        if sibling is not None and found.shared > found.pages * PAGE_TOKENS:
            level.fork(sibling.slot, row.slot, found.shared)
        elif self.reuse:
            keys = row.keys[: found.pages]
            rest = row.tokens[found.pages * PAGE_TOKENS : len(row.tokens) - 1]
            tails = tail_keys(keys[-1] if keys else row.root_key, rest[: PAGE_TOKENS - 1])
            level.table.adopt(row.slot, keys, tails)
            # A level may have no use for a part of what there is.
            level.truncate(row.slot, level.table.length[row.slot])

    # The prefix index

    def _publish(self, row: Row) -> None:
        """The row's whole pages of final tokens join the index."""
        for level in self._levels:
            pages = min(level.table.length[row.slot], row.final) // PAGE_TOKENS
            if pages > level.table.published[row.slot]:
                begin = len(row.keys) * PAGE_TOKENS
                row.extend_keys(self._rows.read(row.slot, begin, pages * PAGE_TOKENS))
                level.table.publish(row.slot, row.keys[:pages])

    def _publish_tails(self, row: Row) -> None:
        """The partly filled last pages of a row that leaves, for a prompt that goes on from all of
        it, as the next turn of a conversation does."""
        for level in self._levels:
            pages, rest = divmod(level.table.length[row.slot], PAGE_TOKENS)
            if rest:
                begin = pages * PAGE_TOKENS
                parent = row.keys[pages - 1] if pages else row.root_key
                tokens = self._rows.read(row.slot, begin, begin + rest)
                level.table.publish_tail(row.slot, prefix_key(parent, tokens))

    def _truncate(self, slot: int, tokens: int) -> None:
        for level in self._levels:
            level.truncate(slot, tokens)
