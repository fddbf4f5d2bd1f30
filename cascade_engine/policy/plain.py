"""Decoding without speculation: one target pass per token."""

from __future__ import annotations

from dataclasses import dataclass

from cascade_engine.policy.base import Action, Review, RowState


@dataclass(frozen=True)
class PlainDecoding:
    """Always review by the target: ordinary autoregressive decoding, the baseline."""

    @property
    def lenience(self) -> float:
        return 1.0

    def check(self, drafting_levels: int) -> None:
        """Any set of levels will do: none of them is asked."""

    def next_action(self, row: RowState) -> Action:
        return Review(0)
