"""Choice and acceptance on the device against the float64 oracle of the CPU's tests."""

from __future__ import annotations

import random

import pytest
import torch

from cascade_engine.ops.launch import Launcher
from tests.cuda.reviewed import NO_ALLOWED, NO_NUMBER, review, review_case
from tests.cuda.support import Rows
from tests.ops.native import mask_words
from tests.ops.test_accept import random_batch
from tests.ops.test_accept_trees import random_case as random_tree
from tests.ops.test_sampling import CLEAR
from tests.reference import sampling as oracle
from tests.reference.sampling import Params


@pytest.mark.parametrize("lenience", [1.0, 3.0])
def test_reviews_are_the_oracles(run: Launcher, lenience: float) -> None:
    unclear = accepted = 0
    for seed in range(12):
        case = random_batch(seed)
        with_probs = lenience > 1 or seed % 2 == 0
        got = review_case(run, case, lenience, with_probs)
        for i, row in enumerate(case.order):
            expected = oracle.review(
                case.logits_of(i),
                case.rows.tokens[row, : case.lengths[i]].tolist(),
                case.rows.probs[row, : case.lengths[i]].tolist(),
                case.frontiers[i],
                case.params[i],
                lenience,
                case.allowed[i],
            )
            if expected.margin < CLEAR:
                unclear += 1
                continue
            assert got.num_accepted[i] == expected.num_accepted, (seed, i)
            end = len(expected.tokens)
            assert got.tokens[row, :end].tolist() == expected.tokens, (seed, i)
            assert (got.own[i], got.lengths[i]) == (expected.tokens[-1], end)
            rest = slice(end, None)
            assert torch.equal(got.tokens[row, rest], case.rows.tokens[row, rest])
            accepted += expected.num_accepted
            if got.probs is not None:
                torch.testing.assert_close(
                    got.probs[row, :end], torch.tensor(expected.probs), rtol=2e-4, atol=1e-6
                )
                assert got.kept is not None
                gained = got.probs[row, case.frontiers[i] : end]
                assert torch.equal(got.kept[i, : len(gained)], gained)
                assert (got.kept[i, len(gained) :] == -1).all()
    assert accepted > 30
    assert unclear < 12


def oracle_tree(
    logits: list[list[float]], prefix: list[int], parents: list[int], tokens: list[int], p: Params
) -> tuple[list[int], int]:
    """Accepted nodes and the own token of a tree, node by node."""
    node, path, row = -1, [], list(prefix)
    while True:
        own, _ = oracle.choose(oracle.processed(logits[node + 1], row, p), len(row), p)
        children = [j for j, q in enumerate(parents) if q == node and tokens[j] == own]
        if not children:
            return path, own
        node = children[0]
        path.append(node)
        row.append(own)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_trees(run: Launcher, temperature: float) -> None:
    """Paths, compacted tokens and penalties that see the path, not the slots."""
    generator = random.Random(int(temperature * 10))
    vocab, number, nodes, frontier = 3, 6, 40, 11
    depths = []
    for attempt in range(6):
        parents = [
            [generator.randrange(max(-1, j - 5), j) for j in range(nodes)] for _ in range(number)
        ]
        tokens = torch.randint(0, vocab, (number, 64), dtype=torch.int32)
        tokens[1::2, :10] = 2  # of these rows an encoder's input
        params = [
            Params(
                temperature,
                seed=attempt * 10 + r,
                repetition_penalty=1 + 0.5 * (r % 2),
                frequency_penalty=0.7,
                prompt_length=10 if r % 2 else 5,
                source_length=10 * (r % 2),
            )
            for r in range(number)
        ]
        logits = torch.randn(number, nodes + 1, vocab) * 2
        rows = Rows(
            run, [frontier - 1] * number, [nodes + 1] * number, parents, tokens=tokens.clone()
        )
        got = review(run, rows, [nodes + 1] * number, logits, params)
        for r in range(number):
            drafted = tokens[r, frontier : frontier + nodes].tolist()
            prefix = tokens[r, :frontier].tolist()
            path, own = oracle_tree(
                logits[r].double().tolist(), prefix, parents[r], drafted, params[r]
            )
            assert got.paths[r] == path
            assert (got.num_accepted[r], got.own[r]) == (len(path), own)
            compact = [*prefix, *(drafted[j] for j in path), own]
            assert got.tokens[r, : len(compact)].tolist() == compact
            assert got.lengths[r] == len(compact)
            depths.append(len(path))
    assert max(depths) >= 3


