"""How far the statistical drafter should doubt a table: chosen on held-out text.

A table's layer of one order takes the share C / (C + doubt) of what the layers before it left
(csrc/include/ce/draft_tree.h). The doubts that matter are those of trees, and of chains, for one
successor and for several, by order; each is moved by factors as long as held-out documents need
fewer target calls, as if a target were to write them: the replay of bench.replay, on text.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from cascade_engine.errors import RequestError
from cascade_engine.ops import CpuBackend, Drafter, NgramTable
from cascade_engine.tables.build import Progress

BUDGETS = (32, 10)
"""Nodes of the trees, tokens of the chains."""
FACTORS = (1.6, 1 / 1.6)
ROUNDS = 3
PROMPT_SHARE = 4
"""A document's first quarter stands for the prompt."""
MOST_TOKENS = 1024
"""Of a document that are replayed."""
SOURCES, ORDERS = 3, 8


def calibrated_doubts(
    table: NgramTable, documents: Sequence[Sequence[int]], progress: Progress | None = None
) -> tuple[float, ...]:
    """float[2][2][order] for the file. The documents must not have been counted into the table.
    Raises RequestError where they are too short to say anything."""
    replayed = [list(d[:MOST_TOKENS]) for d in documents if len(d) >= 2 * PROMPT_SHARE]
    if not replayed:
        raise RequestError("calibration needs held-out documents of at least 8 tokens")
    replay = _Replay(table, replayed)
    doubts = list(replay.drafter.doubts)
    cells = [
        (kind, one, order) for kind in (0, 1) for one in (0, 1) for order in range(table.order)
    ]
    places = [_place(*cell) for cell in cells]
    best = [replay.calls(doubts, kind) for kind in (0, 1)]
    for done in range(ROUNDS):
        for i, ((kind, _, _), place) in enumerate(zip(cells, places, strict=True)):
            if progress is not None:
                progress("calibrating", done * len(cells) + i, ROUNDS * len(cells))
            for factor in FACTORS:
                moved = doubts.copy()
                moved[place] *= factor
                calls = replay.calls(moved, kind)
                if calls < best[kind]:
                    best[kind], doubts = calls, moved
                    break
    return tuple(doubts[place] for place in places)


def _place(kind: int, one: int, order: int) -> int:
    """Of a table's doubt in `Drafter.doubts`, float[2][3][2][8]."""
    return ((kind * SOURCES + SOURCES - 1) * 2 + one) * ORDERS + order


class _Replay:
    """Counts the target calls that held-out documents take."""

    def __init__(self, table: NgramTable, documents: Sequence[list[int]]) -> None:
        self.drafter = Drafter(1, table)
        self._backend = CpuBackend(1)
        self._documents = documents
        self._row = torch.zeros(max(map(len, documents)), dtype=torch.int32)
        self._out = torch.zeros((3, max(BUDGETS)), dtype=torch.int32)

    def calls(self, doubts: Sequence[float], kind: int) -> int:
        self.drafter.doubts = list(doubts)
        calls = 0
        for document in self._documents:
            self._row[: len(document)] = torch.tensor(document, dtype=torch.int32)
            final = len(document) // PROMPT_SHARE
            self.drafter.begin(0, document[:final])
            while final < len(document):
                step = 1 + self._accepted(document, final, kind)
                self.drafter.extend(0, document[final : final + step])
                final += step
                calls += 1
        return calls

    def _accepted(self, document: list[int], final: int, kind: int) -> int:
        tokens, parents, probs = self._out
        (count,) = self._backend.propose_trees(
            self.drafter,
            tokens=self._row.data_ptr(),
            token_stride=len(self._row),
            rows=[0],
            lengths=[final],
            budgets=[BUDGETS[kind]],
            depths=[BUDGETS[kind]],
            chain=kind == 1,
            least=0.0,
            out_tokens=tokens.data_ptr(),
            out_parents=parents.data_ptr(),
            out_probs=probs.data_ptr(),
            out_stride=max(BUDGETS),
        )
        nodes = list(zip(parents[:count].tolist(), tokens[:count].tolist(), strict=True))
        tip, depth = -1, 0
        while final + depth < len(document) and (tip, document[final + depth]) in nodes:
            tip = nodes.index((tip, document[final + depth]))
            depth += 1
        return depth
