"""The statistical level: Max-Gram over the row itself, filled up from an n-gram table, and trees
and chains of blended n-gram statistics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from cascade_engine.levels.rows import TokenRows
from cascade_engine.ops import MAX_TREE_NODES, CpuBackend, CudaBackend, Drafter, NgramTable

MAX_MATCH = 32
"""Longest suffix that Max-Gram tells apart."""
LEAST_PROBABILITY = 0.002
"""Path probability below which a node of a tree is not worth its place in a review."""


@dataclass(frozen=True, slots=True)
class Proposal:
    """What is asked for one row: up to `tokens` tokens behind its `length` tokens."""

    slot: int
    length: int
    tokens: int
    prediction: torch.Tensor | None = None
    """int32; a text that is searched before the row itself."""
    final: int = 0
    """Leading tokens that nobody takes back."""


class DraftSources(NamedTuple):
    """An n-gram table, the native drafter with its weights and what it has learnt, and how much
    that can be."""

    table: NgramTable | None
    drafter: Drafter
    learn_tokens: int


class DraftedTree(NamedTuple):
    """Nodes in topological order, the likely chain first. Views of the level's memory, overwritten
    by its next call.

    tokens int32, parents int32 (node index, -1: the row's last token), probs float32: the
    probability of the whole path, as far as the statistics tell; all `[nodes]`.
    """

    tokens: torch.Tensor
    parents: torch.Tensor
    probs: torch.Tensor


class StatisticalLevel:
    """Drafts without a network.

    `propose` is CS Drafting's statistical level (section 3.1): the longest suffix of the row that
    occurs earlier is looked up and what followed is copied; the rest comes from the table. It needs
    nothing but the row.

    `propose_trees` (DESIGN.md, section 9) blends n-gram counts of the row's own final tokens, of
    finished requests where the level learns, and of the table. It has counts only for rows that are
    kept up with:

        begin(slot, tokens, prompt)   a row starts, or starts over, with these final tokens, of
                                      which the first `prompt` are not learnt from
        extend(slot, tokens)          these became final behind them
        truncate(slot, length)        final tokens are taken back, down to `length`
        release(slot)                 the row is gone; nothing is learnt
        finish(slot)                  the request is complete: learn from its answer, then release

    Drafts are never given, so that a rejected one costs nothing. A row that was not begun drafts
    from the table alone. Raises ValueError for a slot or length out of range.

    learn_tokens: how many tokens of finished answers to keep, the latest ones; 0 (the default)
    keeps none. What is learnt from one user's answers shows in the speed of another's, never in
    the tokens. `clear_learned` forgets all of it.
    """

    def __init__(
        self,
        backend: CpuBackend | CudaBackend,
        rows: TokenRows,
        table: NgramTable | None = None,
        learn_tokens: int = 0,
    ) -> None:
        self.name = "max-gram" if table is None else "max-gram + table"
        self._backend = backend
        self._rows = rows
        self._table = table
        slots = rows.tokens.shape[0]
        self._learn_tokens = learn_tokens
        self._drafter = Drafter(slots, table, learn_tokens)
        self._tree_tokens = torch.zeros((slots, MAX_TREE_NODES), dtype=torch.int32)
        self._tree_parents = torch.zeros((slots, MAX_TREE_NODES), dtype=torch.int32)
        self._tree_probs = torch.zeros((slots, MAX_TREE_NODES), dtype=torch.float32)
        self.begin = self._drafter.begin
        self.extend = self._drafter.extend
        self.truncate = self._drafter.truncate
        self.release = self._drafter.release
        self.finish = self._drafter.finish
        self.clear_learned = self._drafter.clear_learned

    def over(self, rows: TokenRows) -> StatisticalLevel:
        """A level with the same table for other rows, which has learnt nothing."""
        return StatisticalLevel(self._backend, rows, self._table)

    @property
    def sources(self) -> DraftSources:
        """What drafts are made from beside the rows."""
        return DraftSources(self._table, self._drafter, self._learn_tokens)

    @property
    def learns(self) -> bool:
        """Whether finished answers are kept."""
        return self._learn_tokens > 0

    @property
    def learned(self) -> int:
        """Tokens of finished answers held."""
        return self._drafter.learned

    def leave(self, slot: int, length: int = 0) -> None:
        """A row is gone; it was completed with these leading tokens, 0: it was not."""

    def propose(self, proposals: Sequence[Proposal]) -> list[int]:
        """Appends tokens to each row; returns how many."""
        predictions = [p.prediction for p in proposals]
        corpora: dict[str, list[int]] = {}
        if any(prediction is not None for prediction in predictions):
            corpora = {
                "corpora": [0 if p is None else p.data_ptr() for p in predictions],
                "corpus_lengths": [0 if p is None else len(p) for p in predictions],
            }
        return self._backend.propose(
            tokens=self._rows.address,
            token_stride=self._rows.capacity,
            probs=self._rows.probs_address,
            rows=[p.slot for p in proposals],
            lengths=[p.length for p in proposals],
            counts=[p.tokens for p in proposals],
            max_match=MAX_MATCH,
            table=self._table,
            **corpora,
        )

    def propose_trees(
        self,
        proposals: Sequence[Proposal],
        depth: int = MAX_TREE_NODES,
        least: float = LEAST_PROBABILITY,
        chain: bool = False,
    ) -> list[DraftedTree]:
        """A tree of up to `proposal.tokens` nodes, at most `depth` deep, for each row, at most one
        for a slot; nodes below the path probability `least` are not drafted. With `chain`, one
        chain: the likeliest token behind each. Rows are not written to. The tokens between the
        final ones and `proposal.length` (drafts of other levels) are context."""
        predictions = [p.prediction for p in proposals]
        counts = self._backend.propose_trees(
            self._drafter,
            tokens=self._rows.tokens.data_ptr(),
            token_stride=self._rows.tokens.shape[1],
            rows=[p.slot for p in proposals],
            lengths=[p.length for p in proposals],
            budgets=[p.tokens for p in proposals],
            depths=[depth] * len(proposals),
            chain=chain,
            least=least,
            out_tokens=self._tree_tokens.data_ptr(),
            out_parents=self._tree_parents.data_ptr(),
            out_probs=self._tree_probs.data_ptr(),
            out_stride=MAX_TREE_NODES,
            predictions=[0 if p is None else p.data_ptr() for p in predictions],
            prediction_lengths=[0 if p is None else len(p) for p in predictions],
        )
        outputs = (self._tree_tokens, self._tree_parents, self._tree_probs)
        return [
            DraftedTree(*(output[i, :count] for output in outputs))
            for i, count in enumerate(counts)
        ]
