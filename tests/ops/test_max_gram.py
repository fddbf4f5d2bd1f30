"""Max-Gram against trying every suffix at every place."""

from __future__ import annotations

import random

import pytest
import torch

from cascade_engine import _C
from tests.ops.native import context, every_isa, propose
from tests.reference import drafting


def random_text(rng: random.Random, longest: int) -> list[int]:
    """From few letters, so that matches are many and long; at times periodic."""
    letters, length = rng.choice([1, 2, 3, 20, 300]), rng.randrange(1, longest)
    text = [rng.randrange(letters) for _ in range(length)]
    if rng.random() < 0.3:
        period = rng.randrange(1, 40)
        text = [text[i % min(period, length)] for i in range(length)]
    return text


@every_isa
def test_drafts_are_the_oracles(isa: str) -> None:
    ctx, rng, found = context(isa), random.Random(0), 0
    for _ in range(400):
        tokens = random_text(rng, 150)
        count, max_match = rng.choice([0, 1, 5, 40]), rng.choice([1, 2, 7, 32])
        corpus = random_text(rng, 60) if rng.random() < 0.4 else None
        expected = drafting.max_gram(tokens, count, max_match, corpus or ())
        assert propose(ctx, tokens, count, max_match, corpus=corpus) == expected
        found += len(expected) > 0
    assert found > 200


@pytest.mark.parametrize(
    ("tokens", "count", "expected"),
    [
        ([], 4, []),
        ([5], 4, []),
        ([1, 2, 3], 4, []),
        ([7, 7], 4, [7, 7, 7, 7]),
        ([1, 2, 1, 2, 1], 5, [2, 1, 2, 1, 2]),  # the match overlaps the suffix
        ([1, 2, 3, 9, 1, 2, 4, 1, 2], 2, [4, 1]),  # the latest among the longest
        ([1, 2, 3, 9, 2, 4, 1, 2], 2, [3, 9]),  # the longest before the latest
        ([1, 2, 3, 4, 5, 1, 2, 3], 1, [4]),
    ],
)
def test_examples(tokens: list[int], count: int, expected: list[int]) -> None:
    assert propose(context(), tokens, count) == expected


def test_longer_matches_count_up_to_the_limit() -> None:
    """A match one longer than the limit does not beat a later one at the limit."""
    common = list(range(100, 132))
    tokens = [50, *common, 1, 60, *common, 2, 50, *common]
    assert propose(context(), tokens, 1, max_match=32) == [2]
    assert propose(context(), tokens, 1, max_match=33) == [1]


def test_the_corpus_is_preferred_at_equal_length() -> None:
    tokens = [1, 2, 3, 1, 2]
    assert propose(context(), tokens, 3, corpus=[1, 2, 8, 9]) == [8, 9]  # ends with the corpus
    assert propose(context(), tokens, 3, corpus=[2, 8, 9]) == [3, 1, 2]  # a shorter match
    assert propose(context(), tokens, 3, corpus=[8, 1, 2]) == [3, 1, 2]  # nothing follows it
    assert propose(context(), tokens, 3, corpus=[]) == [3, 1, 2]


def test_several_rows_at_once() -> None:
    rng = random.Random(1)
    texts = [random_text(rng, 90) for _ in range(20)]
    rows, probs = torch.full((20, 100), -1, dtype=torch.int32), torch.zeros(20, 100)
    for i, text in enumerate(texts):
        rows[19 - i, : len(text)] = torch.tensor(text, dtype=torch.int32)
    counts = [i % 6 for i in range(20)]
    drafted = _C.propose(
        context(threads=2),
        rows.data_ptr(),
        100,
        0,
        [19 - i for i in range(20)],
        [len(text) for text in texts],
        counts,
    )
    assert not probs.any()
    for i, text in enumerate(texts):
        expected = drafting.max_gram(text, counts[i], 32)
        row = rows[19 - i].tolist()
        assert drafted[i] == len(expected)
        assert row == text + expected + [-1] * (100 - len(text) - len(expected))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([-1], [3], [2]), r"rows\[0\] must be >= 0, got -1"),
        (([0], [3], [6]), r"counts\[0\] = 6 tokens do not fit behind lengths\[0\] = 3"),
        (([0], [-1], [2]), "do not fit"),
        (([0], [3], [-2]), "do not fit"),
        (([0], [3], [2], 0), "max_match must be >= 1, got 0"),
        (([0, 1], [3], [2]), "lengths and counts have 1 and 1 entries for 2 rows"),
        (([0], [3], [2], 32, None, [], [4]), "corpora and corpus_lengths have 0 and 1"),
        (([0], [3], [2], 32, None, [0], [4]), r"corpus_lengths\[0\] = 4 must be >= 0, and 0"),
    ],
)
def test_wrong_arguments(arguments: tuple, message: str) -> None:
    row = torch.zeros(8, dtype=torch.int32)
    with pytest.raises(ValueError, match=message):
        _C.propose(context(), row.data_ptr(), 8, 0, *arguments)
