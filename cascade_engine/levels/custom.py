"""A drafter from outside as the last level: follows the rows for it, guards the engine from it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch

from cascade_engine.levels.protocol import (
    ROOT,
    Drafter,
    DraftRequest,
    DraftTree,
    RecurrentDrafter,
    checked_tree,
)
from cascade_engine.levels.rows import TokenRows
from cascade_engine.levels.statistical import (
    LEAST_PROBABILITY,
    DraftedTree,
    Proposal,
    StatisticalLevel,
)
from cascade_engine.ops import MAX_TREE_NODES, CpuBackend, CudaBackend, NgramTable

EMPTY = DraftTree((), (), ())


class _Followed:
    """What a drafter knows of one row."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.snapshot: tuple[int, Any] | None = None
        """Of a recurrent drafter: a number of tokens, and its state behind them."""


class DrafterLevel(StatisticalLevel):
    """The last level of a cascade with a `Drafter`, and with `fallback` the built-in statistics
    where it proposes nothing.

    A row's tokens are compared with those that the drafter was told when it is asked for the row:
    rows it is not asked for cost nothing, and a slot that has gone to another row needs no notice.
    """

    def __init__(
        self,
        backend: CpuBackend | CudaBackend,
        rows: TokenRows,
        drafter: Drafter,
        vocab_size: int,
        fallback: bool = False,
        table: NgramTable | None = None,
        learn_tokens: int = 0,
    ) -> None:
        super().__init__(backend, rows, table, learn_tokens)
        own = str(getattr(drafter, "name", type(drafter).__name__))
        self.name = f"{own} + {self.name}" if fallback else own
        self._asked: Drafter | None = drafter
        """None: it failed and is not asked any more."""
        self._drafter_name = own
        self._recurrent = drafter if isinstance(drafter, RecurrentDrafter) else None
        self._vocab_size = vocab_size
        self._fallback = fallback
        self._followed = [_Followed() for _ in range(rows.tokens.shape[0])]

    def propose(self, proposals: Sequence[Proposal]) -> list[int]:
        """Appends tokens to each row; returns how many."""
        counts = []
        for p, tree in zip(proposals, self._proposed(proposals, tree=False), strict=True):
            self._rows.append(p.slot, p.length, tree.tokens, tree.probs or ())
            counts.append(len(tree.tokens))
        lacking = [i for i, count in enumerate(counts) if count == 0]
        if self._fallback and lacking:
            found = super().propose([proposals[i] for i in lacking])
            for i, count in zip(lacking, found, strict=True):
                counts[i] = count
        return counts

    def propose_trees(
        self,
        proposals: Sequence[Proposal],
        depth: int = MAX_TREE_NODES,
        least: float = LEAST_PROBABILITY,
        chain: bool = False,
    ) -> list[DraftedTree]:
        """A tree of up to `proposal.tokens` nodes for each row; `depth`, `least` and `chain` are
        the built-in statistics'."""
        trees = [_by_path(tree) for tree in self._proposed(proposals, tree=True)]
        lacking = [i for i, tree in enumerate(trees) if len(tree.tokens) == 0]
        if self._fallback and lacking:
            asked = [proposals[i] for i in lacking]
            found = super().propose_trees(asked, depth, least, chain)
            for i, tree in zip(lacking, found, strict=True):
                trees[i] = tree
        return trees

    def leave(self, slot: int, length: int = 0) -> None:
        if not self._followed[slot].tokens:
            return

        def leave(drafter: Drafter) -> None:
            if length:
                self._follow(drafter, slot, self._rows.read(slot, 0, length), length)
            self._restart(drafter, slot)

        self._guarded(leave, "following a row")

    def _proposed(self, proposals: Sequence[Proposal], tree: bool) -> list[DraftTree]:
        requests = [DraftRequest(p.slot, p.tokens, tree) for p in proposals]

        def propose(drafter: Drafter) -> list[DraftTree]:
            for p in proposals:
                self._follow(drafter, p.slot, self._rows.read(p.slot, 0, p.length), p.final)
            found = list(drafter.propose(requests))
            if len(found) != len(requests):
                raise ValueError(f"{len(found)} proposals for {len(requests)} requests")
            return [
                checked_tree(each, request, self._vocab_size)
                for each, request in zip(found, requests, strict=True)
            ]

        return self._guarded(propose, "proposing") or [EMPTY] * len(proposals)

    def _guarded(self, action: Callable[[Drafter], Any], doing: str) -> Any:
        """What the action gives; None where the drafter fails, now or before."""
        if self._asked is None:
            return None
        try:
            return action(self._asked)
        except Exception as error:
            self._asked = None
            for followed in self._followed:
                followed.tokens, followed.snapshot = [], None
            warnings.warn(
                f"drafter {self._drafter_name} failed when {doing} and is not asked any more: "
                f"{type(error).__name__}: {error}",
                RuntimeWarning,
                stacklevel=2,
            )
            return None

    def _follow(self, drafter: Drafter, slot: int, tokens: list[int], final: int) -> None:
        """The drafter has observed exactly these tokens, of which the first `final` stay."""
        known = self._followed[slot].tokens
        same = _common(known, tokens)
        if same < len(known):
            self._roll_back(drafter, slot, same)
        followed = self._followed[slot]
        if self._recurrent is not None and len(followed.tokens) <= final < len(tokens):
            self._observe(drafter, slot, tokens[len(followed.tokens) : final])
            followed.snapshot = final, self._recurrent.snapshot(slot)
        self._observe(drafter, slot, tokens[len(followed.tokens) :])

    def _observe(self, drafter: Drafter, slot: int, tokens: list[int]) -> None:
        if tokens:
            drafter.observe(slot, list(tokens))
            self._followed[slot].tokens += tokens

    def _roll_back(self, drafter: Drafter, slot: int, length: int) -> None:
        """To `length` tokens, or fewer where the drafter's snapshot is older."""
        followed = self._followed[slot]
        if self._recurrent is None:
            if length:
                drafter.truncate(slot, length)
        elif followed.snapshot is not None and followed.snapshot[0] <= length:
            length, state = followed.snapshot
            self._recurrent.restore(slot, state)
        else:
            length = 0
        if length == 0:
            self._restart(drafter, slot)
        del followed.tokens[length:]

    def _restart(self, drafter: Drafter, slot: int) -> None:
        drafter.truncate(slot, 0)
        self._followed[slot] = _Followed()


def _common(a: list[int], b: list[int]) -> int:
    """Leading tokens that two rows share."""
    if a == b[: len(a)]:
        return len(a)
    pairs = enumerate(zip(a, b, strict=False))
    return next((i for i, (x, y) in pairs if x != y), min(len(a), len(b)))


def _by_path(tree: DraftTree) -> DraftedTree:
    """With the probability of each node's whole path."""
    probs: list[float] = []
    for parent, prob in zip(tree.parents, tree.probs or (), strict=True):
        probs.append(prob if parent == ROOT else probs[parent] * prob)
    return DraftedTree(
        torch.tensor(tree.tokens, dtype=torch.int32),
        torch.tensor(tree.parents, dtype=torch.int32),
        torch.tensor(probs, dtype=torch.float32),
    )
