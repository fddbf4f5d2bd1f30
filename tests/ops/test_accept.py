"""Review of drafted tokens against the oracle that walks a row in float64."""

from __future__ import annotations

import dataclasses
import math
import random

import pytest
import torch

from tests.ops.native import Rows, context, every_isa, mask_words, sampler
from tests.ops.test_sampling import CLEAR, random_params
from tests.reference import sampling as oracle
from tests.reference.sampling import Params

CAPACITY = 60


@dataclasses.dataclass
class Case:
    """A batch of rows under review, of which some drafts are what the level would say itself."""

    rows: Rows
    order: list[int]
    frontiers: list[int]
    lengths: list[int]
    params: list[Params]
    allowed: list[list[list[bool]] | None]

    def logits_of(self, i: int) -> list[list[float]]:
        first = sum(n - f + 1 for f, n in zip(self.frontiers[:i], self.lengths[:i], strict=True))
        count = self.lengths[i] - self.frontiers[i] + 1
        return self.rows.logits[first : first + count].double().tolist()


def random_batch(seed: int, lenience: float = 1.0) -> Case:
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    vocab, count = rng.choice([12, 70, 300]), rng.randrange(1, 6)
    order = rng.sample(range(7), count)
    frontiers = [rng.randrange(1, 30) for _ in order]
    lengths = [f + rng.choice([0, 1, 3, 8, 20]) for f in frontiers]
    logit_rows = sum(n - f + 1 for f, n in zip(frontiers, lengths, strict=True))
    logits = torch.randn(logit_rows, vocab + 5, generator=generator)[:, :vocab] * 3
    tokens = torch.randint(0, vocab, (7, CAPACITY), generator=generator, dtype=torch.int32)
    probs = torch.rand(7, CAPACITY, generator=generator)
    params, allowed = [], []
    for frontier, length in zip(frontiers, lengths, strict=True):
        params.append(random_params(rng, vocab, frontier))
        masks = [[rng.random() < 0.7 for _ in range(vocab)] for _ in range(length - frontier + 1)]
        for mask in masks:
            mask[:4] = [True] * 4
            if not any(mask):
                mask[0] = True
        allowed.append(masks if rng.random() < 0.3 else None)
    case = Case(Rows(tokens, probs, logits), order, frontiers, lengths, params, allowed)
    for i, row in enumerate(order):  # drafts that agree up to a random point
        own = oracle_draft(case, i, rng.randrange(lengths[i] - frontiers[i] + 1))
        tokens[row, frontiers[i] : frontiers[i] + len(own)] = torch.tensor(own, dtype=torch.int32)
    return case


def oracle_draft(case: Case, i: int, count: int) -> list[int]:
    row = case.rows.tokens[case.order[i], : case.frontiers[i]].tolist()
    logits, allowed, p = case.logits_of(i), case.allowed[i], case.params[i]
    for j in range(count):
        values = oracle.processed(logits[j], row, p, None if allowed is None else allowed[j])
        row.append(oracle.choose(values, len(row), p)[0])
    return row[case.frontiers[i] :]


def run(case: Case, isa: str = "", threads: int = 1, lenience: float = 1.0, probs: bool = True):
    """(results, tokens, probs) of the native review of a copy of the case."""
    rows = Rows(
        case.rows.tokens.clone(), case.rows.probs.clone() if probs else None, case.rows.logits
    )
    masks = [None if a is None else mask_words(a) for a in case.allowed]
    results = rows.accept(
        context(isa, threads),
        case.order,
        case.frontiers,
        case.lengths,
        [sampler(p) for p in case.params],
        lenience,
        [0 if m is None else m.data_ptr() for m in masks],
        case.rows.logits.shape[0],
    )
    return results, rows.tokens, rows.probs


@every_isa
@pytest.mark.parametrize("lenience", [1.0, 1.5, 4.0])
def test_reviews_are_the_oracles(isa: str, lenience: float) -> None:
    unclear = accepted = 0
    for seed in range(40):
        case = random_batch(seed)
        results, tokens, probs = run(case, isa, lenience=lenience)
        expected_tokens, expected_probs = case.rows.tokens.clone(), case.rows.probs.clone()
        clear = True
        for i, row in enumerate(case.order):
            length = case.lengths[i]
            review = oracle.review(
                case.logits_of(i),
                case.rows.tokens[row, :length].tolist(),
                case.rows.probs[row, :length].tolist(),
                case.frontiers[i],
                case.params[i],
                lenience,
                case.allowed[i],
            )
            clear = clear and review.margin >= CLEAR
            if clear:
                assert results[i] == (review.num_accepted, review.tokens[-1]), (seed, i)
            accepted += review.num_accepted
            end = len(review.tokens)
            expected_tokens[row, :end] = torch.tensor(review.tokens, dtype=torch.int32)
            expected_probs[row, :end] = torch.tensor(review.probs)
        if not clear:
            unclear += 1
            continue
        assert torch.equal(tokens, expected_tokens), seed  # and nothing else is written
        assert torch.allclose(probs, expected_probs, rtol=1e-4, atol=1e-7), seed
    assert unclear < 12
    assert accepted > 100


