"""A small file that keeps what the automatic policy learnt, for the next engine with these models
on this machine."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from cascade_engine import cache_files
from cascade_engine.policy.costs import PassCosts
from cascade_engine.policy.planner import Knowledge

FORMAT = 2
CELL_WEIGHT = 4.0
"""Passes that a time of an earlier run counts as: another run may find another load."""
REVIEWS = 24.0
"""Reviews that what was seen in earlier runs counts as at most: other texts may come."""


def save(path: Path, key: str, costs: PassCosts, known: Knowledge) -> None:
    """Writes all of it, or nothing where that cannot be."""
    content = {
        "format": FORMAT,
        "key": key,
        "cells": costs.cells(),
        "ends": [[*pair, each.rejected, each.open] for pair, each in known.ends.items()],
        "trees": [[each.tokens, each.below, each.reviews] for each in known.trees],
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
        ends = {(a, b): (_counts(r), _counts(o)) for a, b, r, o in content["ends"]}
        trees = [[_counts(counts) for counts in each] for each in content["trees"]]
        _check(known, ends, trees)
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"what was learnt before, in {path}, is ignored: {error}"
    for pair, each in known.ends.items():
        each.rejected, each.open = ends[pair]
        each.reviews = sum(each.rejected) + sum(each.open)
        each.scale(min(1.0, REVIEWS / max(each.reviews, REVIEWS)))
    for gains, counts in zip(known.trees, trees, strict=True):
        gains.tokens, gains.below, gains.reviews = counts
        gains.scale(min(1.0, REVIEWS / max(*gains.reviews, REVIEWS)))
    costs.restore(cells)
    return None


def _check(
    known: Knowledge,
    ends: dict[tuple[int, int], tuple[list[float], list[float]]],
    trees: list[list[list[float]]],
) -> None:
    if ends.keys() != known.ends.keys() or len(trees) != len(known.trees):
        raise ValueError("it is of other levels")
    for pair, each in known.ends.items():
        if [len(counts) for counts in ends[pair]] != [len(each.rejected), len(each.open)]:
            raise ValueError("its counts are of other depths")
    for gains, found in zip(known.trees, trees, strict=True):
        if [len(counts) for counts in found] != 3 * [len(gains.tokens)]:
            raise ValueError("its trees are of other sizes")


def _cell(
    table: Any, rows: Any, size: Any, seconds: Any, weight: Any
) -> tuple[int, int, int, float, float]:
    if not all(isinstance(value, int) for value in (table, rows, size)):
        raise ValueError("a cell's numbers are not integers")
    if not (table >= 0 and rows >= 1 and size >= 1 and 0.0 < seconds < math.inf and weight > 0.0):
        raise ValueError(f"a cell is out of range: {(table, rows, size, seconds, weight)}")
    return table, rows, size, float(seconds), min(float(weight), CELL_WEIGHT)


def _counts(values: Any) -> list[float]:
    if not isinstance(values, list) or not all(0.0 <= value < math.inf for value in values):
        raise ValueError("counts are not numbers >= 0")
    return [float(value) for value in values]
