"""Native reviews by the rejection rule against the oracle, decision by decision: both take their
uniforms from the same Philox blocks."""

from __future__ import annotations

import dataclasses
import math
import random

import pytest
import torch

from cascade_engine import _C
from tests.ops.native import Rows, context, every_isa, mask_words, sampler
from tests.ops.test_sampling import random_params
from tests.reference import rejection as rule
from tests.reference import sampling as oracle
from tests.reference.sampling import Params

CAPACITY = 60
CLEAR = 1e-5
"""Probabilities are float32, sums over a vocabulary are good to about 1e-6."""


@dataclasses.dataclass
class Case:
    """One row under review: `tokens` with `parents` behind a prefix, of which the first `trunk`
    are the row's own and drawn from `drafts` (None: proposed with certainty)."""

    prefix: list[int]
    tokens: list[int]
    parents: list[int]
    drafts: list[list[float] | None]
    trunk: int
    params: Params
    logits: torch.Tensor
    allowed: list[list[bool]] | None
    keeps: bool
    number: int

    @property
    def is_chain(self) -> bool:
        return self.trunk == len(self.tokens)

    def level(self, j: int, row: tuple[int, ...]) -> list[float]:
        mask = None if self.allowed is None else self.allowed[j]
        values = oracle.processed(self.logits[j].double().tolist(), row, self.params, mask)
        probs = oracle.distribution(values, self.params).probs
        return [probs.get(t, 0.0) for t in range(len(values))]

    def filter_margin(self, row: tuple[int, ...], j: int) -> float:
        mask = None if self.allowed is None else self.allowed[j]
        values = oracle.processed(self.logits[j].double().tolist(), row, self.params, mask)
        return oracle.distribution(values, self.params).margin


def random_case(rng: random.Random, vocab: int, nodes: int, chain: bool) -> Case:
    prefix = [rng.randrange(vocab) for _ in range(rng.randint(1, 25))]
    p = random_params(rng, vocab, len(prefix))
    p = dataclasses.replace(p, temperature=p.temperature or 1.0)
    generator = torch.Generator().manual_seed(rng.randrange(2**32))
    logits = torch.randn(nodes + 1, vocab, generator=generator) * 2
    allowed = None
    if rng.random() < 0.3:
        allowed = [[i < 4 or rng.random() < 0.7 for i in range(vocab)] for _ in range(nodes + 1)]
    trunk = nodes if chain else rng.randint(0, nodes)
    case = Case(
        prefix, [], [], [], trunk, p, logits, allowed, rng.random() < 0.5, rng.randrange(99)
    )
    paths: dict[int, list[int]] = {-1: prefix}
    for j in range(nodes):
        parent = j - 1 if j < trunk else rng.randint(-1, j - 1)
        near = case.level(parent + 1, tuple(paths[parent]))
        if j < trunk and rng.random() < 0.7:
            noisy = [x * rng.random() + 0.3 / vocab * (rng.random() < 0.5) for x in near]
            noisy[rng.randrange(vocab)] += 0.1
            draft = (torch.tensor(noisy) / sum(noisy)).tolist()
            token = rng.choices(range(vocab), draft)[0]
        else:
            draft = None
            token = rng.choices(range(vocab), near)[0]
            taken = [
                t for t, above in zip(case.tokens, case.parents, strict=True) if above == parent
            ]
            if token in taken or rng.random() < 0.3:
                token = rng.choice([t for t in range(vocab) if t not in taken])
        case.tokens.append(token)
        case.parents.append(parent)
        case.drafts.append(draft)
        paths[j] = [*paths[parent], token]
    return case


