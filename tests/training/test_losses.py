"""The divergence from a teacher's most likely tokens, against its definition in float64."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cascade_engine.training.batches import Batch
from cascade_engine.training.losses import loss_of, top_divergence

VOCAB, TOKENS = 11, 6


def distributions(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    both = torch.randn(2, TOKENS, VOCAB, generator=generator, dtype=torch.float64) * 2
    student, teacher = both.log_softmax(-1)
    return student, teacher


@pytest.mark.parametrize("k", [1, 3, VOCAB])
def test_it_is_the_divergence_with_one_bin_for_the_rest(k: int) -> None:
    student, teacher = distributions(k)
    top = teacher.topk(k, -1)
    found = top_divergence(student, top.indices, top.values)
    for i in range(TOKENS):
        chosen = set(top.indices[i].tolist())
        bins = [[t] for t in chosen] + [[t for t in range(VOCAB) if t not in chosen]]
        expected = 0.0
        for tokens in filter(None, bins):
            p = float(teacher[i, tokens].exp().sum())
            q = float(student[i, tokens].exp().sum())
            expected += p * (torch.tensor(p / q, dtype=torch.float64).log().item())
        assert found[i].item() == pytest.approx(expected, abs=1e-9)


def test_a_student_that_is_the_teacher_has_none() -> None:
    _, teacher = distributions(1)
    top = teacher.topk(4, -1)
    torch.testing.assert_close(
        top_divergence(teacher, top.indices, top.values), torch.zeros(TOKENS, dtype=torch.float64)
    )


class Fixed:
    """A model with the same logits whatever it reads."""

    def __init__(self, logits: torch.Tensor) -> None:
        self.logits = logits

    def __call__(self, **_: Any) -> Any:
        return SimpleNamespace(logits=self.logits)


def test_tokens_without_a_teacher_have_their_cross_entropy() -> None:
    student, teacher = (d.float() for d in distributions(5))
    # Position t is predicted by the logits of position t - 1.
    model = Fixed(student[None])
    tokens = torch.arange(TOKENS)[None]
    weights = torch.ones(1, TOKENS)
    weights[0, 0] = 0
    top = teacher.topk(3, -1)
    logprobs = torch.full((1, TOKENS, 3), -torch.inf)
    ids = torch.zeros((1, TOKENS, 3), dtype=torch.int64)
    logprobs[0, 4], ids[0, 4] = top.values[4], top.indices[4]
    crosses = -student[torch.arange(TOKENS - 1), torch.arange(1, TOKENS)]
    divergence = top_divergence(student[3:4], top.indices[4:5], top.values[4:5])[0]
    alone = loss_of(model, Batch(tokens, weights))
    assert alone.item() == pytest.approx(crosses.mean().item(), abs=1e-5)
    mixed = loss_of(model, Batch(tokens, weights, None, ids, logprobs), teacher_share=0.75)
    expected = crosses.sum() + 0.75 * (divergence - crosses[3])
    assert mixed.item() == pytest.approx(expected.item() / (TOKENS - 1), abs=1e-5)
