"""Drafts as trees: the bits of plain decoding along every path, and the commit of a path."""

from __future__ import annotations

import random
from typing import NamedTuple

import pytest
import torch

from cascade_engine.cache import PAGE_TOKENS, pages_for
from cascade_engine.models import llama
from tests.ops.native import every_isa
from tests.ops.support import (
    BF16,
    F32,
    NativePass,
    assert_same_bits,
    cached,
    random_weights,
    stale_memory,
)

both_dtypes = pytest.mark.parametrize("dtype", [F32, BF16], ids=["f32", "bf16"])
CAPACITY = 600  # positions; three attention chunks
NODES = 64
SLOTS = CAPACITY + NODES
VOCAB = 130


class Model:
    """A recorded model bound to `sequences` rows on shuffled pages of stale memory; not `whole`:
    one attention alone, whose float32 outputs stand for logits and hide no bit."""

    def __init__(
        self, isa: str, dtype: torch.dtype, threads: int, sequences: int, whole: bool = True
    ) -> None:
        weights = random_weights(3, dtype)
        self.config = weights.config
        blocks = pages_for(SLOTS)
        self.native = NativePass(isa, threads, sequences, SLOTS, blocks * sequences)
        pages = torch.randperm(blocks * sequences).int().view(sequences, blocks)
        self.native.block_table[:] = pages
        width = self.config.num_kv_heads * self.config.head_dim * PAGE_TOKENS
        self.data = stale_memory((self.config.num_layers, 2, blocks * sequences, width), dtype)
        recorder = self.native.recorder
        heads, dim = self.config.num_kv_heads, self.config.head_dim
        layers = recorder.cache_layers(self.data, heads, dim)
        if whole:
            self.logits = llama.forward(recorder, weights, layers)
            return
        layer = next(iter(layers))
        width = (self.config.num_heads + 2 * heads) * dim
        qkv = recorder.embedding(torch.randn(VOCAB, width, generator=torch.manual_seed(3)))
        recorder.rope_store(qkv, self.config.num_heads, layer)
        out = recorder.attention(qkv, self.config.num_heads, 0.4, layer, F32)
        self.logits = recorder.select_logit_rows(out)

    def write(self, row: int, start: int, tokens: list[int]) -> None:
        self.native.tokens[row, start : start + len(tokens)] = torch.tensor(tokens).int()

    def cached(self, row: int, tokens: int) -> torch.Tensor:
        table = self.native.block_table[row]
        return cached(self.data, table, tokens, self.config.num_kv_heads)


class Case(NamedTuple):
    """One row of a pass: a prefix, of which `fed` tokens are fed with the tree."""

    prefix: list[int]
    fed: int
    tokens: list[int]
    parents: list[int]

    @property
    def depths(self) -> list[int]:
        depths: list[int] = []
        for parent in self.parents:
            depths.append(0 if parent < 0 else depths[parent] + 1)
        return depths

    def path(self, node: int) -> list[int]:
        """The nodes from the root's child to `node`."""
        above: list[int] = [] if self.parents[node] < 0 else self.path(self.parents[node])
        return [*above, node]


BASES = (1, 2, 15, 16, 17, 63, 64, 200, 240, 250, 255, 256, 257, 300, 500, 511, 512, 530)


def random_case(rng: random.Random, base: int | None = None) -> Case:
    base = rng.choice(BASES) if base is None else base
    nodes = rng.choice([0, 1, 2, 7, 15, 16, 17, 32, 63, 64])
    reach = rng.choice([1, 3, 64])  # a star, bushes, chains
    parents = [max(-1, j - rng.randint(1, reach)) for j in range(nodes)]
    if rng.random() < 0.2:
        parents = list(range(-1, nodes - 1))
    tokens = [rng.randrange(VOCAB) for _ in range(nodes)]
    prefix = [rng.randrange(VOCAB) for _ in range(base)]
    return Case(prefix, min(base, rng.choice([1, 1, 2, 20, base])), tokens, parents)


def plain_logits(model: Model, row: int, case: Case) -> list[torch.Tensor]:
    """Logits after the prefix and after each node, decoded token by token. A node's ancestors are
    in their slots when it is fed, because nodes are visited depth first."""
    model.write(row, 0, case.prefix)
    run = model.native.program.run
    for start in range(len(case.prefix)):
        run([row], [start], [1], [1])
    found: list[torch.Tensor] = [torch.empty(0)] * (1 + len(case.tokens))
    found[0] = model.native.read(model.logits)
    todo = [j for j, parent in enumerate(case.parents) if parent < 0]
    depths = case.depths
    while todo:
        node = todo.pop()
        position = len(case.prefix) + depths[node]
        model.write(row, position, [case.tokens[node]])
        run([row], [position], [1], [1])
        found[1 + node] = model.native.read(model.logits)
        todo += [j for j, parent in enumerate(case.parents) if parent == node]
    return found