def expected(case: Case, lenience: float) -> tuple[list[int], int, list[list[float]], float]:
    vocab = case.logits.shape[1]
    drafts = [
        [float(x) for x in rule.one_hot(t, vocab)] if d is None else d
        for t, d in zip(case.tokens, case.drafts, strict=True)
    ]
    if case.is_chain and lenience == 1:
        run = rule.block(case.level, case.prefix, case.tokens, drafts)
    else:
        run = rule.tree(case.level, case.prefix, case.tokens, case.parents, drafts, lenience)
    path, own, kept, margin = rule.decide(
        run, case.params.seed, case.params.sample_index, case.number
    )
    row, at = list(case.prefix), -1
    for node in [*path, None]:
        margin = min(margin, case.filter_margin(tuple(row), at + 1) / oracle.FILTER_SCALE)
        if node is not None:
            at = node
            row.append(case.tokens[node])
    return path, own, kept, margin


@every_isa
@pytest.mark.parametrize("lenience", [1.0, 2.5])
def test_reviews_are_the_oracles(isa: str, lenience: float) -> None:
    """Chains and trees in one call, beside a row that does not reject. Breaks with another uniform,
    residual, order of siblings or draft distribution."""
    unclear = accepted = own_after_some = 0
    for seed in range(60):
        rng = random.Random(seed)
        vocab = rng.choice([12, 40, 300])
        cases = [random_case(rng, vocab, rng.choice([0, 1, 4, 9]), seed % 2 == 0) for _ in range(3)]
        found, rows, distributions = native(cases, vocab, isa, lenience)
        for i, case in enumerate(cases):
            path, own, kept, margin = expected(case, lenience)
            if margin < CLEAR:
                unclear += 1
                continue
            shown = [] if case.is_chain else path
            assert found[i] == (len(path), own, shown), (seed, i)
            row = [*case.prefix, *(case.tokens[node] for node in path), own]
            assert rows.tokens[i, : len(row)].tolist() == row
            begin = len(case.prefix)
            for position in range(CAPACITY):
                probs = distributions.read(i, position)
                if case.keeps and begin <= position < len(row):
                    wanted = kept[position - begin]
                    assert torch.allclose(torch.tensor(probs), torch.tensor(wanted), atol=2e-6)
                    assert math.isclose(
                        rows.probs[i, position], wanted[row[position]], abs_tol=2e-6
                    )
                elif position >= begin:
                    assert probs == [], (seed, i, position)
            accepted += len(path)
            own_after_some += 0 < len(path) < len(case.tokens)
    assert unclear < 15
    assert accepted > 100
    assert own_after_some > 20


def native(
    cases: list[Case], vocab: int, isa: str = "", lenience: float = 1.0
) -> tuple[list[tuple[int, int, list[int]]], Rows, _C.DraftDistributions]:
    count = len(cases)
    rows = Rows(
        torch.full((count, CAPACITY), -7, dtype=torch.int32),
        torch.full((count, CAPACITY), -7.0),
        torch.cat([case.logits for case in cases]),
    )
    distributions = _C.DraftDistributions(count, vocab)
    trees = []
    for i, case in enumerate(cases):
        begin = len(case.prefix)
        row = [*case.prefix, *case.tokens[: case.trunk]]
        rows.tokens[i, : len(row)] = torch.tensor(row)
        for j, draft in enumerate(case.drafts[: case.trunk]):
            if draft is not None:
                distributions.write(i, begin + j, draft)
        probs = [0.5] * len(case.tokens)
        trees.append(([], [], []) if case.is_chain else (case.tokens, case.parents, probs))
    masks = [None if case.allowed is None else mask_words(case.allowed) for case in cases]
    found = rows.accept_trees(
        context(isa, 2),
        range(count),
        [len(case.prefix) for case in cases],
        [len(case.prefix) + len(case.tokens) for case in cases],
        [sampler(case.params, rejection=True) for case in cases],
        lenience,
        [0 if m is None else m.data_ptr() for m in masks],
        len(rows.logits),
        trees,
        distributions,
        [(case.number, case.keeps, case.trunk) for case in cases],
    )
    return found, rows, distributions


