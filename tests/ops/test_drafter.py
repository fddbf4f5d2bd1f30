"""The statistical drafter against its description, and what it keeps of rows."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from cascade_engine import _C
from cascade_engine.tables import BuildOptions, build_table
from tests.ops.native import context
from tests.reference.statistical import BOUNDARY, Sources, draft

Nodes = list[tuple[int, int, float]]
LEAST = 0.0


def propose(
    drafter: _C.Drafter,
    tokens: Sequence[int],
    budget: int,
    depth: int = 64,
    least: float = LEAST,
    chain: bool = False,
    prediction: Sequence[int] = (),
    row: int = 0,
) -> Nodes:
    width = max(len(tokens), 1)
    memory = torch.zeros((row + 1, width), dtype=torch.int32)
    memory[row, : len(tokens)] = torch.tensor(tokens, dtype=torch.int32)
    out = torch.full((2, 66), -7, dtype=torch.int32)
    probs = torch.full((66,), -7.0)
    expected = torch.tensor(prediction, dtype=torch.int32)
    (count,) = drafter.propose(
        context(),
        tokens=memory.data_ptr(),
        token_stride=width,
        rows=[row],
        lengths=[len(tokens)],
        budgets=[budget],
        depths=[depth],
        chain=chain,
        least=least,
        out_tokens=out[0].data_ptr(),
        out_parents=out[1].data_ptr(),
        out_probs=probs.data_ptr(),
        out_stride=64,
        predictions=[expected.data_ptr()] if len(prediction) else [0],
        prediction_lengths=[len(prediction)],
    )
    assert (out[:, count:] == -7).all()
    assert (probs[count:] == -7).all()
    columns = (out[0, :count].tolist(), out[1, :count].tolist(), probs[:count].tolist())
    return list(zip(*columns, strict=True))


def skewed(rng: random.Random, vocab: int, length: int) -> list[int]:
    """Skewed tokens with copies of earlier passages, so that long contexts recur."""
    tokens: list[int] = []
    while len(tokens) < length:
        if len(tokens) > 4 and rng.random() < 0.2:
            at = rng.randrange(len(tokens))
            tokens += tokens[at : at + rng.randrange(1, 20)]
        else:
            tokens.append(int(vocab * rng.random() ** 2))
    return tokens[:length]


def small_table(rng: random.Random, vocab: int) -> _C.NgramTable:
    documents = [skewed(rng, vocab, rng.randrange(2, 120)) for _ in range(6)]
    return build_table(documents, vocab, BuildOptions(rng.choice([1, 3, 5]))).native()


@pytest.mark.parametrize("seed", range(60))
def test_drafts_are_the_references(seed: int) -> None:
    rng = random.Random(seed)
    vocab = [2, 5, 40][seed % 3]
    table = small_table(rng, vocab) if seed % 4 else None
    drafter = _C.Drafter(1, table, 4096 if seed % 2 else 0)
    doubts = np.array(drafter.doubts, np.float32).reshape(2, 3, 2, 8)
    finished: list[int] = []
    for _ in range(3 if seed % 2 else 0):
        answer = skewed(rng, vocab, rng.randrange(1, 60))
        drafter.begin(0, answer, 0)
        drafter.finish(0)
        finished += [*answer, BOUNDARY]
    row = skewed(rng, vocab, rng.choice([0, 1, 2, 30, 150]))
    pending = skewed(rng, vocab, rng.choice([0, 0, 3, 12]))
    prediction = skewed(rng, vocab, 30) if seed % 5 == 0 else []
    drafter.begin(0, row)
    for chain in (False, True):
        lookup = None if table is None else table.lookup
        sources = Sources(doubts[int(chain)], row, finished, lookup, prediction)
        for budget, depth, least in ((0, 4, 0.0), (1, 1, 0.0), (7, 2, 0.1), (32, 64, 0.0),
                                     (64, 9, 0.003), (3, 0, 0.0)):  # fmt: skip
            expected = draft(sources, row + pending, budget, depth, least, chain)
            found = propose(drafter, row + pending, budget, depth, least, chain, prediction)
            assert [node[:2] for node in found] == [node[:2] for node in expected]
            assert [np.float32(node[2]) for node in found] == [node[2] for node in expected]


def test_trees_are_topological_and_best_first() -> None:
    rng = random.Random(1)
    drafter = _C.Drafter(1, small_table(rng, 30))
    row = skewed(rng, 30, 300)
    drafter.begin(0, row)
    nodes = propose(drafter, row, 64)
    assert len(nodes) == 64
    assert len({(parent, token) for token, parent, _ in nodes}) == 64
    chain = 1
    while nodes[chain][1] == chain - 1:
        chain += 1
    for i, (_, parent, prob) in enumerate(nodes):
        assert parent < i
        assert 0 < prob <= (1.0 if parent < 0 else nodes[parent][2])
        siblings = [n[2] for n in nodes[: i + 1] if n[1] == parent]
        assert siblings == sorted(siblings, reverse=True)
    rest = [node[2] for node in nodes[chain:]]
    assert rest == sorted(rest, reverse=True)


def test_a_smaller_budget_drafts_the_likelier_nodes() -> None:
    rng = random.Random(2)
    drafter = _C.Drafter(1)
    row = skewed(rng, 6, 200)
    drafter.begin(0, row)
    many, few = propose(drafter, row, 64), propose(drafter, row, 12)
    assert len(few) == 12
    # Pruning leaves out shares that are too small to matter, so that sums may differ a little.
    assert sum(n[2] for n in few) == pytest.approx(
        sum(sorted((n[2] for n in many), reverse=True)[:12]), rel=0.02
    )


@pytest.mark.parametrize("vocab", [2, 7, 300])
def test_kept_up_rows_are_as_if_from_scratch(vocab: int) -> None:
    rng = random.Random(vocab)
    drafter, fresh = _C.Drafter(2), _C.Drafter(1)
    row = skewed(rng, vocab, 20)
    drafter.begin(1, row)
    for _ in range(120):
        if rng.random() < 0.4:
            keep = rng.randrange(max(0, len(row) - 40), len(row) + 1)
            del row[keep:]
            drafter.truncate(1, keep)
        else:
            more = skewed(rng, vocab, rng.randrange(0, 45))
            row += more
            drafter.extend(1, more)
        assert drafter.length(1) == len(row)
        fresh.begin(0, row)
        tail = row + skewed(rng, vocab, rng.randrange(3))
        assert propose(drafter, tail, 40, row=1) == propose(fresh, tail, 40)
    assert len(row) > 200


def test_a_released_row_knows_nothing() -> None:
    drafter = _C.Drafter(2)
    drafter.begin(0, [1, 2, 3, 1, 2])
    drafter.begin(1, [1, 2, 4, 1, 2])
    assert propose(drafter, [1, 2, 3, 1, 2], 1)[0][0] == 3
    drafter.release(0)
    assert drafter.length(0) == 0
    assert propose(drafter, [1, 2], 4) == []
    assert propose(drafter, [1, 2, 4, 1, 2], 1, row=1)[0][0] == 4


def test_learning_is_off_unless_asked_for() -> None:
    drafter = _C.Drafter(1)
    drafter.begin(0, list(range(100)), 10)
    drafter.finish(0)
    assert drafter.learned == 0
    assert propose(drafter, [20, 21, 22, 23], 4) == []


def test_only_answers_of_finished_requests_are_learnt() -> None:
    drafter = _C.Drafter(2, None, 1000)
    drafter.begin(0, list(range(100)), 50)
    assert propose(drafter, [60, 61, 62], 2, row=1) == []
    drafter.release(0)
    assert drafter.learned == 0
    drafter.begin(0, list(range(100)), 50)
    drafter.finish(0)
    assert drafter.length(0) == 0
    assert drafter.learned == 50 + 8 + 1  # and the prompt's end, and a boundary
    assert [n[0] for n in propose(drafter, [60, 61, 62], 2, chain=True)] == [63, 64]
    assert [n[0] for n in propose(drafter, [47, 48, 49], 1)] == [50]
    assert propose(drafter, [30, 31, 32], 2) == []
    drafter.begin(0, [7, 8, 9])  # a request without an answer
    drafter.finish(0)
    assert drafter.learned == 59
    drafter.clear_learned()
    assert drafter.learned == 0
    assert propose(drafter, [60, 61, 62], 2) == []


def test_answers_do_not_run_into_each_other() -> None:
    drafter = _C.Drafter(1, None, 1000)
    for answer in ([1, 2, 3, 4], [5, 6, 7, 8]):
        drafter.begin(0, answer, 0)
        drafter.finish(0)
    assert propose(drafter, [2, 3, 4], 4) == []
    assert [n[0] for n in propose(drafter, [1, 2], 9, chain=True)] == [3, 4]


def test_learning_is_bounded_and_keeps_the_latest() -> None:
    drafter = _C.Drafter(1, None, 200)
    for i in range(40):
        drafter.begin(0, list(range(1000 * i, 1000 * i + 30)), 0)
        drafter.finish(0)
        assert drafter.learned <= 200
        newest = [1000 * i, 1000 * i + 1]
        assert [n[0] for n in propose(drafter, newest, 1)] == [1000 * i + 2]
    held = drafter.nbytes
    assert propose(drafter, [0, 1], 1) == []
    drafter.begin(0, list(range(5000)), 0)  # longer than all that may be kept
    drafter.finish(0)
    assert drafter.learned <= 200
    assert [n[0] for n in propose(drafter, [4990, 4991], 1)] == [4992]
    assert held < 200_000
    drafter.clear_learned()
    assert drafter.nbytes < 2_000_000


def test_bad_input_is_refused_and_loses_nothing() -> None:
    drafter = _C.Drafter(1, None, 64)
    drafter.begin(0, [1, 2, 3, 1, 2])
    before = propose(drafter, [1, 2, 3, 1, 2], 8)
    for call, message in (
        (lambda: _C.Drafter(0), "rows must be >= 1, got 0"),
        (lambda: _C.Drafter(1, None, 5), r"learn_tokens must be 0 .* got 5"),
        (lambda: drafter.begin(1, [1]), r"row must be in 0\.\.0, got 1"),
        (lambda: drafter.begin(0, [1], 2), r"prompt must be in 0\.\.1, got 2"),
        (lambda: drafter.begin(0, [1, -2]), "token 1 must be >= 0, got -2"),
        (lambda: drafter.begin(0, [1, BOUNDARY]), "token 1 must be >= 0, got -1"),
        (lambda: drafter.extend(0, [4, -3]), "token 1 must be >= 0, got -3"),
        (lambda: drafter.truncate(0, 6), r"length must be in 0\.\.5, got 6"),
        (lambda: drafter.truncate(0, -1), r"length must be in 0\.\.5, got -1"),
        (lambda: propose(drafter, [1, 2, 3], 8), r"lengths\[0\] must be in 5\.\.3"),
        (lambda: propose(drafter, [1, 2, 3, 1, 2], 65), r"budgets\[0\] must be in 0\.\.64, got 65"),
        (lambda: propose(drafter, [1, 2, 3, 1, 2], -1), r"budgets\[0\] must be in 0\.\.64, got -1"),
        (lambda: propose(drafter, [1, 2, 3, 1, 2], 1, -1), r"depths\[0\] must be >= 0, got -1"),
        (lambda: propose(drafter, [1, 2, 3, 1, 2], 1, 1, -0.5), "least must be >= 0, got -0.5"),
        (lambda: setattr(drafter, "doubts", [1.0]), "doubts must have 96 numbers, got 1"),
        (lambda: setattr(drafter, "doubts", [0.0] * 96), r"doubts\[0\] must be > 0, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    assert propose(drafter, [1, 2, 3, 1, 2], 8) == before
