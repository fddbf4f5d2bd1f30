"""Random operations on the page table against a plain model, integrity after each."""

from __future__ import annotations

import random

import pytest

from cascade_engine.cache import PAGE_TOKENS, PageTable
from cascade_engine.errors import CapacityError


class Mirror:
    """What rows should read back: a dictionary of page contents, written token by token."""

    def __init__(self, table: PageTable) -> None:
        self.table = table
        self.memory: dict[tuple[int, int], object] = {}

    def copy_page(self, source: int, target: int) -> None:
        for slot in range(PAGE_TOKENS):
            self.memory[target, slot] = self.memory.get((source, slot))

    def write(self, row: int, position: int, value: object) -> None:
        page = int(self.table.block_table[row, position // PAGE_TOKENS])
        self.memory[page, position % PAGE_TOKENS] = value

    def read(self, row: int, length: int) -> list[object]:
        pages = self.table.block_table[row].tolist()
        return [self.memory[pages[p // PAGE_TOKENS], p % PAGE_TOKENS] for p in range(length)]


def test_random_operations_keep_contents_and_integrity() -> None:
    refused = forked = 0
    for seed in range(30):
        rng = random.Random(seed)
        table = PageTable(pages=12, rows=5, tokens_per_row=100)
        mirror = Mirror(table)
        rows: list[list[object]] = [[] for _ in range(5)]
        for step in range(200):
            row = rng.randrange(5)
            kind = rng.random()
            if kind < 0.55:
                end = min(100, len(rows[row]) + rng.randint(1, 40))
                free = table.free_pages
                try:
                    table.reserve(row, end, mirror.copy_page)
                except CapacityError:
                    refused += 1
                    assert table.free_pages == free
                else:
                    for position in range(len(rows[row]), end):
                        mirror.write(row, position, (step, row, position))
                        rows[row].append((step, row, position))
                    table.length[row] = end
            elif kind < 0.85 or rows[row]:
                keep = rng.randint(0, len(rows[row]))
                table.truncate(row, keep)
                del rows[row][keep:]
            else:
                source = rng.randrange(5)
                if source != row:
                    table.fork(source, row)
                    rows[row] = list(rows[source])
                    forked += 1
            table.check_integrity()
            for r in range(5):
                assert mirror.read(r, len(rows[r])) == rows[r]
    assert refused
    assert forked


def test_refusals_name_the_numbers() -> None:
    table = PageTable(pages=2, rows=2, tokens_per_row=64)
    with pytest.raises(CapacityError, match="3 pages of 16 tokens needed, 2 of 2 free"):
        table.reserve(0, 33, lambda s, t: None)
    with pytest.raises(CapacityError, match="65 tokens do not fit a row of 64"):
        table.reserve(0, 65, lambda s, t: None)
    table.check_integrity()


def test_truncate_frees_whole_pages_only() -> None:
    table = PageTable(pages=4, rows=1, tokens_per_row=64)
    table.reserve(0, 40, lambda s, t: None)
    table.length[0] = 40
    table.truncate(0, 17)
    assert (table.free_pages, table.length[0]) == (2, 17)
    table.truncate(0, 16)
    assert table.free_pages == 3
    assert table.block_table[0].tolist()[1:] == [-1, -1, -1]


def test_integrity_check_sees_damage() -> None:
    table = PageTable(pages=4, rows=2, tokens_per_row=32)
    table.reserve(0, 20, lambda s, t: None)
    table.block_table[1, 0] = table.block_table[0, 0]
    with pytest.raises(AssertionError, match="row 1 lists pages not held"):
        table.check_integrity()
