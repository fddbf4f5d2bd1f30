"""From what native code decided to verdicts, with what reviews tell beside: log-probabilities and
runners-up at the positions that they judged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from cascade_engine.levels.rows import ReviewItem, TokenLogprobs, Verdict
from cascade_engine.levels.tree import unmoved
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


Decided = tuple[int, int, list[int]]
"""Of one item, by `accept`: tokens kept, the level's own token, and the nodes kept of a tree."""


def verdicts_of(
    backend: CpuBackend | CudaBackend,
    items: Sequence[ReviewItem],
    decided: Sequence[Decided],
    logits: dict[str, int],
    allowed: Sequence[int],
) -> list[Verdict]:
    """The verdicts, with what their items ask for; `logits` are those that they went by."""
    asked = any(item.logprobs is not None or item.siblings for item in items)
    judged = judge(items, decided, allowed) if asked else []
    logprobs = read_logprobs(backend, logits, judged)
    siblings = read_siblings(backend, logits, judged)
    return [
        Verdict(
            num_accepted,
            token,
            logprobs.get(i, ()),
            path,
            num_accepted if item.tree is None else unmoved(path),
            siblings.get(i, ()),
        )
        for i, (item, (num_accepted, token, path)) in enumerate(zip(items, decided, strict=True))
    ]


def judge(
    items: Sequence[ReviewItem], decided: Sequence[Decided], allowed: Sequence[int]
) -> list[Judged]:
    first, judged = 0, []
    for i, (item, (num_accepted, _, path)) in enumerate(zip(items, decided, strict=True)):
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
