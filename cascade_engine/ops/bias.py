"""What relative attention adds to its scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch


@dataclass(frozen=True)
class RelativeBias:
    """Numbers added to attention scores by head and offset, key position - query position.

    `table` float32 `[heads, 2 * (reach + MARGIN) + 1]`: column reach + MARGIN + d holds offset d.
    Beyond `reach` either way the number no longer changes; the margin repeats it, so that the
    offsets of any 16 neighbouring keys are 16 neighbouring columns.
    """

    MARGIN: ClassVar[int] = 15

    table: torch.Tensor
    reach: int

    def __post_init__(self) -> None:
        width = 2 * (self.reach + self.MARGIN) + 1
        if self.table.dtype != torch.float32 or self.table.shape[1:] != (width,):
            raise ValueError(
                f"a bias of reach {self.reach} needs a float32 table of {width} columns, got "
                f"{self.table.dtype} {tuple(self.table.shape)}"
            )

    def at(self, offsets: torch.Tensor) -> torch.Tensor:
        """The bias `[heads, *offsets.shape]` at any offsets."""
        return self.table[:, offsets.clamp(-self.reach, self.reach) + self.reach + self.MARGIN]