def run_trees(model: Model, cases: list[Case], left_padded: bool) -> list[torch.Tensor]:
    """One pass over all cases, their prefixes cached before; logits by case."""
    program = model.native.program
    for row, case in enumerate(cases):
        model.write(row, 0, case.prefix)
        model.write(row, len(case.prefix), [-1] * NODES)  # a tree's tokens are not the row's
        if case.fed < len(case.prefix):
            program.run([row], [0], [len(case.prefix) - case.fed], [0])
    program.run(
        list(range(len(cases))),
        [len(case.prefix) - case.fed for case in cases],
        [case.fed + len(case.tokens) for case in cases],
        [1 + len(case.tokens) for case in cases],
        left_padded,
        [(case.tokens, case.parents) for case in cases],
    )
    logits = model.native.read(model.logits)
    return list(logits.split([1 + len(case.tokens) for case in cases]))


@every_isa
@both_dtypes
@pytest.mark.parametrize("whole", [True, False], ids=["model", "attention"])
def test_every_path_has_the_bits_of_plain_decoding(
    isa: str, dtype: torch.dtype, whole: bool
) -> None:
    """Breaks when a sibling is seen, a position is a slot, or a tile adds in another order."""
    rng = random.Random(f"{isa}{dtype}")
    torch.manual_seed(5)
    plain = Model(isa, dtype, 1, 1, whole)
    for threads, rows in ((1, 1), (2, 3), (2, 6)):
        model = Model(isa, dtype, threads, rows, whole)
        for _ in range(2):
            cases = [random_case(rng) for _ in range(rows)]
            left_padded = rng.random() < 0.3
            found = run_trees(model, cases, left_padded)
            for case, logits in zip(cases, found, strict=True):
                expected = torch.cat(plain_logits(plain, 0, case))
                what = f"base {len(case.prefix)}, {case.parents}, {rows} rows, {left_padded}"
                assert_same_bits(logits, expected, what)


@both_dtypes
def test_a_committed_path_is_a_decoded_one(dtype: torch.dtype) -> None:
    """Keys, values and the next token's logits after any path was moved to its positions."""
    rng = random.Random(8)
    torch.manual_seed(6)
    model, plain = Model("", dtype, 2, 2), Model("", dtype, 1, 1)
    for base in (3, 16, 31, 250, 254, 505):
        cases = [random_case(rng, base), random_case(rng)]
        run_trees(model, cases, False)
        for row, case in enumerate(cases):
            path = case.path(rng.randrange(len(case.tokens))) if case.tokens else []
            model.native.program.commit(row, len(case.prefix), path)
            tokens = case.prefix + [case.tokens[node] for node in path]
            plain.write(0, 0, tokens)
            for start in range(len(tokens)):
                plain.native.program.run([0], [start], [1], [0])
            ours, expected = model.cached(row, len(tokens)), plain.cached(0, len(tokens))
            assert_same_bits(ours, expected, f"base {len(case.prefix)}, path {path}")
            logits = []
            for each, at in ((model, row), (plain, 0)):
                each.write(at, len(tokens), [17])
                each.native.program.run([at], [len(tokens)], [1], [1])
                logits.append(each.native.read(each.logits))
            assert_same_bits(*logits, "the token after the path")


REFUSED = [
    (([5] * 65, list(range(-1, 64))), "a tree has at most 64 nodes, got 65"),
    (([5, 6], [-1, 1]), r"parents\[1\] must be in -1..0, got 1"),
    (([5, 6], [-2, 0]), r"parents\[0\] must be in -1..-1, got -2"),
    (([5], [-1, 0]), "a tree of 1 tokens and 2 parents"),
    (([VOCAB], [-1]), f"token id {VOCAB} is outside the vocabulary of {VOCAB}"),
    (([5] * 20, [-1] * 20), "a tree of 20 tokens and 20 parents in a pass of 12"),
]


@pytest.mark.parametrize(("tree", "message"), REFUSED)
def test_a_bad_tree_is_refused(tree: tuple[list[int], list[int]], message: str) -> None:
    model = Model("", F32, 1, 1)
    model.write(0, 0, [1] * 10)
    nodes = len(tree[0]) if len(tree[0]) != 20 else 2
    with pytest.raises(ValueError, match=message):
        model.native.program.run([0], [0], [10 + nodes], [1], False, [tree])


def test_more_refusals() -> None:
    model = Model("", F32, 1, 1)
    program = model.native.program
    with pytest.raises(ValueError, match="trees too or none"):
        program.run([0], [0], [1], [1], False, [([], []), ([], [])])
    with pytest.raises(ValueError, match="a tree needs a token before it"):
        program.run([0], [0], [2], [1], False, [([3, 4], [-1, 0])])
    with pytest.raises(ValueError, match=f"row 0 ends at {SLOTS + 1}, past its capacity"):
        program.run([0], [SLOTS - 1], [2], [1], False, [([3], [-1])])
    with pytest.raises(ValueError, match=r"nodes must ascend within 0..63, got 3 after 5"):
        program.commit(0, 4, [5, 3])
    with pytest.raises(ValueError, match="past its capacity"):
        program.commit(0, SLOTS + 16, [1])
