"""The points of an answer and which must be written before which."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cascade_engine.sot.points import WrittenPoint, extract_points


@dataclass(frozen=True)
class Point:
    """A point of a skeleton; `index` counts from 1, `after` holds smaller or larger indices of
    points whose text this one needs."""

    index: int
    text: str
    after: tuple[int, ...] = ()


@dataclass(frozen=True)
class Skeleton:
    """Points numbered 1, 2, 3, ... without cycles between them."""

    points: tuple[Point, ...]
    notes: tuple[str, ...] = ()
    """What was written and could not be kept as it was."""

    @property
    def text(self) -> str:
        """The numbered list."""
        return "\n".join(f"{point.index}. {point.text}" for point in self.points)

    def ancestors(self, index: int) -> list[int]:
        """All points that must be there before point `index`, ascending."""
        seen: set[int] = set()
        open_ones = [index]
        while open_ones:
            new = set(self.points[open_ones.pop() - 1].after) - seen
            seen |= new
            open_ones += new
        return sorted(seen)

    def waves(self) -> list[list[int]]:
        """Indices in rounds: each point comes in the first round after all that it needs. A plain
        list is one round."""
        done: set[int] = set()
        rounds: list[list[int]] = []
        while len(done) < len(self.points):
            ready = [
                p.index for p in self.points if p.index not in done and done.issuperset(p.after)
            ]
            rounds.append(ready)
            done.update(ready)
        return rounds


def skeleton_of(text: str, max_points: int) -> Skeleton:
    """The skeleton in a model's answer. Points are numbered anew where numbers are missing or come
    twice; a point that repeats another's text is left out, and so are those past `max_points`,
    unknown numbers in "(after ...)", and cycles, each with a note."""
    notes: list[str] = []
    written = _distinct(extract_points(text), notes)
    if len(written) > max_points:
        notes.append(f"{len(written)} points: those past max_points={max_points} are left out")
        written = written[:max_points]
    index_of: dict[int, int] = {}
    for index, point in enumerate(written, 1):
        index_of.setdefault(point.number, index)
    edges = [_known(index, point, index_of, notes) for index, point in enumerate(written, 1)]
    _drop_cycles(edges, notes)
    points = [
        Point(index, point.text, tuple(sorted(after)))
        for index, (point, after) in enumerate(zip(written, edges, strict=True), 1)
    ]
    return Skeleton(tuple(points), tuple(notes))


def _distinct(written: Sequence[WrittenPoint], notes: list[str]) -> list[WrittenPoint]:
    kept: dict[str, WrittenPoint] = {}
    for point in written:
        if point.text.casefold() in kept:
            notes.append(f"point {point.number} repeats {point.text!r} and is left out")
        else:
            kept[point.text.casefold()] = point
    return list(kept.values())


def _known(index: int, point: WrittenPoint, index_of: dict[int, int], notes: list[str]) -> set[int]:
    after: set[int] = set()
    for number in point.after:
        if number not in index_of:
            notes.append(f"point {index} comes after {number}, which is not there: ignored")
        elif index_of[number] == index:
            notes.append(f"point {index} comes after itself: ignored")
        else:
            after.add(index_of[number])
    return after


def _drop_cycles(edges: list[set[int]], notes: list[str]) -> None:
    """Where points wait for each other, the first of them stops waiting for those."""
    done: set[int] = set()
    while len(done) < len(edges):
        left = [i for i in range(1, len(edges) + 1) if i not in done]
        ready = [i for i in left if done.issuperset(edges[i - 1])]
        if not ready:
            first = next(i for i in left if _reaches_itself(i, edges))
            dropped = sorted(other for other in edges[first - 1] if _reaches(other, first, edges))
            notes.append(f"point {first} and {dropped} wait for each other: {first} does not wait")
            edges[first - 1].difference_update(dropped)
            continue
        done.update(ready)


def _reaches_itself(index: int, edges: Sequence[set[int]]) -> bool:
    return any(_reaches(other, index, edges) for other in edges[index - 1])


def _reaches(start: int, goal: int, edges: Sequence[set[int]]) -> bool:
    seen, open_ones = {start}, [start]
    while open_ones:
        current = open_ones.pop()
        if current == goal:
            return True
        new = edges[current - 1] - seen
        seen |= new
        open_ones += new
    return False
