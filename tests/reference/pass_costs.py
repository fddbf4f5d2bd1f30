"""What a pass costs: the oracle of csrc/include/ce/pass_costs.h."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence

TOKENS = (*range(1, 33), *range(36, 65, 4), *range(72, 129, 8))
"""Sizes of passes that are told apart, in tokens over all rows; beyond 128, by factors of 1.25."""
SLOPE = 0.02
"""What each token adds to a pass over one, as long as nothing is known: next to nothing, since
weights are read once. Optimistic, so that wider passes get tried and measured."""
PULL = 4.0
"""Passes that a size needs to weigh as much as what the sizes around it tell."""


HALVES, SURE = 1.1, 3.0
"""A pass costs hardly more than two over half the tokens, where such were measured so often."""
FIRST, LATER = 1.4, 0.35
"""How far a time may move what is known of its size, as a logarithm."""
ROWS_MATTER = 3.0
"""Passes over as many tokens of few and of many rows differ by this at most."""
SURPRISE = 2.0
"""A size's first time is more than what the sizes around it tell by this factor at most."""


class PassCosts:
    """Times by (level, tokens over all rows), times a factor for the number of rows, times one for
    the machine's speed."""

    def __init__(self, weight_bytes: Sequence[int]) -> None:
        self._bytes = tuple(weight_bytes)
        self._cells: dict[int, dict[int, list[float]]] = {}
        """table -> tokens -> [seconds, weight]."""
        self._factors: dict[int, dict[int, list[float]]] = {}
        """table -> rows -> [factor, weight]."""
        self._speed = 1.0

    def observe(self, level: int, rows: int, tokens: int, seconds: float, tree: bool) -> None:
        table, rows, size = _table(level, tree), row_bucket(rows), _size(tokens)
        cells = self._cells.setdefault(table, {})
        unit = self._speed * self._factor(table, rows)
        cell = cells.get(size)
        if cell is None:
            guess = self.seconds(level, rows, tokens, tree) / unit
            scaled = seconds / unit
            if guess and scaled > SURPRISE * guess:
                told = self._measured(_table(level, tree), rows, tokens) is not None
                scaled = SURPRISE * guess if told else math.sqrt(SURPRISE * guess * scaled)
            cells[size] = [scaled, 1.0]
            return
        most = FIRST if cell[1] < 4.0 else LATER
        change = min(max(math.log(seconds / (cell[0] * unit)), -most), most)
        cell[1] = min(cell[1] + 1.0, 12.0)
        cell[0] *= math.exp(change / cell[1])
        if cell[1] <= 4.0:
            return
        self._speed *= math.exp(0.05 * change)
        factors = self._factors.setdefault(table, {})
        factor = factors.setdefault(rows, [self._factor(table, rows), 4.0])
        factor[1] = min(factor[1] + 1.0, 24.0)
        factor[0] *= math.exp(change / factor[1])
        factor[0] = min(max(factor[0], 1.0 / ROWS_MATTER), ROWS_MATTER)

    def seconds(self, level: int, rows: int, tokens: int, tree: bool = False) -> float:
        found = self._measured(_table(level, tree), rows, tokens)
        if found is None and tree:
            found = self._measured(_table(level, False), rows, tokens)
        if found is None:
            found = self._from_another_level(level, rows, tokens)
        return found * self._speed

    def reach(self, level: int, rows: int) -> int:
        widest = 1
        for tree in (False, True):
            widest = max(widest, *self._cells.get(_table(level, tree), {1: None}))
        return 2 * widest + 2 * rows

    def _factor(self, table: int, rows: int) -> float:
        known = self._factors.get(table)
        if not known:
            return 1.0
        near = min(known, key=lambda r: (abs(math.log(r / rows)), -r))
        return known[near][0]

    def _measured(self, table: int, rows: int, tokens: int) -> float | None:
        cells = self._cells.get(table)
        return _Curve(cells)(tokens) * self._factor(table, row_bucket(rows)) if cells else None

    def _from_another_level(self, level: int, rows: int, tokens: int) -> float:
        """By weights; a level without any is taken to cost a fiftieth of the target."""
        for other in range(len(self._bytes)):
            found = self._measured(_table(other, False), rows, tokens)
            if found is not None:
                if level >= len(self._bytes):
                    return found / 50.0
                return found * max(self._bytes[level] / max(self._bytes[other], 1), 0.02)
        return 0.0


def _table(level: int, tree: bool) -> int:
    return 2 * level + tree


def row_bucket(rows: int) -> int:
    """1, 2, 3, 4, 6, 8, 12, 16, ...: rows that are told apart."""
    if rows <= 4:
        return max(rows, 1)
    power: int = 1 << (rows.bit_length() - 1)
    return power if rows < power + power // 2 else power + power // 2


def _size(tokens: int) -> int:
    if tokens <= TOKENS[-1]:
        return TOKENS[bisect_left(TOKENS, tokens)]
    steps = math.ceil(math.log(tokens / TOKENS[-1]) / math.log(1.25))
    return round(TOKENS[-1] * 1.25**steps)


class _Curve:
    """One table at one number of rows, to be asked often between two measurements.

    A pass over fewer tokens costs no more than one over many, and what was measured once or twice
    is pulled to what the sizes around it tell: a slow moment that hit a rare size does not count
    for long.
    """

    def __init__(self, cells: dict[int, list[float]]) -> None:
        self._sizes = sorted(cells)
        self._values = [cells[size][0] for size in self._sizes]
        smooth = []
        for i, size in enumerate(self._sizes):
            value, weight = cells[size]
            inside = 0 < i < len(self._sizes) - 1
            guess = self._guess(size, i, i + 1, 1.0) if inside else 0.0
            smooth.append((PULL * guess + weight * value) / (PULL + weight) if guess else value)
        each = math.inf
        for i, size in enumerate(self._sizes):
            smooth[i] = min(smooth[i], each * size)
            if cells[size][1] >= SURE:
                each = min(each, HALVES * smooth[i] / size)
        for i in reversed(range(len(smooth) - 1)):
            smooth[i] = min(smooth[i], smooth[i + 1])
        self._values = smooth

    def __call__(self, tokens: int) -> float:
        i = bisect_left(self._sizes, tokens)
        if i < len(self._sizes) and self._sizes[i] == tokens:
            return self._values[i]
        return self._guess(tokens, i, i, 0.5)

    def _guess(self, tokens: int, below: int, above: int, straight: float) -> float:
        """From the sizes before index `below` and from index `above` on, 0 without any: along the
        line between them (`straight` 1), or below it, since costs are mostly convex."""
        sizes, values = self._sizes, self._values
        if below == 0:
            if above == len(sizes):
                return 0.0
            scale = (1.0 + SLOPE * (tokens - 1)) / (1.0 + SLOPE * (sizes[above] - 1))
            return values[above] * scale
        near, value = sizes[below - 1], values[below - 1]
        slope = SLOPE * value / (1.0 + SLOPE * (near - 1))
        if above < len(sizes):
            line = (values[above] - value) / (sizes[above] - near)
            low = max(min(slope, line), 0.0)
            return value + (straight * line + (1.0 - straight) * low) * (tokens - near)
        if below > 1:
            line = (value - values[below - 2]) / (near - sizes[below - 2])
            slope = max(slope, min(line, value / near))
        return value + slope * (tokens - near)
