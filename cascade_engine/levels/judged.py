"""What reviews tell beside their verdicts: log-probabilities and runners-up at the positions that
they judged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from cascade_engine.levels.rows import ReviewItem, TokenLogprobs
from cascade_engine.ops import CpuBackend, CudaBackend


class Judged(NamedTuple):
    """Where the logits are that a review of one item went by."""

    number: int
    item: ReviewItem
    first: int
    """Its first logit row."""
    offsets: list[int]
    """Of the logit rows of the tokens that the review left, from there."""
    allowed: int
    """Address of its masks, 0: none."""


def judge(
    items: Sequence[ReviewItem],
    verdicts: Sequence[tuple[int, int, list[int]]],
    allowed: Sequence[int],
) -> list[Judged]:
    """`verdicts` are those of `accept`."""
    first, judged = 0, []
    for i, (item, (num_accepted, _, path)) in enumerate(zip(items, verdicts, strict=True)):
        offsets = range(num_accepted + 1) if item.tree is None else (0, *(1 + n for n in path))
        judged.append(Judged(i, item, first, list(offsets), allowed[i]))
        first += item.drafted + 1
    return judged


def read_logprobs(
    backend: CpuBackend | CudaBackend, logits: dict[str, int], judged: Sequence[Judged]
) -> dict[int, tuple[TokenLogprobs, ...]]:
    """By item, for the items that ask: log-probabilities of the tokens a review left."""
    asking = [(j, j.item.logprobs) for j in judged if j.item.logprobs is not None]
    if not asking:
        return {}
    found = backend.logprobs(
        **logits,
        **_positions([j for j, _ in asking]),
        top=[wanted.top for _, wanted in asking],
        processed=[wanted.processed for _, wanted in asking],
    )
    return {
        j.number: tuple(TokenLogprobs(*entry) for entry in row)
        for (j, _), row in zip(asking, found, strict=True)
    }


def read_siblings(
    backend: CpuBackend | CudaBackend, logits: dict[str, int], judged: Sequence[Judged]
) -> dict[int, list[list[tuple[int, float]]]]:
    """By item, for the items that ask: the runners-up of the tokens a review left."""
    asking = [j for j in judged if j.item.siblings]
    if not asking:
        return {}
    found = backend.siblings(
        **logits,
        **_positions(asking),
        siblings=[j.item.siblings for j in asking],
    )
    return {j.number: row for j, row in zip(asking, found, strict=True)}


def _positions(judged: Sequence[Judged]) -> dict[str, Any]:
    """The positions that reviews judged, as native code takes them."""
    allowed = [j.allowed for j in judged]
    return {
        "rows": [j.item.slot for j in judged],
        "first_logit_rows": [j.first for j in judged],
        "starts": [j.item.frontier for j in judged],
        "counts": [len(j.offsets) for j in judged],
        "samplers": [j.item.sampler for j in judged],
        "allowed": allowed if any(allowed) else [],
        "paths": [j.offsets for j in judged],
    }