def test_lossless_review_ignores_probabilities() -> None:
    for seed in range(30):
        case = random_batch(seed)
        results, tokens, _ = run(case)
        case.rows.probs.fill_(1e-9)  # would let every token pass if lenience were at work
        assert run(case)[0] == results
        without = run(case, probs=False)
        assert without[0] == results
        assert torch.equal(without[1], tokens)


def test_threads_do_not_matter() -> None:
    for seed in range(30):
        case = random_batch(seed)
        for lenience in (1.0, 2.0):
            one, two = (
                run(case, threads=1, lenience=lenience),
                run(case, threads=2, lenience=lenience),
            )
            assert one[0] == two[0]
            assert torch.equal(one[1], two[1])
            assert torch.equal(one[2], two[2])


def test_a_review_equals_one_token_at_a_time() -> None:
    """The row that reviews of any draft leave is the row that plain decoding writes."""
    generator = torch.Generator().manual_seed(3)
    vocab, frontier, length = 40, 5, 17
    logits = torch.randn(length - frontier + 1, vocab, generator=generator)
    p = Params(
        temperature=0.8, top_p=0.9, repetition_penalty=1.3, frequency_penalty=0.3, seed=9,
        prompt_length=3, min_tokens=4, stop_ids=(1,),
    )  # fmt: skip
    plain = torch.zeros(1, CAPACITY, dtype=torch.int32)
    for position in range(frontier, length + 1):
        step = Rows(plain, None, logits[position - frontier : position - frontier + 1])
        step.accept(context(), [0], [position], [position], [sampler(p)])
    for wrong_at in range(frontier, length + 1):
        row = plain.clone()
        if wrong_at < length:
            row[0, wrong_at] = (row[0, wrong_at] + 1) % vocab
        row[0, max(wrong_at + 1, length) :] = 0
        [(accepted, token)] = Rows(row, None, logits).accept(
            context(), [0], [frontier], [length], [sampler(p)]
        )
        assert accepted == wrong_at - frontier
        assert token == plain[0, wrong_at]
        assert torch.equal(row[0, : wrong_at + 1], plain[0, : wrong_at + 1])


def test_nothing_is_computed_past_the_first_disagreement() -> None:
    logits = torch.zeros(5, 8)
    logits[0, 3] = logits[1, 4] = 1.0
    logits[2:] = math.nan  # would raise
    row = torch.tensor([[1, 3, 5, 5, 5, 0]], dtype=torch.int32)
    greedy = sampler(Params(temperature=0.0))
    assert Rows(row, None, logits).accept(context(), [0], [1], [5], [greedy]) == [(1, 4)]
    assert row[0].tolist() == [1, 3, 4, 5, 5, 0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": [0, 0]}, "row 0 is reviewed twice"),
        ({"rows": [-1, 0]}, r"rows\[0\] must be >= 0"),
        ({"rows": [0]}, "has 2 entries for 1 rows"),
        ({"frontiers": [0, 1]}, r"frontiers\[0\] must be >= 1"),
        ({"frontiers": [4, 1]}, r"lengths\[0\] = 3 is below frontiers\[0\] = 4"),
        ({"lengths": [3, 8]}, r"lengths\[1\] = 8 leaves no place for the bonus token"),
        ({"lenience": 0.5}, "lenience must be >= 1"),
        ({"lenience": math.nan}, "lenience must be >= 1"),
        ({"samplers": [None, None]}, r"samplers\[0\] is None"),
        ({"logit_rows": 7}, "the rows need 5 logit rows .* got 7"),
        ({"allowed": [0]}, "allowed has 1 entries for 2 rows"),
    ],
)
def test_wrong_arguments(change: dict, message: str) -> None:
    rows = Rows(torch.ones(2, 8, dtype=torch.int32), torch.ones(2, 8), torch.zeros(12, 4))
    arguments = {
        "rows": [0, 1],
        "frontiers": [2, 1],
        "lengths": [3, 3],
        "samplers": [sampler(Params())] * 2,
    }
    assert len(rows.accept(context(), **arguments, logit_rows=5)) == 2
    with pytest.raises(ValueError, match=message):
        rows.accept(context(), **{**arguments, **change})


def test_lenience_needs_probabilities_and_rows_hold_tokens() -> None:
    rows = Rows(torch.full((1, 8), -1, dtype=torch.int32), None, torch.zeros(2, 4))
    with pytest.raises(ValueError, match="pass probs, or lenience 1"):
        rows.accept(context(), [0], [1], [2], [sampler(Params())], lenience=2.0)
    with pytest.raises(ValueError, match="row 0 holds token -1 at position 1"):
        rows.accept(context(threads=2), [0], [1], [2], [sampler(Params())])
