"""Who owns which page: free list, reference counts, block tables, lengths of one level."""

from __future__ import annotations

from collections.abc import Callable

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
    be shared by several rows (fork); `reserve` gives a row its own copy of a shared page before
    the row writes into it.

    Every method either succeeds or raises and leaves everything as it was.
    """

    def __init__(self, pages: int, rows: int, tokens_per_row: int) -> None:
        self.pages = pages
        self.block_table = torch.full((rows, pages_for(tokens_per_row)), NO_PAGE, dtype=torch.int32)
        """Page of token p of row r: block_table[r, p // PAGE_TOKENS]; -1 where there is none."""
        self.length = [0] * rows
        self._tokens_per_row = tokens_per_row
        self._held: list[list[int]] = [[] for _ in range(rows)]
        self._references = [0] * pages
        self._free = list(range(pages - 1, -1, -1))

    @property
    def free_pages(self) -> int:
        return len(self._free)

    def held(self, row: int) -> int:
        """Pages that a row holds, shared ones included."""
        return len(self._held[row])

    def missing(self, row: int, tokens: int) -> int:
        """Free pages that `reserve(row, tokens)` would take."""
        held = self._held[row]
        first = self.length[row] // PAGE_TOKENS
        shared = sum(self._references[page] > 1 for page in held[first:])
        return shared + max(0, pages_for(tokens) - len(held))

    def reserve(self, row: int, tokens: int, copy_page: Callable[[int, int], None]) -> None:
        """Makes positions length[row]..tokens-1 of the row writable.

        `copy_page(source, target)` is called for each shared page that the row is about to write.
        Raises CapacityError when the row is too long or the pool has too few free pages.
        """
        held = self._held[row]
        first = self.length[row] // PAGE_TOKENS
        shared = [i for i in range(first, len(held)) if self._references[held[i]] > 1]
        fresh = max(0, pages_for(tokens) - len(held))
        if not shared and not fresh:
            return
        if tokens > self._tokens_per_row:
            raise CapacityError(f"{tokens} tokens do not fit a row of {self._tokens_per_row}")
        if fresh + len(shared) > len(self._free):
            raise CapacityError(
                f"the key/value cache is full: {fresh + len(shared)} pages of {PAGE_TOKENS} "
                f"tokens needed, {len(self._free)} of {self.pages} free"
            )
        for i in shared:
            source, target = held[i], self._take()
            copy_page(source, target)
            self._drop(source)
            held[i] = target
            self.block_table[row, i] = target
        for _ in range(fresh):
            page = self._take()
            self.block_table[row, len(held)] = page
            held.append(page)

    def truncate(self, row: int, tokens: int) -> None:
        """Rollback: at most `tokens` leading tokens stay cached; pages past them are freed."""
        if tokens < 0:
            raise ValueError(f"cannot truncate row {row} to {tokens} tokens")
        self.length[row] = min(self.length[row], tokens)
        held = self._held[row]
        keep = pages_for(self.length[row])
        if len(held) > keep:
            for page in held[keep:]:
                self._drop(page)
            self.block_table[row, keep : len(held)] = NO_PAGE
            del held[keep:]

    def fork(self, source: int, target: int) -> None:
        """Row `target`, which must be empty, shares all cached pages of row `source`."""
        if self._held[target]:
            raise ValueError(f"row {target} is in use and cannot become a fork of row {source}")
        keep = pages_for(self.length[source])
        self._held[target] = self._held[source][:keep]
        for page in self._held[target]:
            self._references[page] += 1
        self.block_table[target, :keep] = self.block_table[source, :keep]
        self.length[target] = self.length[source]

    def check_integrity(self) -> None:
        """Raises AssertionError unless every page is free or referenced as often as rows hold it,
        block tables mirror what rows hold, and lengths fit."""
        counts = [0] * self.pages
        for row, held in enumerate(self._held):
            assert len(set(held)) == len(held), f"row {row} holds a page twice: {held}"
            assert self.length[row] <= len(held) * PAGE_TOKENS, (
                f"row {row} is longer than its pages"
            )
            listed = self.block_table[row].tolist()
            assert listed[: len(held)] == held, f"block table of row {row} differs from its pages"
            assert all(p == NO_PAGE for p in listed[len(held) :]), f"row {row} lists pages not held"
            for page in held:
                counts[page] += 1
        assert counts == self._references, "reference counts differ from what rows hold"
        free = set(self._free)
        assert len(free) == len(self._free), "a page is free twice"
        assert free == {p for p in range(self.pages) if counts[p] == 0}, "a page leaked"

    def _take(self) -> int:
        page = self._free.pop()
        self._references[page] = 1
        return page

    def _drop(self, page: int) -> None:
        self._references[page] -= 1
        if self._references[page] == 0:
            self._free.append(page)
