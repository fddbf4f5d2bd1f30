"""Max-Gram and n-gram chains on the device, against their definitions."""

from __future__ import annotations

import random

import pytest
import torch

from cascade_engine.ops.launch import Launcher
from tests.reference.drafting import chain, count_ngrams, max_gram, prune

Table = dict[str, object]


def device_table(run: Launcher, documents: list[list[int]], order: int, vocab: int) -> Table:
    """The flat arrays of csrc/include/ce/ngram.h, built here from a dictionary."""
    table = prune(count_ngrams(documents, order), [1] * order, 4)
    levels: list[list[tuple[int, ...]]] = [[(t,) for t in range(vocab)]]
    for n in range(2, order + 1):
        wider = [c for c in table if len(c) == n]
        index = {c: i for i, c in enumerate(levels[-1])}
        levels.append(sorted(wider, key=lambda c: (index[c[1:]], c[0])))

    def runs(sizes: list[int], shift: int = 2) -> Table:
        ends = [0]
        for size in sizes:
            ends.append(ends[-1] + size)
        base = ends[:: 1 << shift]
        delta = [end - base[i >> shift] for i, end in enumerate(ends)]
        return {
            "base": torch.tensor(base, dtype=torch.int32, device=run.device),
            "delta": torch.tensor(delta, dtype=torch.int16, device=run.device),
        }

    def ids(tokens: list[int]) -> torch.Tensor:
        wide = torch.int32 if vocab > 65536 else torch.uint16
        return torch.tensor([*tokens, 0], dtype=torch.int32).to(wide).to(run.device)

    orders = []
    for n, contexts in enumerate(levels, 1):
        deeper = levels[n] if n < order else []
        children = [sum(d[1:] == c for d in deeper) for c in contexts]
        kept = [table.get(c, []) for c in contexts]
        orders.append(
            {
                "contexts": len(contexts),
                "token": ids([c[0] for c in contexts] if n > 1 else []),
                "children": runs(children),
                "successors": runs([len(k) for k in kept]),
                "successor": ids([t for k in kept for t, _ in k]),
                "total": None,
                "count": None,
            }
        )
    view = {"vocab": vocab, "block_shift": 2, "counts": None, "orders": orders}
    return {**view, "reference": table}


def draft(
    run: Launcher,
    rows: list[list[int]],
    counts: list[int],
    max_match: int = 32,
    corpora: list[list[int] | None] | None = None,
    table: Table | None = None,
) -> list[list[int]]:
    """What is drafted behind each row; slots are given out backwards, with a hole in front."""
    number, width = len(rows), max(map(len, rows)) + max(counts) + 1
    tokens = torch.full((number, width), -7, dtype=torch.int32)
    slots = list(reversed(range(number)))
    for slot, row in zip(slots, rows, strict=True):
        tokens[slot, : len(row)] = torch.tensor(row, dtype=torch.int32)
    tokens = tokens.to(run.device)
    probs = torch.zeros(number, width, device=run.device)

    def ints(values: list[int], dtype: torch.dtype = torch.int32) -> torch.Tensor:
        return torch.tensor(values, dtype=dtype, device=run.device)

    texts = [None if c is None else ints(c) for c in corpora or []]
    drafted = torch.full((number + 1,), -1, dtype=torch.int32, device=run.device)
    matches = torch.zeros(number + 1, 2, dtype=torch.int64, device=run.device)
    arguments = {
        "rows": number + 1,
        "slots": ints([-1, *slots]),
        "lengths": ints([0, *map(len, rows)]),
        "counts": ints([5, *counts]),
        "tokens": tokens,
        "draft_probs": probs,
        "token_stride": width,
        "max_match": max_match,
        "corpora": None,
        "corpus_lengths": None,
        "matches": matches,
        "drafted": drafted,
    }
    if corpora is not None:
        addresses = [0, *(0 if t is None else t.data_ptr() for t in texts)]
        arguments["corpora"] = ints(addresses, torch.int64)
        arguments["corpus_lengths"] = ints([0, *(0 if t is None else len(t) for t in texts)])
    run("max_gram", **arguments)
    assert not matches.any()
    if table is not None:
        run("ngram_chain", {k: v for k, v in table.items() if k != "reference"}, **arguments)
    assert int(drafted[0]) == 0
    found = []
    for slot, row, n in zip(slots, rows, drafted[1:].tolist(), strict=True):
        end = len(row) + n
        assert (tokens[slot, end:] == -7).all()
        assert probs[slot].tolist() == [0.0] * len(row) + [1.0] * n + [0.0] * (width - end)
        found.append(tokens[slot, len(row) : end].tolist())
    return found


@pytest.mark.parametrize("max_match", [1, 3, 32])
def test_max_gram(run: Launcher, max_match: int) -> None:
    generator = random.Random(max_match)
    rows = [[generator.randrange(n) for _ in range(size)] for n in (2, 3, 9) for size in (1, 2, 60)]
    rows += [[5] * 90, [1, 2, 3] * 30, list(range(40)), [*range(35), 99, *range(35)]]
    counts = [generator.randrange(12) for _ in rows]
    expected = [max_gram(row, n, max_match) for row, n in zip(rows, counts, strict=True)]
    assert draft(run, rows, counts, max_match) == expected


def test_the_latest_of_the_longest(run: Launcher) -> None:
    text = [7, 1, 2, 10, 7, 1, 2, 11, 9, 1, 2, 12, 7, 1, 2]
    assert draft(run, [text], [1]) == [[11]]


def test_corpora(run: Launcher) -> None:
    row = [1, 2, 3, 9, 2, 3]
    corpora = [[8, 2, 3, 5, 6], None, [3, 7], [4], [2, 3], [6, 2, 3, 5]]
    counts = [4] * 6
    expected = [max_gram(row, 4, 32, c or []) for c in corpora]
    assert draft(run, [row] * 6, counts, corpora=corpora) == expected


def test_a_long_row_is_shared_out(run: Launcher) -> None:
    generator = random.Random(3)
    row = [generator.randrange(50) for _ in range(9000)] + [77, 78]
    row[4100:4102] = [77, 78]
    assert draft(run, [row], [3]) == [max_gram(row[4000:], 3, 32)]


@pytest.mark.parametrize("order", [1, 3])
def test_chains_fill_up(run: Launcher, order: int) -> None:
    """Behind the copy, or from the start where nothing matched."""
    generator = random.Random(order)
    documents = [[generator.randrange(40) for _ in range(300)] for _ in range(3)]
    table = device_table(run, documents, order, 90)
    rows = [documents[0][:2], [80], documents[1][50:54], [*documents[2][9:14], 85], [39, 3]]
    counts = [9, 4, 0, 6, 12]
    reference = table["reference"]
    expected = []
    for row, n in zip(rows, counts, strict=True):
        copied = max_gram(row, n, 32)
        expected.append([*copied, *chain(reference, [*row, *copied], n - len(copied), order)])
    assert draft(run, rows, counts, table=table) == expected


def test_contexts_are_found_among_many(run: Launcher) -> None:
    """More children than lanes of a warp: several rounds of the search."""
    documents = [[t, 1, (t * 7) % 2000] for t in range(2, 1500)]
    table = device_table(run, documents, 2, 2000)
    rows = [[2, 1], [64, 1], [1499, 1], [777, 1], [1700, 1]]
    expected = [chain(table["reference"], row, 1, 2) for row in rows]
    assert expected[3] == [777 * 7 % 2000]
    assert draft(run, rows, [1] * 5, table=table) == expected
