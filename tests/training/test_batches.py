"""Packed rows hold whole examples, with a teacher's tokens where they belong."""

from __future__ import annotations

import math

import pytest
import torch

from cascade_engine.training.batches import PROMPT_WEIGHT, Example, batch_of, packed

FIRST = Example([1, 5], [6, 7], [[(6, -0.1), (9, -2.5)], [(8, -0.7), (7, -0.7)]])
SECOND = Example([1, 3, 4], [2], [[(2, -0.2)]])


def test_a_row_holds_examples_end_to_end() -> None:
    batch = batch_of([[FIRST, SECOND], [SECOND]], top=2)
    assert batch.tokens.tolist() == [[1, 5, 6, 7, 1, 3, 4, 2], [1, 3, 4, 2, 0, 0, 0, 0]]
    p = PROMPT_WEIGHT
    expected = torch.tensor([[0, p, 1, 1, 0, p, p, 1], [0, p, p, 1, 0, 0, 0, 0]])
    torch.testing.assert_close(batch.weights, expected)
    assert batch.top_ids is not None
    assert batch.top_logprobs is not None
    assert batch.top_ids[0, 2].tolist() == [6, 9]
    assert batch.top_ids[0, 3].tolist() == [8, 7]
    assert batch.top_ids[0, 7].tolist() == [2, 0]
    torch.testing.assert_close(batch.top_logprobs[0, 2], torch.tensor([-0.1, -2.5]))
    assert batch.top_logprobs[0, 7].tolist() == [pytest.approx(-0.2), -math.inf]
    assert (batch.top_logprobs > -math.inf).any(-1).nonzero().tolist() == [
        [0, 2],
        [0, 3],
        [0, 7],
        [1, 3],
    ]


def test_without_a_teacher_there_are_no_columns() -> None:
    batch = batch_of([[FIRST]])
    assert batch.top_ids is None
    assert batch.top_logprobs is None


def test_an_example_longer_than_a_row_is_refused() -> None:
    with pytest.raises(ValueError, match="an example of 4 tokens does not fit a row of 3"):
        next(packed([FIRST], 1, 3))
