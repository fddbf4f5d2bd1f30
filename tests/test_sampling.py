"""Masks of allowed tokens along chains and trees of drafts."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from cascade_engine.sampling import AllowedMasks

VOCAB = 40


def bits(words: Sequence[int]) -> set[int]:
    return {i for i in range(VOCAB) if words[i // 32] >> i % 32 & 1}


@pytest.mark.parametrize("seed", range(40))
def test_each_draft_has_the_mask_of_its_own_prefix(seed: int) -> None:
    """Breaks when a node is asked about with a sibling in its prefix, or behind a token that is not
    allowed."""
    rng = random.Random(seed)
    asked: list[tuple[int, ...]] = []

    def allowed(prefix: Sequence[int]) -> list[int] | None:
        asked.append(tuple(prefix))
        if sum(prefix) % 5 == 0:
            return None
        return random.Random(f"{list(prefix)}").sample(range(VOCAB), 30)

    row = [rng.randrange(VOCAB) for _ in range(rng.randint(1, 4))]
    drafted = [rng.randrange(VOCAB) for _ in range(rng.randint(0, 12))]
    parents = [rng.randrange(-1, j) for j in range(len(drafted))]
    if seed % 3 == 0:
        parents = list(range(-1, len(drafted) - 1))
    found, errors = AllowedMasks(allowed, VOCAB).along(row, drafted, parents)
    masks = found.tolist()
    assert not errors
    questions, asked = asked, []
    expected: list[tuple[int, ...]] = []
    prefixes: list[tuple[int, ...] | None] = [tuple(row)]
    for j in range(-1, len(drafted)):
        if j >= 0:
            before = prefixes[parents[j] + 1]
            options = None if before is None else allowed(before)
            reached = before is not None and (options is None or drafted[j] in options)
            prefixes.append((*before, drafted[j]) if before is not None and reached else None)
        prefix = prefixes[-1]
        if prefix is None:
            assert bits(masks[j + 1]) == set(range(VOCAB))
            continue
        expected.append(prefix)
        options = allowed(prefix)
        assert bits(masks[j + 1]) == set(range(VOCAB) if options is None else options)
    assert questions == expected
