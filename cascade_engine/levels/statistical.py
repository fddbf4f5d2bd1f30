"""The statistical level: Max-Gram over the row itself, filled up from an n-gram table."""

from __future__ import annotations

from collections.abc import Sequence

from cascade_engine.levels.rows import TokenRows
from cascade_engine.ops import CpuBackend, NgramTable

MAX_MATCH = 32
"""Longest suffix that Max-Gram tells apart."""


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

    def propose(
        self, slots: Sequence[int], lengths: Sequence[int], widths: Sequence[int]
    ) -> list[int]:
        """Appends up to widths[i] tokens to row slots[i] of length lengths[i]; returns how many."""
        tokens, probs = self._rows.tokens, self._rows.draft_probs
        return self._backend.propose(
            tokens=tokens.data_ptr(),
            token_stride=tokens.shape[1],
            probs=probs.data_ptr(),
            rows=list(slots),
            lengths=list(lengths),
            counts=list(widths),
            max_match=MAX_MATCH,
            table=self._table,
        )
