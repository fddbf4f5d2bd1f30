"""CS Drafting's Algorithm 1 (Chen et al., arXiv 2312.11462, section 3) as a pure function."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from cascade_engine.errors import RequestError
from cascade_engine.policy.base import Action, Draft, Review, RowState, Segment

MAX_TREE = 64
"""Nodes of one reviewed tree."""


@dataclass(frozen=True)
class FixedCascade:
    """Vertical and horizontal cascades with a fixed matrix K.

    `k_matrix` is upper triangular, n x n for n drafting levels (the neural drafts, large to small,
    then the statistical level). Row i belongs to the reviewing level i, column j - 1 to its
    drafter j: level i lets drafter j extend its segment by `k_matrix[i][j - 1]` tokens that j
    vouches for, then moves on to drafter j + 1 (the horizontal cascade); while drafter j drafts, it
    reviews drafts of the levels below it in the same way (the vertical cascade). Entries are
    increments. The paper's k are cumulative within a row: k_matrix[i][j] = k_ij - k_i,j-1.
    The last entry of the last row is the width of one statistical draft.

    Entries below the diagonal are ignored by the algorithm and must be 0. A row may be all zeros:
    then its level drafts token by token on its own (ordinary speculative decoding is
    `[[k, 0], [0, 0]]`).

    `lenience` >= 1 applies when a drafting level reviews, never to the target.

    `tree` > 0: the target reviews a tree of up to so many nodes (64 at most) instead of a chain.
    It holds what the drafting levels wrote and, beside it, the most probable branches: proposals of
    the statistical level (instead of the target's own statistical segment), and `siblings`
    runners-up beside each token that a neural draft writes. A sequence gives the nodes for each
    reviewing level: `(32, 8)` lets the first draft review trees of 8 nodes itself.

    `min_confidence` > 0 (at most 1) ends a segment early, with the token with which its confidence
    falls below: the product of the probabilities that the neural drafts gave its tokens, which
    estimates the chance that all of them stay (as EAGLE-2, arXiv 2406.16858, ranks drafts). The
    reviewing level then looks at what there is, and at its tree where it has one.

    Raises RequestError for a matrix that is not square, not upper triangular, or has negative or
    non-integer entries, for a lenience below 1, for trees or siblings out of range, and for a
    min_confidence outside 0..1.
    """

    k_matrix: tuple[tuple[int, ...], ...]
    lenience: float = 1.0
    tree: tuple[int, ...] = ()
    siblings: int = 0
    min_confidence: float = 0.0

    def __init__(
        self,
        k_matrix: Sequence[Sequence[int]],
        lenience: float = 1.0,
        tree: int | Sequence[int] = 0,
        siblings: int = 0,
        min_confidence: float = 0.0,
    ) -> None:
        object.__setattr__(self, "k_matrix", _checked(k_matrix))
        if not (math.isfinite(lenience) and lenience >= 1.0):
            raise RequestError(f"lenience must be a finite number >= 1, got {lenience}")
        object.__setattr__(self, "lenience", float(lenience))
        trees = (tree,) if isinstance(tree, int) else tuple(tree)
        object.__setattr__(self, "tree", _checked_trees(trees, len(self.k_matrix)))
        if not isinstance(siblings, int) or siblings < 0:
            raise RequestError(f"siblings must be an integer >= 0, got {siblings!r}")
        if siblings and not self.tree[0]:
            raise RequestError(f"siblings={siblings} are branches of a tree: give tree > 0 as well")
        object.__setattr__(self, "siblings", siblings)
        if not 0.0 <= min_confidence <= 1.0:
            raise RequestError(f"min_confidence must be in 0..1 (0: off), got {min_confidence}")
        object.__setattr__(self, "min_confidence", float(min_confidence))

    @classmethod
    def parse(
        cls,
        text: str,
        lenience: float = 1.0,
        tree: int | Sequence[int] = 0,
        siblings: int = 0,
        min_confidence: float = 0.0,
    ) -> FixedCascade:
        """From `"13,10;0,10"`: rows separated by semicolons, entries by commas."""
        try:
            rows = [[int(entry) for entry in row.split(",")] for row in text.split(";")]
        except ValueError:
            raise RequestError(
                f"k-matrix {text!r} is not rows of integers such as '13,10;0,10'"
            ) from None
        return cls(rows, lenience, tree, siblings, min_confidence)

    @classmethod
    def default(cls, drafting_levels: int) -> FixedCascade:
        """A setting that works for many inputs: a statistical draft of 10, each neural draft
        reviewing up to 10 tokens at a time."""
        n = drafting_levels
        rows = [[0] * n for _ in range(n)]
        for i in range(n):
            if i + 1 < n:
                rows[i][i] = 8
            rows[i][n - 1] = 10 if i == n - 1 else 0
        return cls(rows)

    def check(self, drafting_levels: int) -> None:
        if len(self.k_matrix) != drafting_levels:
            raise RequestError(
                f"k_matrix has {len(self.k_matrix)} rows, but there are {drafting_levels} drafting "
                "levels (the neural drafts and the statistical level): give one row and one column "
                "for each"
            )

    def next_action(self, row: RowState) -> Action:
        if row.room <= 0:
            return Review(0)
        return self._act(row, 0, 1, 0, 0.0)

    def _act(self, row: RowState, level: int, reviews: int, wanted: int, least: float) -> Action:
        """`reviews`: how many levels will yet append a token of their own behind a drafter's. Each
        finds room for it, so that none is passed over because of what was drafted. `wanted`: tokens
        that a drafting level has yet to vouch for; `least`: the confidence in them below which it
        need not."""
        n, nodes = len(self.k_matrix), self.tree[level]
        segment = 0
        for drafter in range(level + 1, n + 1 if nodes == 0 else n):
            segment += self.k_matrix[level][drafter - 1]
            if row.exhausted if drafter == n else row.is_dormant(drafter):
                continue
            if row.room < reviews:
                continue
            vouched = row.length if drafter == n else row.frontier[drafter]
            missing = segment - (vouched - row.frontier[level])
            if missing > 0:
                confidence = row.confidence(level, drafter) if self.min_confidence else 1.0
                if confidence < self.min_confidence:
                    continue
                room, left = row.room - reviews + 1, self.min_confidence / confidence
                if drafter == n:
                    width = self.k_matrix[-1][-1] or segment
                    own = level > 0 and missing == segment == self.k_matrix[level][-1]
                    whole = None
                    if own and not self.siblings:
                        whole = Segment(level, wanted, room + 1, width, segment, least)
                    return Draft(n, min(width, room), segment=whole)
                if self._drafts_alone(drafter) and vouched == row.length:
                    return Draft(drafter, min(missing, room), 0, left)
                return self._act(row, drafter, reviews + 1, missing, left)
        if nodes and not row.widened:
            return Draft(n, min(nodes, row.room), nodes)
        return Review(level, nodes, self.siblings if level else 0)

    def _drafts_alone(self, level: int) -> bool:
        """Whether all that a level does is to append its own tokens."""
        return not (any(self.k_matrix[level]) or self.tree[level] or self.siblings)


def _checked_trees(trees: tuple[int, ...], levels: int) -> tuple[int, ...]:
    """One entry for each reviewing level."""
    if len(trees) > levels:
        raise RequestError(f"tree has {len(trees)} entries, there are {levels} reviewing levels")
    for nodes in trees:
        if not isinstance(nodes, int) or isinstance(nodes, bool) or not 0 <= nodes <= MAX_TREE:
            raise RequestError(f"tree must be integers in 0..{MAX_TREE} (nodes), got {nodes!r}")
    return trees + (0,) * (levels - len(trees))


def _checked(k_matrix: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
    rows = tuple(tuple(row) for row in k_matrix)
    if not rows:
        raise RequestError("k_matrix must have at least one row")
    for i, row in enumerate(rows):
        if len(row) != len(rows):
            raise RequestError(
                f"k_matrix must be square: row {i} has {len(row)} entries, there are {len(rows)} "
                "rows"
            )
        for j, entry in enumerate(row):
            if not isinstance(entry, int) or isinstance(entry, bool):
                raise RequestError(f"k_matrix[{i}][{j}] must be an integer, got {entry!r}")
            if entry < 0:
                raise RequestError(f"k_matrix[{i}][{j}] must be >= 0, got {entry}")
            if j < i and entry != 0:
                raise RequestError(
                    f"k_matrix[{i}][{j}] lies below the diagonal and must be 0, got {entry}"
                )
    return rows