def test_numbered_reviews_have_noise_of_their_own() -> None:
    """One position, many reviews: the own tokens are a sample of the level's distribution."""
    logits = torch.tensor([[0.0, 1.0, 2.0]])
    counts = torch.zeros(3)
    for number in range(3000):
        case = Case([1], [], [], [], 0, Params(seed=5), logits, None, False, number)
        [(_, own, _)], _, _ = native([case], 3)
        counts[own] += 1
    expected_counts = logits[0].softmax(-1) * 3000
    assert ((counts - expected_counts) ** 2 / expected_counts).sum() < 20


def test_greedy_rows_ignore_the_rule() -> None:
    p = Params(temperature=0.0)
    assert not sampler(p, rejection=True).rejects
    rows = Rows(torch.tensor([[1, 2, 2, 0]], dtype=torch.int32), None, torch.eye(3))
    args = ([0], [1], [3])
    greedy = rows.accept(context(), *args, [sampler(p)])
    rows.tokens[0, 1:3] = 2
    assert rows.accept(context(), *args, [sampler(p, rejection=True)]) == greedy


def test_logits_that_are_no_numbers() -> None:
    case = Case([1], [2], [-1], [None], 1, Params(seed=1), torch.zeros(2, 8), None, False, 0)
    case.logits[:, 3:] = math.nan  # as unlikely as can be
    for number in range(50):
        case.number = number
        [(_, own, _)], _, _ = native([case], 8)
        assert own < 3
    case.logits[:] = math.nan
    with pytest.raises(ValueError, match="are all NaN"):
        native([case], 8)


@pytest.mark.parametrize(
    ("distributions", "rejections", "tree", "message"),
    [
        (None, [(0, False, 0)], False, r"samplers\[0\] asks for rejection, .* pass distributions"),
        ((1, 9), [(0, False, 0)], False, "of 1 rows and a vocabulary of 9; .* has 4"),
        ((0, 4), [(0, False, 0)], False, "of 0 rows"),
        ((1, 4), [(0, False, 3)], True, r"trunks\[0\] must be in 0..2 \(nodes\), got 3"),
        ((1, 4), [(0, False, 2)], True, "the first 2 nodes must be a chain"),
        ((1, 4), [(0, False, 0)] * 2, False, "rejections has 2 entries for 1 rows"),
    ],
)
def test_wrong_arguments(
    distributions: tuple[int, int] | None, rejections: list, tree: bool, message: str
) -> None:
    rows = Rows(torch.ones(1, 8, dtype=torch.int32), None, torch.zeros(3, 4))
    trees = [([1, 2], [-1, -1], [])] if tree else []
    given = None if distributions is None else _C.DraftDistributions(*distributions)
    with pytest.raises(ValueError, match=message):
        rows.accept_trees(
            context(), [0], [2], [4], [sampler(Params(), rejection=True)], 1.0, (), 3, trees,
            given, rejections,
        )  # fmt: skip


def test_distributions_are_kept_by_position() -> None:
    kept = _C.DraftDistributions(2, 2)
    for position in (7, 5, 6):
        kept.write(0, position, [position, 0.0])
    kept.write(0, 6, [1.0, 2.0])
    kept.write(1, 5, [3.0, 4.0])
    assert kept.held == 4
    assert [kept.read(0, p) for p in (4, 5, 6, 7)] == [[], [5.0, 0.0], [1.0, 2.0], [7.0, 0.0]]
    kept.truncate(0, 6)
    assert [kept.read(0, p) for p in (5, 6, 7)] == [[5.0, 0.0], [], []]
    kept.write(0, 6, [8.0, 9.0])
    kept.clear(0)
    assert (kept.held, kept.read(0, 6), kept.read(1, 5)) == (1, [], [3.0, 4.0])
    for call in (lambda: kept.truncate(2, 0), lambda: kept.clear(-1), lambda: kept.read(2, 0)):
        with pytest.raises(ValueError, match=r"row must be in 0\.\.1"):
            call()
    with pytest.raises(ValueError, match="probs has 3 entries for a vocabulary of 2"):
        kept.write(0, 0, [1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="vocab must be in"):
        _C.DraftDistributions(1, 0)
