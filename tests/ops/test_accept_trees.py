"""Review of drafted trees, and the runners-up of a choice, against the oracle in float64."""

from __future__ import annotations

import dataclasses
import itertools
import math
import random

import pytest
import torch

from cascade_engine import _C
from tests.ops.native import Rows, context, every_isa, mask_words, sampler
from tests.ops.test_sampling import CLEAR, random_params
from tests.reference import sampling as oracle
from tests.reference.sampling import Params, Tree

CAPACITY = 60


@dataclasses.dataclass
class Case:
    """One row under review: a prefix and a tree, of which some nodes are the level's own tokens."""

    prefix: list[int]
    tree: Tree
    params: Params
    logits: torch.Tensor
    allowed: list[list[bool]] | None


def random_case(rng: random.Random, vocab: int, nodes: int) -> Case:
    prefix = [rng.randrange(vocab) for _ in range(rng.randint(1, 25))]
    p = random_params(rng, vocab, len(prefix))
    generator = torch.Generator().manual_seed(rng.randrange(2**32))
    logits = torch.randn(nodes + 1, vocab, generator=generator) * 3
    allowed = None
    if rng.random() < 0.3:
        allowed = [[i < 4 or rng.random() < 0.7 for i in range(vocab)] for _ in range(nodes + 1)]
    tree = Tree([], [], [])
    paths = {-1: prefix}
    reach = rng.choice([1, 4, 64])
    for j in range(nodes):
        parent = max(-1, j - rng.randint(1, reach))
        above = paths[parent]
        taken = {tree.tokens[c] for c in tree.children(parent)}
        mask = None if allowed is None else allowed[parent + 1]
        values = oracle.processed(logits[parent + 1].double().tolist(), above, p, mask)
        token = oracle.choose(values, len(above), p)[0]
        if token in taken or rng.random() < 0.4:
            token = rng.choice([t for t in range(vocab) if t not in taken])
        tree.tokens.append(token)
        tree.parents.append(parent)
        tree.probs.append(rng.random())
        paths[j] = [*above, token]
    return Case(prefix, tree, p, logits, allowed)


@every_isa
@pytest.mark.parametrize("lenience", [1.0, 3.0])
def test_reviews_of_trees_are_the_oracles(isa: str, lenience: float) -> None:
    """Rows with trees and without in one call. Breaks when a node is judged on another prefix or
    mask, siblings do not share their noise, or another child is taken."""
    unclear = accepted = moved = 0
    for seed in range(40):
        rng = random.Random(seed)
        vocab = rng.choice([40, 70, 300])
        cases = [random_case(rng, vocab, rng.choice([0, 1, 6, 25])) for _ in range(3)]
        rows = Rows(
            torch.full((3, CAPACITY), -7, dtype=torch.int32),
            torch.full((3, CAPACITY), -7.0),
            torch.cat([case.logits for case in cases]),
        )
        masks = [None if case.allowed is None else mask_words(case.allowed) for case in cases]
        for i, case in enumerate(cases):
            rows.tokens[i, : len(case.prefix)] = torch.tensor(case.prefix)
        frontiers = [len(case.prefix) for case in cases]
        found = rows.accept_trees(
            context(isa, 2),
            [0, 1, 2],
            frontiers,
            [f + len(c.tree.tokens) for f, c in zip(frontiers, cases, strict=True)],
            [sampler(case.params) for case in cases],
            lenience,
            [0 if m is None else m.data_ptr() for m in masks],
            len(rows.logits),
            [(c.tree.tokens, c.tree.parents, c.tree.probs) for c in cases],
        )
        for i, case in enumerate(cases):
            logits = case.logits.double().tolist()
            path, review = oracle.review_tree(
                logits, case.prefix, case.tree, case.params, lenience, case.allowed
            )
            if review.margin < CLEAR:
                unclear += 1
                continue
            assert found[i] == (len(path), review.tokens[-1], path), (seed, i)
            end = len(review.tokens)
            assert rows.tokens[i, :end].tolist() == review.tokens
            assert rows.tokens[i, end:].eq(-7).all()
            probs = torch.tensor(review.probs)
            assert torch.allclose(rows.probs[i, frontiers[i] : end], probs, rtol=1e-4, atol=1e-7)
            accepted += len(path)
            moved += path != list(range(len(path)))
    assert unclear < 20
    assert accepted > 100
    assert moved > 20


