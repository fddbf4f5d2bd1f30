"""TokenTree's checks; TokenTrie against sets of paths."""

from __future__ import annotations

import math
import random

import pytest

from cascade_engine.levels import ROOT, TokenTree, TokenTrie

Path = tuple[int, ...]


def paths_of(tree: TokenTree) -> list[Path]:
    """The tokens from the root to each node."""
    found: list[Path] = []
    for token, parent in zip(tree.tokens, tree.parents, strict=True):
        found.append((*(found[parent] if parent != ROOT else ()), token))
    return found


class PlainMerge:
    """What was proposed, path by path: its best probability and its first source."""

    def __init__(self) -> None:
        self.prob: dict[Path, float] = {}
        self.source: dict[Path, int] = {}

    def add(self, path: Path, prob: float, source: int) -> None:
        self.prob[path] = max(prob, self.prob.get(path, 0.0))
        self.source.setdefault(path, source)

    def path_prob(self, path: Path) -> float:
        return math.prod(self.prob[path[:i]] for i in range(1, len(path) + 1))

    def best(self, chain: Path, nodes: int, depth: int) -> set[Path]:
        """The chain, then one path after the other: the likeliest one that hangs on."""
        chosen = {chain[:i] for i in range(1, len(chain) + 1)}
        while len(chosen) < nodes:
            open_paths = [
                p
                for p in self.prob
                if p not in chosen and len(p) <= depth and (len(p) == 1 or p[:-1] in chosen)
            ]
            if not open_paths:
                break
            chosen.add(max(open_paths, key=self.path_prob))
        return chosen


def propose(rng: random.Random, trie: TokenTrie, plain: PlainMerge, source: int) -> None:
    """One proposal of a random form, to both."""
    if rng.random() < 0.5:
        tokens = [rng.randrange(4) for _ in range(rng.randint(0, 6))]
        probs = [rng.random() for _ in tokens]
        nodes = trie.add_chain(ROOT, tokens, probs, [source] * len(tokens))
        assert len(nodes) == len(tokens)
        for i, prob in enumerate(probs):
            plain.add(tuple(tokens[: i + 1]), prob, source)
        return
    paths: list[Path] = []
    flat: tuple[list[int], list[int], list[float]] = ([], [], [])
    for j in range(rng.randint(1, 12)):
        parent = rng.randrange(-1, j)
        above = paths[parent] if parent >= 0 else ()
        path = (*above, rng.randrange(6))
        if path in paths:
            path = (*above, 10 + j)
        share = rng.uniform(0.1, 1.0)
        paths.append(path)
        for each, value in zip(flat, (path[-1], parent, share), strict=True):
            each.append(value)
        flat[2][j] *= flat[2][parent] if parent >= 0 else 1.0
        plain.add(path, share, source)
    trie.add_tree(ROOT, *flat, source)


@pytest.mark.parametrize("seed", range(150))
def test_the_trie_merges_as_sets_of_paths_do(seed: int) -> None:
    """Breaks when siblings are doubled, the budget picks by less than the whole path, a chain is
    cut, or a child comes before its parent (TokenTree checks that)."""
    rng = random.Random(seed)
    trie, plain = TokenTrie(), PlainMerge()
    for source in range(rng.randint(1, 4)):
        propose(rng, trie, plain, source)
    chain = [rng.randrange(3) for _ in range(rng.choice([0, 0, 2, 5]))]
    nodes = trie.add_chain(ROOT, chain, [0.5] * len(chain), [9] * len(chain))
    for i in range(len(chain)):
        plain.add(tuple(chain[: i + 1]), 0.5, 9)
    assert len(trie) == len(plain.prob)

    budget, depth = rng.choice([1, 5, 20, 64]), rng.choice([1, 3, 30])
    budget, depth = max(budget, len(chain)), max(depth, len(chain))
    tree = trie.best(ROOT, nodes, budget, depth)
    paths = paths_of(tree)
    assert len(set(paths)) == len(paths)
    assert set(paths) == plain.best(tuple(chain), budget, depth)
    assert paths[: len(chain)] == [tuple(chain[: i + 1]) for i in range(len(chain))]
    for path, prob, source, tokens in zip(
        paths, tree.probs, tree.sources, tree.depths, strict=True
    ):
        assert math.isclose(prob, plain.prob[path])
        assert source == plain.source[path]
        assert tokens == len(path) - 1
    assert tree.reach == max(map(len, paths), default=0)