@pytest.mark.parametrize("lenience", [1.0, 3.0])
def test_trees_are_the_oracles(run: Launcher, lenience: float) -> None:
    """With probabilities, masks and rows without nodes. Breaks when a node's probability is that by
    other logits than its parent's, or lenience takes another child than the likeliest."""
    unclear = accepted = 0
    for seed in range(14):
        rng = random.Random(seed)
        vocab = rng.choice([40, 70])
        cases = [random_tree(rng, vocab, rng.choice([0, 1, 6, 25])) for _ in range(3)]
        frontiers = [len(case.prefix) for case in cases]
        nodes = [len(case.tree.tokens) for case in cases]
        width = max(nodes) + 1
        tokens, probs = torch.full((3, 64), -7, dtype=torch.int32), torch.full((3, 64), -7.0)
        logits = torch.full((3, width, vocab), torch.nan)
        masks = [[[True] * vocab] * width for _ in cases]
        for i, (case, frontier) in enumerate(zip(cases, frontiers, strict=True)):
            tokens[i, : frontier + nodes[i]] = torch.tensor([*case.prefix, *case.tree.tokens])
            probs[i, frontier : frontier + nodes[i]] = torch.tensor(case.tree.probs)
            logits[i, : nodes[i] + 1] = case.logits
            masks[i][: nodes[i] + 1] = case.allowed or masks[i][: nodes[i] + 1]
        starts, counts = [f - 1 for f in frontiers], [n + 1 for n in nodes]
        parents = [case.tree.parents or None for case in cases]
        rows = Rows(run, starts, counts, parents, width=width, tokens=tokens)
        allowed = None
        if any(case.allowed for case in cases):
            allowed = mask_words([mask for part in masks for mask in part]).view(torch.int32)
        params = [case.params for case in cases]
        got = review(run, rows, counts, logits, params, probs, lenience, allowed)
        for i, case in enumerate(cases):
            path, expected = oracle.review_tree(
                case.logits.double().tolist(),
                case.prefix,
                case.tree,
                case.params,
                lenience,
                case.allowed,
            )
            if expected.margin < CLEAR:
                unclear += 1
                continue
            end = len(expected.tokens)
            assert (got.paths[i], got.own[i]) == (path, expected.tokens[-1]), (seed, i)
            assert got.tokens[i, :end].tolist() == expected.tokens
            assert got.probs is not None
            found, exact = got.probs[i, frontiers[i] : end], torch.tensor(expected.probs)
            torch.testing.assert_close(found, exact, rtol=2e-4, atol=1e-6)
            accepted += len(path)
    assert accepted > 30
    assert unclear < 10


def choose_one(run: Launcher, values: list[float], p: Params | None = None) -> int:
    logits = torch.tensor(values).view(1, 1, -1)
    rows = Rows(run, [0], [1], capacity=64)
    return review(run, rows, [1], logits, [p or Params(temperature=0.0)]).own[0]


def test_ties_and_what_is_not_a_number(run: Launcher) -> None:
    nan, inf = float("nan"), float("inf")
    hot = Params(temperature=1.0, seed=3)
    filtered = Params(temperature=1.0, seed=3, top_k=2)
    assert choose_one(run, [1.0, 5.0, 5.0]) == 1
    assert choose_one(run, [-1.0, -0.0, 0.0]) == 1
    assert choose_one(run, [nan, -3.0, nan]) == 1
    for p in (None, hot, filtered):
        assert choose_one(run, [nan] * 5, p) == NO_NUMBER
        assert choose_one(run, [0.0, inf, 0.0, 1.0], p) == NO_NUMBER
        assert choose_one(run, [-inf, nan, -inf], p) == NO_ALLOWED


def test_ties_at_the_cut_go_to_the_lowest_ids(run: Launcher) -> None:
    """Of five equal tokens exactly two are kept: ids 1 and 2."""
    values = [0.0, 3.0, 3.0, 3.0, 3.0, 3.0]
    seen = {choose_one(run, values, Params(1.0, top_k=2, seed=s)) for s in range(12)}
    assert seen == {1, 2}
    seen = {choose_one(run, values, Params(1.0, top_p=0.35, seed=s)) for s in range(12)}
    assert seen == {1, 2}


def test_a_large_vocabulary_is_shared_out(run: Launcher) -> None:
    """Several blocks; noise and arg max do not depend on who looks where."""
    values = torch.randn(3001)
    p = Params(temperature=0.9, seed=2**40 + 5, sample_index=3)
    expected, lead = oracle.choose(values.double().tolist(), 1, p)
    assert lead > CLEAR
    assert choose_one(run, values.tolist(), p) == expected
    assert choose_one(run, values.tolist()) == int(values.argmax())


def test_refusals(run: Launcher) -> None:
    rows = Rows(run, [0], [1], capacity=64)
    logits = torch.zeros(1, 1, 4)
    with pytest.raises(ValueError, match="lenience must be >= 1"):
        review(run, rows, [1], logits, [Params()], torch.ones(1, 64), 0.5)
    with pytest.raises(ValueError, match="compares probabilities"):
        review(run, rows, [1], logits, [Params()], None, 2.0)
