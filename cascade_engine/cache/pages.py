"""Who owns which page: free list, reference counts, block tables, lengths and the prefix index of
one level."""

from __future__ import annotations

import ctypes
from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch

from cascade_engine.errors import CapacityError

PAGE_TOKENS = 16
"""Tokens in a page; the native kernels are built for this value."""

NO_PAGE = -1


def pages_for(tokens: int) -> int:
    """Pages that hold `tokens` tokens."""
    return -(-tokens // PAGE_TOKENS)


class PageTable:
    """Pages of one level's cache, for up to `rows` rows of up to `tokens_per_row` tokens.

    `length[row]` is the level's kv_len: leading tokens whose keys and values are cached. A page may
    be shared by several rows; `reserve` gives a row its own copy of a shared page before the row
    writes into it.

    A page that was published belongs to the prefix index: it is found by its key (see prefixes.py)
    and leaves the index when its only row writes into it (a partly filled one). When no row
    references it any more it stays cached until pages run out; the one that has gone longest
    without a reference is evicted first. Rows hold pages from the beginning of a prefix on and let
    go of the last one first, so that a prefix is evicted from its end.

    Every method either succeeds or raises and leaves everything as it was.
    """

    def __init__(self, pages: int, rows: int, tokens_per_row: int) -> None:
        self.pages = pages
        self._row_pages = pages_for(tokens_per_row)
        self.block_table = torch.full((rows, self._row_pages), NO_PAGE, dtype=torch.int32)
        """Page of token p of row r: block_table[r, p // PAGE_TOKENS]; -1 where there is none."""
        # Writing an entry through the tensor costs microseconds, through its memory a tenth.
        entries = ctypes.c_int32 * self.block_table.numel()
        memory = entries.from_address(self.block_table.data_ptr())
        self._memory = memoryview(memory).cast("B").cast("i")
        self.length = [0] * rows
        self.published = [0] * rows
        """Leading pages of each row that are in the prefix index."""
        self._leads: list[list[int]] = []
        """Of levels that write into these pages ahead of `length`: tokens of each row."""
        self._tokens_per_row = tokens_per_row
        self._held: list[list[int]] = [[] for _ in range(rows)]
        self._references = [0] * pages
        self._free = list(range(pages - 1, -1, -1))
        self._page_of: dict[bytes, int] = {}
        self._key_of: list[bytes | None] = [None] * pages
        self._cached: OrderedDict[int, None] = OrderedDict()
        """Pages of the index that no row references, least recently used first."""

    @property
    def free_pages(self) -> int:
        """Pages that hold nothing."""
        return len(self._free)

    @property
    def cached_pages(self) -> int:
        """Pages that no row references, kept for rows to come."""
        return len(self._cached)

    @property
    def available_pages(self) -> int:
        """Pages that rows can get: the free ones and, by eviction, the cached ones."""
        return len(self._free) + len(self._cached)

    def held(self, row: int) -> int:
        """Pages that a row holds, shared ones included."""
        return len(self._held[row])

    def lead(self) -> list[int]:
        """Lengths of one more level that writes into these pages, in leading layers alone: a row
        keeps the pages for the longest of its lengths."""
        self._leads.append([0] * len(self.length))
        return self._leads[-1]

    def missing(self, row: int, tokens: int) -> int:
        """Available pages that `reserve(row, tokens)` would take."""
        return len(self._shared_from_end(row)) + self._fresh(row, tokens)

    def reserve(self, row: int, tokens: int, copy_page: Callable[[int, int], None]) -> None:
        """Makes positions length[row]..tokens-1 of the row writable.

        `copy_page(source, target)` is called for each shared page that the row is about to write.
        Raises CapacityError when the row is too long or the pool has too few available pages.
        """
        held = self._held[row]
        shared = self._shared_from_end(row)
        fresh = self._fresh(row, tokens)
        if fresh and tokens > self._tokens_per_row:
            raise CapacityError(f"{tokens} tokens do not fit a row of {self._tokens_per_row}")
        if fresh + len(shared) > self.available_pages:
            raise CapacityError(
                f"the key/value cache is full: {fresh + len(shared)} pages of {PAGE_TOKENS} "
                f"tokens needed, {self.available_pages} of {self.pages} free"
            )
        for page in held[self.length[row] // PAGE_TOKENS :]:
            if self._references[page] == 1:
                self._forget(page)
        for i in shared:
            source, target = held[i], self._take()
            copy_page(source, target)
            self._drop(source)
            held[i] = target
            self._list(row, i, target)
        for _ in range(fresh):
            page = self._take()
            self._list(row, len(held), page)
            held.append(page)

    def truncate(self, row: int, tokens: int) -> None:
        """Rollback: at most `tokens` leading tokens stay cached; the row lets go of pages past
        them, but for those of levels that are ahead."""
        if tokens < 0:
            raise ValueError(f"cannot truncate row {row} to {tokens} tokens")
        if tokens < self.length[row]:
            self.length[row] = tokens
            self.published[row] = min(self.published[row], tokens // PAGE_TOKENS)
        held = self._held[row]
        keep = pages_for(max([self.length[row], *[lead[row] for lead in self._leads]]))
        if len(held) > keep:
            for page in reversed(held[keep:]):
                self._drop(page)
            for i in range(keep, len(held)):
                self._list(row, i, NO_PAGE)
            del held[keep:]

    def fork(self, source: int, target: int) -> None:
        """Row `target`, which must be empty, shares all cached pages of row `source`."""
        self._check_empty(target, f"a fork of row {source}")
        self._give(target, self._held[source][: pages_for(self.length[source])])
        self.length[target] = self.length[source]
        self.published[target] = self.published[source]

    # The prefix index

    def find(self, keys: Sequence[bytes]) -> int:
        """How many pages of a prefix are in the index; `keys[i]` is the key of its page i."""
        count = 0
        while count < len(keys) and keys[count] in self._page_of:
            count += 1
        return count

    def referenced(self, keys: Sequence[bytes]) -> int:
        """How many of these pages, all in the index, some row references."""
        return sum(self._references[self._page_of[key]] > 0 for key in keys)

    def adopt(self, row: int, keys: Sequence[bytes], tails: Sequence[bytes] = ()) -> None:
        """The empty row starts with these whole pages, all in the index, and then with the first
        of the partly filled pages `tails` that is there: `tails[i]` is of len(tails) - i tokens.
        """
        self._check_empty(row, "the owner of a cached prefix")
        self._give(row, [self._page_of[key] for key in keys])
        self.published[row] = len(keys)
        self.length[row] = len(keys) * PAGE_TOKENS
        for i, key in enumerate(tails):
            page = self._page_of.get(key, NO_PAGE)
            if page != NO_PAGE:
                self._give(row, [page])
                self.length[row] += len(tails) - i
                return

    def publish(self, row: int, keys: Sequence[bytes]) -> None:
        """The row's leading pages, which must be full, join the index under these keys.

        Where another row published the same prefix before, this row takes over the other's page:
        equal tokens have equal bits.
        """
        held = self._held[row]
        for i in range(self.published[row], len(keys)):
            page = held[i]
            known = self._page_of.setdefault(keys[i], page)
            if known == page:
                self._key_of[page] = keys[i]
            else:
                self._hold(known)
                self._drop(page)
                held[i] = known
                self._list(row, i, known)
        self.published[row] = max(self.published[row], len(keys))

    def publish_tail(self, row: int, key: bytes) -> None:
        """The row's last page, partly filled, joins the index; the row must be truncated to
        nothing next."""
        page = self._held[row][-1]
        own = self._references[page] == 1 and self._key_of[page] is None
        if own and key not in self._page_of:
            self._page_of[key] = page
            self._key_of[page] = key

    def clear_index(self) -> None:
        """Frees all cached pages; what rows reference stays."""
        while self._cached:
            self._evict()

    def published_keys(self, row: int) -> list[bytes | None]:
        """Keys of the row's published pages."""
        return [self._key_of[page] for page in self._held[row][: self.published[row]]]

    def check_integrity(self) -> None:
        """Raises AssertionError unless every page is free, referenced as often as rows hold it, or
        cached, once; keys and pages of the index agree; block tables mirror what rows hold, and
        lengths fit."""
        counts = [0] * self.pages
        for row, held in enumerate(self._held):
            assert len(set(held)) == len(held), f"row {row} holds a page twice: {held}"
            assert self.length[row] <= len(held) * PAGE_TOKENS, (
                f"row {row} is longer than its pages"
            )
            assert all(lead[row] <= len(held) * PAGE_TOKENS for lead in self._leads), (
                f"a level is ahead of the pages of row {row}"
            )
            assert self.published[row] * PAGE_TOKENS <= self.length[row], (
                f"row {row} has published pages that are not full"
            )
            assert None not in self.published_keys(row), f"row {row} lists pages not in the index"
            listed = self.block_table[row].tolist()
            assert listed[: len(held)] == held, f"block table of row {row} differs from its pages"
            assert all(p == NO_PAGE for p in listed[len(held) :]), f"row {row} lists pages not held"
            for page in held:
                counts[page] += 1
        assert counts == self._references, "reference counts differ from what rows hold"
        keyed = {key: page for page, key in enumerate(self._key_of) if key is not None}
        assert keyed == self._page_of, "the index differs from the pages' keys"
        assert set(self._cached) == {p for p in keyed.values() if not counts[p]}, (
            "cached pages are not those of the index without a reference"
        )
        free = set(self._free)
        assert len(free) == len(self._free), "a page is free twice"
        unused = {p for p in range(self.pages) if counts[p] == 0}
        assert free == unused - set(self._cached), "a page leaked"

    def _fresh(self, row: int, tokens: int) -> int:
        return max(0, pages_for(tokens) - len(self._held[row]))

    def _shared_from_end(self, row: int) -> list[int]:
        """Indices of the row's pages behind its cached tokens that other rows read too."""
        held = self._held[row]
        first = self.length[row] // PAGE_TOKENS
        return [i for i in range(first, len(held)) if self._references[held[i]] > 1]

    def _check_empty(self, row: int, what: str) -> None:
        if self._held[row]:
            raise ValueError(f"row {row} is in use and cannot become {what}")

    def _give(self, row: int, pages: Sequence[int]) -> None:
        """The row holds these pages too, behind those that it has."""
        held = self._held[row]
        for page in pages:
            self._hold(page)
            self._list(row, len(held), page)
            held.append(page)

    def _list(self, row: int, index: int, page: int) -> None:
        """Block `index` of the row is `page` now, in what native code reads."""
        self._memory[row * self._row_pages + index] = page

    def _hold(self, page: int) -> None:
        self._references[page] += 1
        self._cached.pop(page, None)

    def _drop(self, page: int) -> None:
        self._references[page] -= 1
        if self._references[page] == 0:
            if self._key_of[page] is None:
                self._free.append(page)
            else:
                self._cached[page] = None

    def _take(self) -> int:
        if not self._free:
            self._evict()
        page = self._free.pop()
        self._references[page] = 1
        return page

    def _evict(self) -> None:
        page, _ = self._cached.popitem(last=False)
        self._forget(page)
        self._free.append(page)

    def _forget(self, page: int) -> None:
        key = self._key_of[page]
        if key is not None:
            del self._page_of[key]
            self._key_of[page] = None
