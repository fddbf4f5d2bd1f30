"""A small file that keeps what the automatic policy learnt, for the next engine with these models
on this machine."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from cascade_engine import cache_files
from cascade_engine.policy.planning import Knowledge, PassCosts

FORMAT = 5
CELL_WEIGHT = 4.0
"""Passes that a time of an earlier run counts as: another run may find another load."""
Counts = tuple[list[float], list[float], float]
"""Kept and rejected tokens by depth, and reviews."""
REVIEWS = 24.0
"""Reviews that what was seen in earlier runs counts as at most: other texts may come."""


def save(path: Path, key: str, costs: PassCosts, known: Knowledge) -> None:
    """Writes all of it, or nothing where that cannot be."""
    content = {
        "format": FORMAT,
        "key": key,
        "cells": costs.cells(),
        "ends": [[*pair, *_of(each)] for pair, each in _ends(known).items()],
        "confident": [[_of(each) for each in both] for both in _confident(known)],
        "trees": [[each.tokens, each.below, each.reviews] for each in _trees(known)],
    }
    cache_files.write(path, content)


def load(path: Path, key: str, costs: PassCosts, known: Knowledge) -> str | None:
    """Takes over what an earlier run learnt. Returns a note where the file is of no use; it is
    then as if there were none."""
    try:
        content = cache_files.read(path, FORMAT, key)
        if content is None:
            return None
        cells = [_cell(*each) for each in content["cells"]]
        ends = {(a, b): _seen(*seen) for a, b, *seen in content["ends"]}
        confident = [[_seen(*seen) for seen in both] for both in content["confident"]]
        trees = [[_counts(counts) for counts in each] for each in content["trees"]]
        _check(known, ends, confident, trees)
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"what was learnt before, in {path}, is ignored: {error}"
    for pair, each in _ends(known).items():
        _restore(each, ends[pair])
    for both, pairs in zip(_confident(known), confident, strict=True):
        for each, pair_counts in zip(both, pairs, strict=True):
            _restore(each, pair_counts)
    for gains, counts in zip(_trees(known), trees, strict=True):
        gains.tokens, gains.below, gains.reviews = counts
        gains.scale(min(1.0, REVIEWS / max(*gains.reviews, REVIEWS)))
    costs.restore(cells)
    return None


def _ends(known: Knowledge) -> dict[tuple[int, int], Any]:
    """By reviewing level and source."""
    n = known.neural
    return {(a, b): known.ends(a, b) for a in range(n) for b in range(a + 1, n + 1)}


def _confident(known: Knowledge) -> list[list[Any]]:
    """Where drafts ended and how much of them was kept, by drafter, on its own and above others."""
    each = [known.confident(d, above) for d in range(1, known.neural) for above in (False, True)]
    return [[confident.drafted, confident.kept] for confident in each]


def _of(ends: Any) -> Counts:
    return ends.kept, ends.rejected, ends.reviews


def _restore(ends: Any, counts: Counts) -> None:
    ends.restore(*counts)
    ends.scale(min(1.0, REVIEWS / max(ends.reviews, REVIEWS)))


def _trees(known: Knowledge) -> list[Any]:
    return [known.trees(drafter) for drafter in range(known.neural)]


def _check(
    known: Knowledge,
    ends: dict[tuple[int, int], Counts],
    confident: list[list[Counts]],
    trees: list[list[list[float]]],
) -> None:
    lengths = [len(each) for each in _confident(known)]
    if ends.keys() != _ends(known).keys() or len(trees) != known.neural:
        raise ValueError("it is of other levels")
    if [len(each) for each in confident] != lengths:
        raise ValueError("it is of other levels")
    depths = len(known.ends(0, 1).kept)
    for kept, rejected, _ in (*ends.values(), *(each for both in confident for each in both)):
        if not len(kept) == len(rejected) == depths:
            raise ValueError("its counts are of other depths")
    for gains, found in zip(_trees(known), trees, strict=True):
        if [len(counts) for counts in found] != 3 * [len(gains.tokens)]:
            raise ValueError("its trees are of other sizes")


def _cell(
    table: Any, rows: Any, size: Any, seconds: Any, weight: Any
) -> tuple[int, int, int, float, float]:
    if not all(isinstance(value, int) for value in (table, rows, size)):
        raise ValueError("a cell's numbers are not integers")
    ordered = table >= 0 and min(rows, size) == 0 < max(rows, size)
    if not (ordered and 0.0 < seconds < math.inf and weight > 0.0):
        raise ValueError(f"a cell is out of range: {(table, rows, size, seconds, weight)}")
    return table, rows, size, float(seconds), min(float(weight), CELL_WEIGHT)


def _seen(kept: Any, rejected: Any, reviews: Any) -> Counts:
    return _counts(kept), _counts(rejected), _counts([reviews])[0]


def _counts(values: Any) -> list[float]:
    if not isinstance(values, list) or not all(0.0 <= value < math.inf for value in values):
        raise ValueError("counts are not numbers >= 0")
    return [float(value) for value in values]
