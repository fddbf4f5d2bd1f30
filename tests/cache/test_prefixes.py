"""The prefix index: keys, sharing, eviction order, random lives of rows against a plain model."""

from __future__ import annotations

import random

import pytest

from cascade_engine.cache import (
    NO_TOKENS,
    PAGE_TOKENS,
    PageTable,
    extend_keys,
    prefix_key,
    tail_keys,
)
from tests.cache.test_pages import Mirror


def keys_of(tokens: list[int]) -> list[bytes]:
    keys: list[bytes] = []
    extend_keys(keys, tokens)
    return keys


def test_keys_stand_for_all_tokens_before() -> None:
    rng = random.Random(0)
    tokens = [rng.randrange(32000) for _ in range(100)]
    keys = keys_of(tokens)
    assert len(set(keys)) == len(keys) == 6
    in_parts = keys_of(tokens[:40])
    assert in_parts == keys[:2]
    extend_keys(in_parts, tokens[32:])
    assert in_parts == keys
    for changed in (0, 15, 16, 50, 95):
        other = keys_of([*tokens[:changed], tokens[changed] + 1, *tokens[changed + 1 :]])
        assert other[: changed // 16] == keys[: changed // 16]
        assert not set(other[changed // 16 :]) & set(keys)


def test_tail_keys_are_of_every_partial_length_fullest_first() -> None:
    tokens = list(range(40))
    tails = tail_keys(NO_TOKENS, tokens)
    assert len(tails) == PAGE_TOKENS - 1
    assert tails[0] == prefix_key(NO_TOKENS, tokens[:15])
    assert tails[-1] == prefix_key(NO_TOKENS, tokens[:1])
    assert tail_keys(tails[0], tokens[:2]) == [
        prefix_key(tails[0], tokens[:2]),
        prefix_key(tails[0], tokens[:1]),
    ]


def grow(table: PageTable, row: int, tokens: int) -> None:
    table.reserve(row, tokens, lambda source, target: None)
    table.length[row] = tokens


def finish(table: PageTable, row: int, tokens: list[int]) -> None:
    """A row of these tokens runs and leaves its whole pages."""
    grow(table, row, len(tokens))
    table.publish(row, keys_of(tokens))
    table.truncate(row, 0)


def test_the_least_recently_used_prefix_goes_first_and_from_its_end() -> None:
    table = PageTable(pages=6, rows=2, tokens_per_row=96)
    old, new = [1] * 32, [2] * 32
    finish(table, 0, old)
    finish(table, 0, new)
    assert (table.free_pages, table.cached_pages) == (2, 4)
    table.adopt(0, keys_of(old))  # `old` is the one used last now
    table.truncate(0, 0)
    for pages, left in ((3, (2, 1)), (4, (2, 0)), (5, (1, 0)), (6, (0, 0))):
        grow(table, 1, pages * 16)
        assert (table.find(keys_of(old)), table.find(keys_of(new))) == left
        table.check_integrity()


def test_pages_that_a_row_references_are_never_evicted() -> None:
    table = PageTable(pages=3, rows=2, tokens_per_row=64)
    tokens = [7] * 32
    finish(table, 0, tokens)
    table.adopt(0, keys_of(tokens))
    assert table.available_pages == 1
    grow(table, 1, 16)
    with pytest.raises(ValueError, match="row 0 is in use"):
        table.adopt(0, keys_of(tokens))
    assert table.find(keys_of(tokens)) == 2
    table.clear_index()
    assert table.find(keys_of(tokens)) == 2
    table.truncate(0, 0)
    table.clear_index()
    assert table.find(keys_of(tokens)) == 0
    assert table.free_pages == 2


def test_rows_that_computed_the_same_end_up_with_one_page() -> None:
    table = PageTable(pages=4, rows=2, tokens_per_row=32)
    tokens = [5] * 32
    for row in range(2):
        grow(table, row, 32)
    table.publish(0, keys_of(tokens))
    assert table.free_pages == 0
    table.publish(1, keys_of(tokens))
    assert table.free_pages == 2
    assert table.block_table[0].tolist() == table.block_table[1].tolist()
    table.check_integrity()


class Life:
    """Rows of tokens over a table, each page's memory holding the prefixes it was written with."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.table = PageTable(pages=14, rows=4, tokens_per_row=100)
        self.mirror = Mirror(self.table)
        self.rows: list[list[int]] = [[] for _ in range(4)]
        self.adopted = self.tails = self.evicted = 0

    def start(self, row: int) -> None:
        """A new row, from a few beginnings, takes what the index has of it."""
        beginning = self.rng.choice([[1] * 20, [1] * 35, [1] * 16 + [2] * 30, [3] * 50])
        tokens = beginning + [self.rng.randrange(2) for _ in range(self.rng.randint(0, 20))]
        keys = keys_of(tokens)
        keys = keys[: self.table.find(keys)]
        rest = tokens[len(keys) * PAGE_TOKENS :][: PAGE_TOKENS - 1]
        self.table.adopt(row, keys, tail_keys(keys[-1] if keys else NO_TOKENS, rest))
        length = self.table.length[row]
        self.adopted += len(keys)
        self.tails += length % PAGE_TOKENS > 0
        self.rows[row] = tokens[:length]
        self.extend(row, tokens[length:])

    def extend(self, row: int, tokens: list[int]) -> None:
        begin = len(self.rows[row])
        end = min(100, begin + len(tokens))
        available, cached = self.table.available_pages, self.table.cached_pages
        missing = self.table.missing(row, end)
        if missing > available:
            return
        self.table.reserve(row, end, self.mirror.copy_page)
        assert self.table.available_pages == available - missing
        self.evicted += cached - self.table.cached_pages
        for position in range(begin, end):
            self.rows[row].append(tokens[position - begin])
            self.mirror.write(row, position, tuple(self.rows[row]))
        self.table.length[row] = end

    def finish(self, row: int) -> None:
        tokens = self.rows[row]
        keys = keys_of(tokens)
        self.table.publish(row, keys)
        if len(tokens) % PAGE_TOKENS:
            parent = keys[-1] if keys else NO_TOKENS
            rest = tokens[len(keys) * PAGE_TOKENS :]
            self.table.publish_tail(row, prefix_key(parent, rest))
        self.table.truncate(row, 0)
        self.rows[row] = []

    def act(self) -> None:
        row, other = self.rng.sample(range(4), 2)
        kind = self.rng.random()
        if not self.rows[row]:
            if kind < 0.25 and self.rows[other]:
                self.table.fork(other, row)
                self.table.truncate(row, self.rng.randint(1, len(self.rows[other])))
                self.rows[row] = self.rows[other][: self.table.length[row]]
            else:
                self.start(row)
        elif kind < 0.4:
            self.extend(row, [self.rng.randrange(2) for _ in range(self.rng.randint(1, 12))])
        elif kind < 0.6:
            self.table.publish(row, keys_of(self.rows[row]))
        elif kind < 0.7:
            keep = self.rng.randint(0, len(self.rows[row]))
            self.table.truncate(row, keep)
            del self.rows[row][keep:]
        else:
            self.finish(row)

    def check(self) -> None:
        self.table.check_integrity()
        for row, tokens in enumerate(self.rows):
            expected = [tuple(tokens[: i + 1]) for i in range(len(tokens))]
            assert self.mirror.read(row, len(tokens)) == expected


def test_random_lives_read_back_what_they_wrote() -> None:
    adopted = tails = evicted = 0
    for seed in range(20):
        life = Life(seed)
        for _ in range(200):
            life.act()
            life.check()
        adopted, tails, evicted = (
            adopted + life.adopted,
            tails + life.tails,
            evicted + life.evicted,
        )
        for row in range(4):
            life.table.truncate(row, 0)
        life.table.clear_index()
        assert life.table.free_pages == 14
    assert adopted > 500
    assert tails > 10
    assert evicted > 100


def test_integrity_check_sees_a_damaged_index() -> None:
    table = PageTable(pages=4, rows=1, tokens_per_row=64)
    finish(table, 0, [1] * 32)
    (key, *_) = keys_of([1] * 32)
    page = table._page_of.pop(key)
    with pytest.raises(AssertionError, match="differs from the pages' keys"):
        table.check_integrity()
    table._page_of[key] = page
    del table._cached[page]
    with pytest.raises(AssertionError, match="cached pages are not"):
        table.check_integrity()