@pytest.mark.parametrize("seed", range(60))
def test_one_tree_that_came_best_first_is_merged_alike(seed: int) -> None:
    """The way that spares the merge gives what the merge gives."""
    rng = random.Random(seed)
    tokens, parents, probs = [], [], []
    for j in range(rng.randint(0, 64)):
        tokens.append(j)
        parents.append(rng.randrange(-1, j))
        above = probs[parents[j]] if parents[j] >= 0 else 1.0
        probs.append(min(above, probs[-1] if probs else 1.0) * rng.uniform(0.8, 0.99))
    short, long = TokenTrie(), TokenTrie()
    short.add_tree(ROOT, tokens, parents, probs, 3)
    one = [long.add(ROOT, 99, 0.0, 4)]  # the least likely of all
    long.add_tree(ROOT, tokens, parents, probs, 3)
    for nodes, depth in ((64, 64), (10, 64), (64, 2), (5, 3)):
        ours, merged = short.best(ROOT, (), nodes, depth), long.best(ROOT, (), nodes, depth)
        keep = len(ours)
        assert merged.tokens[:keep] == ours.tokens
        assert merged.parents[:keep] == ours.parents
        assert [round(p, 9) for p in merged.probs[:keep]] == [round(p, 9) for p in ours.probs]
    node = short.add(ROOT, 99, 0.0, 4)
    assert (node, len(short), len(one)) == (len(tokens), len(tokens) + 1, 1)
    again = short.best(ROOT, (), 64, 64)
    assert again.tokens[: len(tokens)] == long.best(ROOT, (), 64, 64).tokens[: len(tokens)]


def test_the_likeliest_path_comes_first() -> None:
    trie = TokenTrie()
    trie.add_tree(ROOT, [5, 6, 7, 8], [-1, -1, 0, 2], [0.5, 0.45, 0.4, 0.3], 1)
    tree = trie.best(ROOT, (), 64, 64)
    assert (tree.tokens, tree.parents) == ([5, 7, 8, 6], [-1, 0, 1, -1])


def test_a_tree_behind_a_node() -> None:
    """What a drafting level reviews: only what hangs on what it has vouched for."""
    trie = TokenTrie()
    chain = trie.add_chain(ROOT, [1, 2, 3], [1.0, 1.0, 1.0], [2, 2, 2])
    trie.add(chain[0], 9, 0.5, 1)
    trie.add(ROOT, 8, 0.5, 1)
    tree = trie.best(chain[0], chain[1:], 64, 64)
    assert (tree.tokens, tree.parents) == ([2, 3, 9], [-1, 0, -1])


def test_an_overruled_sibling_is_worth_what_is_left() -> None:
    trie = TokenTrie()
    for token, prob in ((1, 1.0), (2, 0.75), (3, 0.1)):
        trie.add(ROOT, token, prob, 1)
    trie.overrule(1)
    tree = trie.best(ROOT, (), 2, 64)
    assert (tree.tokens, tree.probs) == ([2, 1], [0.75, 0.25])


def test_ancestors_are_words_of_bits() -> None:
    tree = TokenTree([5, 6, 7, 8], [-1, 0, 0, 2], [1.0] * 4, [1] * 4)
    assert tree.ancestors == [0b0001, 0b0011, 0b0101, 0b1101]
    assert tree.depths == [0, 1, 1, 2]


@pytest.mark.parametrize(
    ("tokens", "parents", "message"),
    [
        ([1] * 65, list(range(-1, 64)), "at most 64 nodes, got 65"),
        ([1, 2], [-1, 1], r"parents\[1\] must be in -1..0, got 1"),
        ([1], [-2], r"parents\[0\] must be in -1..-1, got -2"),
        ([1, 2], [-1], "differ in length"),
        ([1, 2, 2], [-1, 0, 0], "node 2: node 0 already has a child with token 2"),
    ],
)
def test_bad_trees(tokens: list[int], parents: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TokenTree(tokens, parents, [1.0] * len(tokens), [1] * len(tokens))


def test_a_path_tells_of_smaller_trees() -> None:
    """Eight nodes: 0 and 1 behind the root, 2 and 3 behind 0, 4 and 5 behind 2, 6 behind 5, 7
    behind 1. The right path is 0, 2, 5, 6."""
    parents = [ROOT, ROOT, 0, 0, 2, 2, 5, 1]
    probs = [0.6, 0.3, 0.5, 0.4, 0.5, 0.4, 0.9, 0.1]  # paths: .6 .3 .3 .24 .15 .12 .108 .03
    tree = TokenTree(list(range(8)), parents, probs, [1] * 8)
    path = [0, 2, 5, 6]
    assert tree.ranks(path) == [0, 2, 5, 6]
    assert tree.likeliest(path) == [True, True, False, True, False]
    assert tree.likeliest(path, 2) == [False, True, False]
    assert tree.likeliest([1], 0) == [False, True]
    # A tree of one node keeps 0, and 2 is written behind it; the next has 4 below that, so that 5
    # is written; the last keeps 6, and nothing is known of what is behind.
    assert tree.needed(path, [1, 2, 6, 7]) == [(3, 2), (3, 1), (2, 1), (1, 0)]
    assert tree.needed(path, [1, 2], 2) == [(2, 2), (2, 1)]
    # Behind 1 the tree has 7, which was not right: none would have gone on.
    assert tree.needed([1], [1, 8]) == [(2, 0), (1, 0)]
