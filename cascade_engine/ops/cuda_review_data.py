"""What a review on the device sends up beside its rows, and what it brings back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from cascade_engine.ops.cuda_batch import host_ints
from cascade_engine.ops.launch import Launcher

Tree = tuple[list[int], list[int], list[float]]
"""Tokens, parents and probabilities of its nodes; none: no tree."""


REASONS = {
    -1: "the logits for position {} are NaN or +inf; the model's weights or its input are broken",
    -2: "no token is allowed at position {}: the allowed-token mask, logit_bias and min_tokens "
    "exclude all",
}
"""By what a review says instead of a row's own token."""


class Asked(NamedTuple):
    """Rows of a review, by `_C.accept`'s arguments: row i's drafts lie from `frontiers[i]` to
    before `lengths[i]`, or are the nodes of `trees[i]`."""

    rows: Sequence[int]
    frontiers: Sequence[int]
    lengths: Sequence[int]
    samplers: Sequence[Any]
    trees: Sequence[Tree]

    def tree(self, i: int) -> Tree | None:
        return self.trees[i] if self.trees and self.trees[i][0] else None

    def logit_rows(self) -> int:
        """What the pass must have left."""
        return sum(end - begin + 1 for begin, end in zip(self.frontiers, self.lengths, strict=True))

    def known(self) -> list[int]:
        """How much of each row processors look at; nodes of trees are on the device already."""
        return [
            self.lengths[i] if self.tree(i) is None else self.frontiers[i]
            for i in range(len(self.rows))
        ]

    def draft_probs(self, host_probs: torch.Tensor) -> list[Sequence[float]]:
        """What drafters gave each row's drafts."""
        return [
            host_probs[row, self.frontiers[i] : self.lengths[i]].tolist()
            if tree is None
            else tree[2]
            for i, row in enumerate(self.rows)
            for tree in [self.tree(i)]
        ]


class Decided(NamedTuple):
    """What acceptance leaves: `[4, rows]` accepted, own, lengths, path lengths; paths; and where
    they are asked for probabilities of what rows gain, runners-up and logits."""

    numbers: torch.Tensor
    paths: torch.Tensor
    kept: torch.Tensor | None = None
    ranked: torch.Tensor | None = None
    """int32 `[2, rows, logits, count]`: tokens, and float32 their probabilities."""
    logits: torch.Tensor | None = None
    """float32 `[rows that ask, logits, vocab]`."""

    def outputs(self, trees: bool) -> dict[str, Any]:
        """The arguments of `accept` that it writes to."""
        return {
            "num_accepted": self.numbers[0],
            "own": self.numbers[1],
            "lengths": self.numbers[2],
            "paths": self.paths if trees else None,
            "path_lengths": self.numbers[3] if trees else None,
            "kept_probs": self.kept,
        }

    def fetched(self, run: Launcher) -> Decided:
        """The same on the host, in one copy."""
        parts = [part for part in self if part is not None]
        whole = run.fetch(torch.cat([part.view(torch.int32).view(-1) for part in parts]))
        copies = iter(whole.split([part.numel() for part in parts]))
        return Decided._make(
            None if part is None else next(copies).view(part.dtype).view(part.shape)
            for part in self
        )

    def results(self, ask: Asked) -> list[tuple[int, int, list[int]]]:
        """Of what was fetched: accepted, own token and path of each row. Raises ValueError when a
        row's logits allow no token."""
        num_accepted, owns, _, _ = self.numbers.tolist()
        for n, own, frontier in zip(num_accepted, owns, ask.frontiers, strict=False):
            if own < 0:
                raise ValueError(REASONS[own].format(frontier + n))
        return [
            (n, owns[i], [] if ask.tree(i) is None else self.paths[i, :n].tolist())
            for i, n in enumerate(num_accepted[: len(ask.rows)])
        ]


def allowed_masks(
    run: Launcher,
    allowed: Sequence[int],
    frontiers: Sequence[int],
    lengths: Sequence[int],
    vocab: int,
    width: int,
) -> torch.Tensor | None:
    """int32 `[rows, width, words]`; rows without a mask allow everything."""
    if not any(allowed):
        return None
    words = (vocab + 31) // 32
    masks = torch.full((len(allowed), width, words), -1, dtype=torch.int32)
    for i, address in enumerate(allowed):
        count = lengths[i] - frontiers[i] + 1
        if address:
            masks[i, :count] = host_ints(address, count * words).view(count, words)
    return run.send(masks)
