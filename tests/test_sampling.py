"""Masks of allowed tokens along chains and trees of drafts."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from cascade_engine.errors import RequestError
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


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ([1.0, 2.0], "list of token ids or a boolean tensor, got float32"),
        ([True] * VOCAB, "got bool"),
        (torch.ones(VOCAB), "got float32"),
        (torch.ones(2, 3, dtype=torch.int64), r"got int64 \[2, 3\]"),
        (torch.ones(VOCAB + 1, dtype=torch.bool), f"must return {VOCAB} flags"),
        ([1, VOCAB], f"ids in 0..{VOCAB - 1}, got {VOCAB}"),
        ([-1, 1], f"ids in 0..{VOCAB - 1}, got -1"),
        ([], "allows no token after 1 tokens"),
    ],
)
def test_an_answer_that_is_none(answer: object, message: str) -> None:
    """Nothing is taken for token ids that is something else: flags in a list would allow tokens 0
    and 1."""
    masks, errors = AllowedMasks(lambda _: answer, VOCAB).along([1], [], [])
    assert list(errors) == [-1]
    with pytest.raises(RequestError, match=message):
        raise errors[-1]
    assert bool((masks == -1).all())


def test_answers_in_every_form() -> None:
    flags = torch.zeros(VOCAB, dtype=torch.bool)
    flags[[2, 5]] = True
    forms = ([2, 5], (5, 2), {2, 5}, torch.tensor([2, 5]), torch.tensor([2, 5], dtype=torch.int32))
    expected, _ = AllowedMasks(lambda _: flags, VOCAB).along([1], [], [])
    for form in (*forms, np.array([5, 2])):
        masks, errors = AllowedMasks(lambda _, form=form: form, VOCAB).along([1], [], [])
        assert not errors
        assert torch.equal(masks, expected)
