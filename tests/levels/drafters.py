"""Drafters that hold their calls against the protocol."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

from cascade_engine import (
    DraftRequest,
    DraftTree,
)

VOCAB = 97


class Checked:
    """Follows rows as told and holds every call against what the protocol promises. Proposes what
    `choose` makes of a row, or of nothing at random."""

    def __init__(self, recurrent: bool, choose: Callable[[list[int], DraftRequest], Any]) -> None:
        self.rows: dict[int, list[int]] = {}
        self.over: list[list[int]] = []
        self.snapshots = self.restored = self.truncated = 0
        self._choose = choose
        if recurrent:
            self.snapshot, self.restore = self._snapshot, self._restore

    def observe(self, row: int, tokens: Sequence[int]) -> None:
        assert tokens
        self.rows.setdefault(row, []).extend(tokens)

    def truncate(self, row: int, length: int) -> None:
        assert length == 0 or not hasattr(self, "snapshot")
        assert length < len(self.rows[row]) or length == 0
        self.truncated += length > 0
        if length == 0:
            self.over.append(self.rows.pop(row))
        else:
            del self.rows[row][length:]

    def _snapshot(self, row: int) -> tuple[int, list[int]]:
        self.snapshots += 1
        return row, list(self.rows.get(row, []))

    def _restore(self, row: int, snapshot: tuple[int, list[int]]) -> None:
        assert snapshot[0] == row
        assert self.rows[row][: len(snapshot[1])] == snapshot[1]
        self.restored += 1
        self.rows[row] = list(snapshot[1])

    def propose(self, requests: Sequence[DraftRequest]) -> list[Any]:
        assert len({request.row for request in requests}) == len(requests)
        return [self._choose(self.rows[request.row], request) for request in requests]


def anything(rng: random.Random) -> Callable[[list[int], DraftRequest], Any]:
    """Proposals within the protocol: chains and trees of any length, probabilities or none."""

    def choose(row: list[int], request: DraftRequest) -> Any:
        count = rng.randint(0, request.tokens)
        tokens = [rng.choice([rng.randrange(VOCAB), rng.choice(row)]) for _ in range(count)]
        if not request.tree or rng.random() < 0.3:
            return tokens if rng.random() < 0.5 else tuple(tokens)
        parents: list[int] = []
        kept: list[int] = []
        for token in tokens:
            parent = rng.randint(-1, len(kept) - 1)
            if (parent, token) not in zip(parents, kept, strict=True):
                parents.append(parent)
                kept.append(token)
        return DraftTree(kept, parents, [rng.random() for _ in kept])

    return choose
