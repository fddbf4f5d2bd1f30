"""The statistical level: Max-Gram over the row itself, filled up from an n-gram table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from cascade_engine.levels.rows import TokenRows
from cascade_engine.ops import CpuBackend, NgramTable

MAX_MATCH = 32
"""Longest suffix that Max-Gram tells apart."""


@dataclass(frozen=True, slots=True)
class Proposal:
    """What is asked for one row: up to `tokens` tokens behind its `length` tokens."""

    slot: int
    length: int
    tokens: int
    prediction: torch.Tensor | None = None
    """int32; a text that is searched before the row itself."""


class StatisticalLevel:
    """Drafts without a network (CS Drafting, section 3.1): the longest suffix of the row that
    occurs earlier is looked up and what followed is copied; the rest comes from the table."""

    def __init__(
        self, backend: CpuBackend, rows: TokenRows, table: NgramTable | None = None
    ) -> None:
        self.name = "max-gram" if table is None else "max-gram + table"
        self._backend = backend
        self._rows = rows
        self._table = table

    def propose(self, proposals: Sequence[Proposal]) -> list[int]:
        """Appends tokens to each row; returns how many."""
        tokens, probs = self._rows.tokens, self._rows.draft_probs
        predictions = [p.prediction for p in proposals]
        corpora: dict[str, list[int]] = {}
        if any(prediction is not None for prediction in predictions):
            corpora = {
                "corpora": [0 if p is None else p.data_ptr() for p in predictions],
                "corpus_lengths": [0 if p is None else len(p) for p in predictions],
            }
        return self._backend.propose(
            tokens=tokens.data_ptr(),
            token_stride=tokens.shape[1],
            probs=probs.data_ptr(),
            rows=[p.slot for p in proposals],
            lengths=[p.length for p in proposals],
            counts=[p.tokens for p in proposals],
            max_match=MAX_MATCH,
            table=self._table,
            **corpora,
        )
