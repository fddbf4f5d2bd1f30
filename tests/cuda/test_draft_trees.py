"""Trees of the statistical drafter on the device: node for node and bit for bit the description's,
as the CPU's are; and the batch of their review."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from cascade_engine import _C
from cascade_engine.ops.cuda_batch import NO_TREE, ancestor_words
from cascade_engine.ops.device_learned import DeviceLearned
from cascade_engine.ops.device_table import device_table
from cascade_engine.ops.launch import Launcher
from tests.ops.test_drafter import skewed, small_table
from tests.reference.statistical import BOUNDARY, Sources, draft

NODES = 64
Node = tuple[int, int, float]


@dataclass
class Asked:
    """One row: its own tokens, further ones that are context only, and what is wanted."""

    row: list[int]
    pending: list[int] = field(default_factory=list)
    prediction: list[int] = field(default_factory=list)
    budget: int = 32
    depth: int = 64


def propose(
    run: Launcher,
    asked: Sequence[Asked],
    doubts: Sequence[float],
    table: _C.NgramTable | None = None,
    finished: Sequence[int] | None = None,
    least: float = 0.0,
) -> list[list[Node]]:
    """Slots are given out backwards, with a hole in front."""
    number, width = len(asked), max(len(a.row + a.pending) for a in asked) + NODES + 3
    tokens = torch.full((number, width), -7, dtype=torch.int32)
    slots = list(reversed(range(number)))
    for slot, a in zip(slots, asked, strict=True):
        tokens[slot, : len(a.row + a.pending)] = torch.tensor(a.row + a.pending, dtype=torch.int32)
    tokens = tokens.to(run.device)

    def ints(values: Sequence[int], dtype: torch.dtype = torch.int32) -> torch.Tensor:
        return torch.tensor(list(values), dtype=dtype, device=run.device)

    learned = DeviceLearned(run)
    learned.learn(1, lambda: np.array(finished or [], np.int32).tobytes())
    parents = torch.full((number + 1, NODES), -7, dtype=torch.int32, device=run.device)
    probs = torch.full((number + 1, NODES), -7.0, device=run.device)
    drafted = torch.full((number + 1,), -1, dtype=torch.int32, device=run.device)
    texts = [ints(a.prediction) for a in asked]
    addresses = [0, *(t.data_ptr() if len(t) else 0 for t in texts)]
    predicts = any(a.prediction for a in asked)
    lengths = [len(a.row + a.pending) for a in asked]
    run(
        "draft_tree",
        device_table(table, run.device),
        rows=number + 1,
        slots=ints([-1, *slots]),
        lengths=ints([0, *lengths]),
        searched=ints([0, *(len(a.row) for a in asked)]),
        budgets=ints([9, *(a.budget for a in asked)]),
        depths=ints([9, *(a.depth for a in asked)]),
        tokens=tokens,
        token_stride=width,
        least=least,
        doubts=torch.tensor(doubts, dtype=torch.float32, device=run.device),
        **learned.arguments(),
        finished_length=ints([learned.size]),
        predictions=ints(addresses, torch.int64) if predicts else None,
        prediction_lengths=ints([0, *map(len, texts)]) if predicts else None,
        parents=parents,
        probs=probs,
        drafted=drafted,
    )
    assert int(drafted[0]) == 0
    found = []
    for r, (slot, length) in enumerate(zip(slots, lengths, strict=True), start=1):
        n = int(drafted[r])
        assert (tokens[slot, length + n :] == -7).all()
        assert (parents[r, n:] == -7).all()
        columns = (tokens[slot, length : length + n], parents[r, :n], probs[r, :n])
        found.append(list(zip(*(column.tolist() for column in columns), strict=True)))
    return found


def assert_equal(found: list[Node], expected: Sequence[tuple[int, int, np.float32]]) -> None:
    assert [node[:2] for node in found] == [node[:2] for node in expected]
    assert [np.float32(node[2]) for node in found] == [node[2] for node in expected]


@pytest.mark.parametrize("seed", range(8))
def test_trees_are_the_references(run: Launcher, seed: int) -> None:
    rng = random.Random(seed)
    vocab = [2, 5, 40][seed % 3]
    table = small_table(rng, vocab) if seed % 4 else None
    drafter = _C.Drafter(1, table, 4096)
    doubts = np.array(drafter.doubts, np.float32).reshape(2, 3, 2, 8)[0]
    finished: list[int] = []
    for _ in range(3 if seed % 2 else 0):
        finished += [*skewed(rng, vocab, rng.randrange(1, 60)), BOUNDARY]
    asked = [
        Asked(skewed(rng, vocab, length), skewed(rng, vocab, pending), prediction, budget, depth)
        for length, pending, prediction, budget, depth in (
            (0, 0, [], 4, 4),
            (1, 3, skewed(rng, vocab, 30), 7, 2),
            (30, 0, [], 12, 64),
            (170, 12, skewed(rng, vocab, 9), 64, 9),
            (90, 0, [], 3, 0),
            (90, 0, [], 0, 3),
        )
    ]
    if seed % 2:
        asked = [Asked(a.row, a.pending, [], a.budget, a.depth) for a in asked]
    least = 0.003 if seed % 3 == 1 else 0.0
    found = propose(run, asked, doubts.ravel().tolist(), table, finished or None, least)
    lookup = None if table is None else table.lookup
    for a, nodes in zip(asked, found, strict=True):
        sources = Sources(doubts, a.row, finished, lookup, a.prediction)
        expected = draft(sources, a.row + a.pending, a.budget, a.depth, least, False)
        assert_equal(nodes, expected)
    assert len(found[2]) > 0 or vocab == 40


def test_a_long_text_is_shared_out(run: Launcher) -> None:
    """More than a round of every warp, with the context near the ends of their parts."""
    rng = random.Random(11)
    row = [rng.randrange(3, 300) for _ in range(5000)] + [1, 2]
    part = -(-len(row) // 15)
    for searcher, follower in ((1, 0), (3, -1), (7, 0), (12, 1)):
        at = len(row) - searcher * part + follower
        row[at - 2 : at] = [1, 2]
    drafter = _C.Drafter(1)
    doubts = np.array(drafter.doubts, np.float32).reshape(2, 3, 2, 8)[0]
    (found,) = propose(run, [Asked(row, budget=6)], doubts.ravel().tolist())
    assert_equal(found, draft(Sources(doubts, row), row, 6, 64, 0.0, False))


def test_what_was_learnt_is_shared_out(run: Launcher) -> None:
    """More places behind a pair of tokens than a round of every warp; what followed changes from
    the earliest to the latest."""
    rng, finished = random.Random(12), []
    for size in (9000, 2, 1):
        finished += [rng.choice((1, 2, 2, 3 + i // 300)) for i in range(size)]
        finished.append(BOUNDARY)
    drafter = _C.Drafter(1)
    doubts = np.array(drafter.doubts, np.float32).reshape(2, 3, 2, 8)[0]
    highest = max(zip(finished[1:-1], finished, strict=False))
    rows = [[5, 5, 1, 2, 2], [3, 2, 1], [2], [2, 900], list(highest[::-1])]
    found = propose(
        run, [Asked(r, budget=9) for r in rows], doubts.ravel().tolist(), None, finished
    )
    for row, nodes in zip(rows, found, strict=True):
        sources = Sources(doubts, row, finished)
        assert_equal(nodes, draft(sources, row, 9, 64, 0.0, False))


@pytest.mark.parametrize("trees", [False, True])
def test_the_batch_of_a_review(run: Launcher, trees: bool) -> None:
    """Counts, ancestors and a copy of the drafts; a hole feeds nothing."""
    parents = [[-1, 0, 1, 0, 3, -1], [], list(range(-1, 63))]
    lengths, width = [5, 9, 2], 65
    tokens = torch.arange(3 * 80, dtype=torch.int32).view(3, 80).to(run.device)

    def ints(values: Sequence[int]) -> torch.Tensor:
        return torch.tensor(list(values), dtype=torch.int32, device=run.device)

    above = torch.full((4, NODES), -7, dtype=torch.int32)
    for r, each in enumerate(parents):
        above[r, : len(each)] = torch.tensor(each, dtype=torch.int32)
    out = torch.full((4, 4), -9, dtype=torch.int32, device=run.device)
    ancestors = torch.zeros(4, width, dtype=torch.int64, device=run.device)
    nodes = torch.full((4, NODES), -9, dtype=torch.int32, device=run.device)
    drafted = [len(each) for each in parents]
    run(
        "drafted_batch",
        rows=4,
        width=width,
        slots=ints([2, 0, 1, -1]),
        lengths=ints([*lengths, 0]),
        cached=None,
        frontiers=None,
        ends=None,
        drafted=ints([*drafted, 7]),
        parents=above.to(run.device) if trees else None,
        tokens=tokens,
        token_stride=80,
        starts=out[0],
        counts=out[1],
        bases=out[2],
        wanted=out[3],
        ancestors=ancestors,
        nodes=nodes,
    )
    starts, counts, bases, wanted = out.tolist()
    assert starts[:3] == [4, 8, 1]
    assert counts == wanted == [7, 1, 65, 0]
    assert bases == [*(lengths if trees else [NO_TREE] * 3), NO_TREE]
    for r, (slot, length, n) in enumerate(zip((2, 0, 1), lengths, drafted, strict=True)):
        assert nodes[r, :n].tolist() == tokens[slot, length : length + n].tolist()
        if trees:
            assert ancestors[r, 1 : 1 + n].tolist() == ancestor_words(parents[r]).tolist()


@pytest.mark.parametrize("trees", [False, True])
def test_the_batch_of_rows_that_lag(run: Launcher, trees: bool) -> None:
    """What is not cached is fed, from the frontier on with logits; rows at their end are holes."""
    lengths, cached, frontiers, drafted = [9, 6, 7, 5], [5, 5, 6, 2], [8, 6, 7, 5], [3, 2, 1, 0]
    if trees:
        frontiers = lengths
    tokens = torch.arange(4 * 80, dtype=torch.int32).view(4, 80).to(run.device)

    def ints(values: Sequence[int]) -> torch.Tensor:
        return torch.tensor(list(values), dtype=torch.int32, device=run.device)

    parents = torch.full((4, NODES), -1, dtype=torch.int32, device=run.device)
    parents[0, :3] = ints([-1, 0, 0])
    out = torch.full((4, 4), -9, dtype=torch.int32, device=run.device)
    ancestors = torch.zeros(4, 8, dtype=torch.int64, device=run.device)
    nodes = torch.full((4, NODES), -9, dtype=torch.int32, device=run.device)
    batch = {"rows": 4, "width": 8, "slots": ints(range(4)), "lengths": ints(lengths)}
    batch |= {"parents": parents if trees else None, "tokens": tokens, "token_stride": 80}
    batch |= {"starts": out[0], "counts": out[1], "bases": out[2], "wanted": out[3]}
    batch |= {"ancestors": ancestors, "nodes": nodes}
    run(
        "drafted_batch",
        **batch,
        cached=ints(cached),
        frontiers=ints(frontiers),
        ends=ints([10, 10, 7, 6]),
        drafted=ints(drafted),
    )
    starts, counts, bases, wanted = out.tolist()
    assert starts == [5, 5, 0, 2]
    assert counts == [4 + 3, 1 + 2, 0, 3]
    assert wanted == ([4, 3, 0, 1] if trees else [5, 3, 0, 1])
    assert bases == ([9, 6, NO_TREE, 5] if trees else [NO_TREE] * 4)
    assert ancestors[0, 4:7].tolist() == ([1, 3, 5] if trees else [0, 0, 0])
    assert nodes[0, :3].tolist() == tokens[0, 9:12].tolist()
    assert (nodes[2] == -9).all()
    run("drafted_batch", **batch, cached=None, frontiers=None, ends=None, drafted=None)
    assert out[:2].tolist() == [[8, 5, 6, 4], [1] * 4]
    assert out[3].tolist() == [1] * 4
