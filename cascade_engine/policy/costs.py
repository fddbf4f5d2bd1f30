"""What a pass costs: measured while running, interpolated where nothing was measured yet."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence

TOKENS = (*range(1, 33), *range(36, 65, 4), *range(72, 129, 8))
"""Sizes of passes that are told apart, in tokens over all rows; beyond 128, by factors of 1.25."""
SLOPE = 0.02
"""What each token adds to a pass over one, as long as nothing is known: next to nothing, since
weights are read once. Optimistic, so that wider passes get tried and measured."""
PULL = 4.0
"""Passes that a size needs to weigh as much as what the sizes around it tell."""


class PassCosts:
    """Times of passes by (level, rows, tokens) in seconds, up to a common factor that follows the
    machine's speed, so that times taken in a busy and in a quiet moment compare.

    Level numbers are those of the engine; passes over trees are a table of their own. Where a cell
    is empty its neighbours in tokens tell, rather too low: what looks good is tried and measured.
    Without any, those for another number of rows, then
    `weight_bytes` are compared with those of a level that was measured.
    """

    def __init__(self, weight_bytes: Sequence[int]) -> None:
        self._bytes = tuple(weight_bytes)
        self._tables: dict[tuple[int, int], dict[int, list[float]]] = {}
        """(table, rows) -> tokens -> [seconds, weight]."""
        self._speed = 1.0
        self._curves: dict[tuple[int, int], _Curve] = {}

    def observe(self, level: int, rows: int, tokens: int, seconds: float, tree: bool) -> None:
        """A pass took `seconds`. A single slow one counts as little more than a slow one."""
        key = _table(level, tree), row_bucket(rows)
        cells = self._tables.setdefault(key, {})
        self._curves.pop(key, None)
        size = _size(tokens)
        cell = cells.get(size)
        if cell is None:
            guess = self.seconds(level, rows, tokens, tree) / self._speed
            scaled = seconds / self._speed
            if guess and scaled > 2.0 * guess:
                scaled = math.sqrt(2.0 * guess * scaled)
            cells[size] = [scaled, 1.0]
            self._curves.pop(key, None)
            return
        ratio = seconds / (cell[0] * self._speed)
        ratio = min(ratio, 4.0 if cell[1] < 4.0 else 1.5)
        cell[1] = min(cell[1] + 1.0, 12.0)
        cell[0] *= 1.0 + (ratio - 1.0) / cell[1]
        if cell[1] > 4.0:
            self._speed *= 1.0 + 0.1 * (min(ratio, 1.25) - 1.0)

    def seconds(self, level: int, rows: int, tokens: int, tree: bool = False) -> float:
        """Expected time of a pass; 0 while nothing at all is known."""
        rows = row_bucket(rows)
        found = self._measured(_table(level, tree), rows, tokens)
        if found is None and tree:
            found = self._measured(_table(level, False), rows, tokens)
        if found is None:
            found = self._from_another_level(level, rows, tokens)
        return found * self._speed

    def reach(self, level: int, rows: int) -> int:
        """Tokens of a pass that its price can be told for: about twice the widest measured one."""
        widest = 1
        for tree in (False, True):
            cells = self._tables.get((_table(level, tree), row_bucket(rows)))
            if cells:
                widest = max(widest, *cells)
        return 2 * widest + 2 * rows

    def _measured(self, table: int, rows: int, tokens: int) -> float | None:
        curve = self._curves.get((table, rows))
        if curve is not None:
            return curve(tokens)
        cells = self._tables.get((table, rows))
        if cells:
            curve = self._curves[table, rows] = _Curve(cells)
            return curve(tokens)
        others = [r for (t, r), c in self._tables.items() if t == table and c]
        if not others:
            return None
        near = min(others, key=lambda r: abs(math.log(r / rows)))
        return self._measured(table, near, tokens)

    def _from_another_level(self, level: int, rows: int, tokens: int) -> float:
        """By weights; a level without any is taken to cost a fiftieth of the target."""
        known = {t // 2 for (t, _), cells in self._tables.items() if cells}
        for other in sorted(known & set(range(len(self._bytes)))):
            found = self._measured(_table(other, False), rows, tokens)
            if found is not None:
                if level >= len(self._bytes):
                    return found / 50.0
                return found * max(self._bytes[level] / max(self._bytes[other], 1), 0.02)
        return 0.0

    def cells(self) -> list[list[float]]:
        """What was measured, as [table, rows, tokens, seconds, weight]."""
        return [
            [table, rows, size, seconds * self._speed, weight]
            for (table, rows), found in self._tables.items()
            for size, (seconds, weight) in found.items()
        ]

    def restore(self, cells: Iterable[tuple[int, int, int, float, float]]) -> None:
        """Begins with such cells."""
        for table, rows, size, seconds, weight in cells:
            self._tables.setdefault((table, rows), {})[size] = [seconds, weight]
        self._curves.clear()


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
            guess = self._guess(size, i, i + 1, 1.0) if i else 0.0
            smooth.append((PULL * guess + weight * value) / (PULL + weight) if guess else value)
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
            slope = max(slope, (value - values[below - 2]) / (near - sizes[below - 2]))
        return value + slope * (tokens - near)
