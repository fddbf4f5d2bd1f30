"""One operation at one size, ready to be timed, and what its makers share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from bench.shapes import SHAPES

EPS = 1e-5
Size = tuple[int, int]
"""Rows, and new tokens of each."""


@dataclass
class Case:
    """One operation at one size; `detail` says what else tells it apart. `torch` None: it has
    nothing of the kind. `read_bytes` 0: what it reads fits the caches. `error`: largest difference
    from float32 torch, over the largest value."""

    op: str
    rows: int
    tokens: int
    context: int
    ours: Callable[[], object]
    torch: Callable[[], object] | None
    read_bytes: int
    flops: int
    error: Callable[[], float]
    detail: str = ""
    peers: dict[str, Callable[[], object]] = field(default_factory=dict)
    """Others beside torch, where they are installed."""

    @property
    def name(self) -> str:
        size = f"{self.rows}x{self.tokens}" + f"@{self.context}" * bool(self.context)
        return " ".join(filter(None, (self.op, size, self.detail)))


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def sizes_of(shape: str) -> tuple[int, int, int, int]:
    """Hidden size, inner size, layers, heads."""
    s = SHAPES[shape]
    return (
        s["hidden_size"],
        s["intermediate_size"],
        s["num_hidden_layers"],
        s["num_attention_heads"],
    )


def tree_mask(tokens: int, context: int, parents: Sequence[int] | None) -> torch.Tensor:
    """bool `[tokens, context]`: what each of the last tokens of a row sees, as a chain or as the
    nodes of a tree."""
    mask = torch.ones(tokens, context, dtype=torch.bool).tril(context - tokens)
    if parents is not None:
        nodes = mask[:, context - tokens :].zero_()
        for node, parent in enumerate(parents):
            if parent >= 0:
                nodes[node] = nodes[parent]
            nodes[node, node] = True
    return mask


def by_count(sizes: Sequence[Size]) -> list[Size]:
    """One size of each number of tokens in all: for operations that know no rows."""
    return list({rows * tokens: (rows, tokens) for rows, tokens in reversed(sizes)}.values())[::-1]