@every_isa
def test_siblings_are_the_runners_up(isa: str) -> None:
    """In the order of what is compared: logits, or logits / temperature + noise."""
    unclear = 0
    for seed in range(60):
        rng = random.Random(seed)
        case = random_case(rng, rng.choice([12, 300]), 3)
        position, count = len(case.prefix), rng.choice([1, 3, 20])
        logits = case.logits[:1]
        mask = None if case.allowed is None else mask_words(case.allowed[:1])
        values = oracle.processed(
            logits[0].double().tolist(),
            case.prefix,
            case.params,
            None if case.allowed is None else case.allowed[0],
        )
        ranked = oracle.ranking(values, position, case.params)
        dist = oracle.distribution(values, case.params)
        here = rng.choice(ranked)[0] if rng.random() < 0.5 else ranked[0][0]
        row = torch.tensor([[*case.prefix, here]], dtype=torch.int32)
        [[found]] = _C.siblings(
            context(isa),
            logits.data_ptr(),
            logits.stride(0),
            logits.shape[1],
            row.data_ptr(),
            row.shape[1],
            [0],
            [0],
            [position],
            [1],
            [sampler(case.params)],
            [count],
            [] if mask is None else [mask.data_ptr()],
        )
        expected = [token for token, _ in ranked if token != here][:count]
        gaps = [a - b for (_, a), (_, b) in itertools.pairwise(ranked[: count + 2])]
        if min([dist.margin, *gaps]) < CLEAR:
            unclear += 1
            continue
        assert [token for token, _ in found] == expected, seed
        for token, prob in found:
            assert math.isclose(prob, dist.probs[token], rel_tol=1e-4, abs_tol=1e-7)
    assert unclear < 20


def accept_one(tree: tuple[list[int], list[int], list[float]], lenience: float = 1.0) -> None:
    rows = Rows(torch.ones(1, 8, dtype=torch.int32), torch.ones(1, 8), torch.zeros(3, 9))
    greedy = [sampler(Params(temperature=0.0))]
    rows.accept_trees(context(), [0], [5], [7], greedy, lenience, (), 3, [tree])


@pytest.mark.parametrize(
    ("tree", "lenience", "message"),
    [
        (([1, 2], [-1, 1], [1.0, 1.0]), 1.0, r"trees\[0\]: parents\[1\] must be in -1..0, got 1"),
        (([1, -2], [-1, 0], [1.0, 1.0]), 1.0, r"trees\[0\]: tokens\[1\] is -2"),
        (([1], [-1], [1.0]), 1.0, r"trees\[0\] has 1 tokens, 1 parents and 1 probs .* = 2 nodes"),
        (([1, 2], [-1], [1.0, 1.0]), 1.0, "2 tokens, 1 parents"),
        (([1, 2], [-1, 0], []), 2.0, r"lenience 2 compares probabilities: trees\[0\] has none"),
    ],
)
def test_bad_trees(
    tree: tuple[list[int], list[int], list[float]], lenience: float, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        accept_one(tree, lenience)


def test_a_tree_may_have_more_nodes_than_the_row_has_room() -> None:
    """Depth counts, not the number of nodes."""
    accept_one(([1, 2], [-1, -1], []))
    rows = Rows(torch.ones(1, 8, dtype=torch.int32), None, torch.zeros(6, 9))
    greedy = [sampler(Params(temperature=0.0))]
    star = ([1, 2, 3, 4, 5], [-1] * 5, [])
    rows.accept_trees(context(), [0], [6], [11], greedy, 1.0, (), 6, [star])
    chain = ([1, 2, 3, 4, 5], [-1, 0, 1, 2, 3], [])
    with pytest.raises(ValueError, match=r"lengths\[0\] = 11 leaves no place for the bonus token"):
        rows.accept_trees(context(), [0], [6], [11], greedy, 1.0, (), 6, [chain])
