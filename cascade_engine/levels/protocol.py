"""What a drafter of one's own looks like, to be a cascade's last level; see docs/drafting.md."""

from __future__ import annotations

import math
from collections.abc import Sequence
from operator import index
from typing import Any, NamedTuple, Protocol, runtime_checkable

from cascade_engine.errors import RequestError

ROOT = -1


class DraftRequest(NamedTuple):
    """What is asked of a drafter for one row."""

    row: int
    """The row, by number; the number of a row that is gone goes to another one."""
    tokens: int
    """At most so many: tokens of a chain, or nodes of a tree."""
    tree: bool
    """Whether branches are of use; a chain always is."""


class DraftTree(NamedTuple):
    """Drafted tokens as a tree. For a request without `tree` it must be a chain: a way to give
    probabilities."""

    tokens: Sequence[int]
    parents: Sequence[int]
    """Of each token the index of the one before it, which comes earlier in the list; -1: the row's
    last token. Children of one parent are distinct."""
    probs: Sequence[float] | None = None
    """Of each token, in 0..1, the probability behind its parent; None: 1 each. They rank branches
    and are what lenience compares with; they need not be right."""


@runtime_checkable
class Drafter(Protocol):
    """Proposes tokens for rows; an object of one's own with these methods.

    Rows are numbers. A row begins empty and grows by `observe`; what it holds are tokens of the
    request (its prompt and answer) and, at its end, drafts of other levels that may yet be taken
    back by `truncate`. A row that is truncated to nothing is over. One that gives way because
    memory runs out may come back under another number; its own then ends, or is cut to what they
    share, when another row takes it. An engine calls one method at a
    time, from the thread that runs it; a drafter serves one engine.

    Whatever a drafter proposes, the answer stays what it would be without it (under the rejection
    rule its distribution does: a proposal counts as certain, however it was found). If a method
    raises or returns what it should not, the drafter is not asked again and a RuntimeWarning says
    why; no request is lost.
    """

    def observe(self, row: int, tokens: Sequence[int]) -> None:
        """These tokens stand behind those that were observed of the row before."""

    def truncate(self, row: int, length: int) -> None:
        """Only the row's first `length` tokens are left; 0: forget the row. A row that its request
        completed has been observed to its end by then."""

    def propose(self, requests: Sequence[DraftRequest]) -> Sequence[Sequence[int] | DraftTree]:
        """For each request token ids that may follow all that was observed of its row, the next
        one first; or a tree of them. Fewer than asked for, or none, are as good. What is proposed
        is not part of the row: if it is kept, `observe` tells."""


@runtime_checkable
class RecurrentDrafter(Drafter, Protocol):
    """A drafter whose state of a row cannot be taken back by a token. It is asked for snapshots,
    and `truncate` is called with length 0 alone."""

    def snapshot(self, row: int) -> Any:
        """The row's state; nothing that happens later may change it. Asked for behind tokens that
        are there to stay, when others that may be taken back are about to be observed."""

    def restore(self, row: int, snapshot: Any) -> None:
        """The row is as it was when this snapshot of it was taken; it may be restored again. The
        tokens that are left behind that point are observed anew."""


METHODS = ("observe", "truncate", "propose")


def check_drafter(drafter: object) -> None:
    """Raises RequestError for an object that lacks a method."""
    missing = [name for name in METHODS if not callable(getattr(drafter, name, None))]
    if missing:
        raise RequestError(
            f"drafter {type(drafter).__name__} lacks {', '.join(missing)}: it must have the "
            "methods of cascade_engine.Drafter"
        )
    if hasattr(drafter, "snapshot") != hasattr(drafter, "restore"):
        raise RequestError(
            f"drafter {type(drafter).__name__} has one of snapshot and restore: a recurrent "
            "drafter needs both"
        )


def checked_tree(
    proposed: Sequence[int] | DraftTree, request: DraftRequest, vocab: int
) -> DraftTree:
    """A proposal in the form of a tree of plain integers. Raises ValueError, naming what is wrong,
    for one that breaks the protocol."""
    tree = proposed if isinstance(proposed, DraftTree) else DraftTree(proposed, ())
    tokens = [index(token) for token in tree.tokens]
    count = len(tokens)
    if count > request.tokens:
        raise ValueError(f"{count} tokens were proposed for a request of {request.tokens}")
    for i, token in enumerate(tokens):
        if not 0 <= token < vocab:
            raise ValueError(f"tokens[{i}] must be in 0..{vocab - 1}, got {token}")
    parents = [index(parent) for parent in tree.parents]
    if not isinstance(proposed, DraftTree):
        parents = list(range(ROOT, count - 1))
    probs = [1.0] * count if tree.probs is None else [float(prob) for prob in tree.probs]
    if not len(parents) == len(probs) == count:
        raise ValueError(f"{count} tokens come with {len(parents)} parents and {len(probs)} probs")
    if not request.tree and parents != list(range(ROOT, count - 1)):
        raise ValueError("a tree was proposed where a chain was asked for")
    seen = set()
    for j, (token, parent, prob) in enumerate(zip(tokens, parents, probs, strict=True)):
        if not ROOT <= parent < j:
            raise ValueError(f"parents[{j}] must be in {ROOT}..{j - 1}, got {parent}")
        if not (math.isfinite(prob) and 0.0 <= prob <= 1.0):
            raise ValueError(f"probs[{j}] must be in 0..1, got {prob}")
        if (parent, token) in seen:
            raise ValueError(f"node {j}: node {parent} already has a child with token {token}")
        seen.add((parent, token))
    return DraftTree(tokens, parents, probs)
