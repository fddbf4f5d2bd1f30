"""The rejection rules keep the distribution: exact enumeration in fractions of every draft, every
decision and every own token, against the product of the target's conditionals."""

from __future__ import annotations

import itertools
import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction

import pytest

from tests.reference import rejection as rule
from tests.reference.rejection import Dist

Row = tuple[int, ...]
Stops = Iterable[tuple[Fraction, Row]]


class Model:
    """Random conditionals by prefix; some tokens have none, some prefixes allow one token only."""

    def __init__(self, seed: int, vocab: int, certain: float = 0.0) -> None:
        self.seed, self.vocab, self.certain = seed, vocab, certain

    def __call__(self, row: Row) -> Dist:
        rng = random.Random(f"{self.seed} {row}")
        if rng.random() < self.certain:
            return rule.one_hot(rng.randrange(self.vocab), self.vocab)
        weights = [Fraction(rng.choice([0, 1, 2, 3, 7])) for _ in range(self.vocab)]
        weights[rng.randrange(self.vocab)] += 1
        return rule.normalised(weights)


def is_lossless(stops: Stops, target: Model, length: int) -> bool:
    """Whether rows that stop early and are continued by the target are the target's own."""
    mass: dict[Row, Fraction] = defaultdict(Fraction)
    for prob, row in stops:
        assert len(row) <= length
        mass[row] += prob
    for size in range(length):
        for row in itertools.product(range(target.vocab), repeat=size):
            if mass[row]:
                for token, p in enumerate(target(row)):
                    mass[(*row, token)] += mass[row] * p
    for row in itertools.product(range(target.vocab), repeat=length):
        expected = Fraction(1)
        for i, token in enumerate(row):
            expected *= target(row[:i])[token]
        if mass[row] != expected:
            return False
    return True


def drafted(
    draft: Callable[[Row], Dist], prefix: Row, length: Callable[[Row], int]
) -> Iterator[tuple[Fraction, Row, list[Dist]]]:
    """Chains behind `prefix`, as long as `length` of what was drafted says: it may not look ahead,
    but may depend on all tokens before."""
    stack: list[tuple[Fraction, Row, list[Dist]]] = [(Fraction(1), (), [])]
    while stack:
        prob, row, dists = stack.pop()
        if len(row) >= length(row):
            yield prob, row, dists
            continue
        dist = draft((*prefix, *row))
        stack += [(prob * p, (*row, t), [*dists, dist]) for t, p in enumerate(dist) if p]


def rounds(
    level: rule.Level, prefix: Row, tokens: Row, dists: list[Dist], lenience: Fraction | int = 1
) -> rule.Decisions:
    """A chain, token by token."""
    return rule.tree(level, prefix, tokens, range(-1, len(tokens) - 1), dists, lenience)


def reviewed_chains(
    target: Model,
    draft: Callable[[Row], Dist],
    length: Callable[[Row], int],
    review: Callable[..., rule.Decisions] = rule.block,
) -> Iterator[tuple[Fraction, Row]]:
    for prob, tokens, dists in drafted(draft, (), length):
        for p, (kept, own, _) in rule.outcomes(
            lambda tokens=tokens, dists=dists: review(  # type: ignore[misc]
                lambda _, row: target(row), (), tokens, dists
            )
        ):
            yield prob * p, (*tokens[: len(kept)], own)


@pytest.mark.parametrize("vocab", [3, 4, 5])
@pytest.mark.parametrize("certain", [0.0, 0.4, 1.0])
def test_block_verification_of_chains(vocab: int, certain: float) -> None:
    """Chains of 3, and chains whose length depends on what was drafted before."""
    for seed in range(3 if vocab == 5 else 8):
        target, draft = Model(seed, vocab), Model(seed + 100, vocab, certain)
        assert is_lossless(reviewed_chains(target, draft, lambda _: 3), target, 4)
        early = reviewed_chains(target, draft, lambda row: 1 if row[:1] == (0,) else 3)
        assert is_lossless(early, target, 4)


LEAST = Fraction(1, 3)
"""Confidence at which drafts end here."""


def confident(draft: Model, prefix: Row = (), most: int = 3) -> Callable[[Row], int]:
    """The length of a chain behind `prefix` that ends, at the latest with `most` tokens, behind the
    one with which the product of their probabilities falls below LEAST."""

    def length(row: Row) -> int:
        product = Fraction(1)
        for i, token in enumerate(row):
            product *= draft((*prefix, *row[:i]))[token]
            if product < LEAST:
                return i + 1
        return most

    return length


@pytest.mark.parametrize("vocab", [3, 4])
def test_stopping_on_confidence_is_lossless(vocab: int) -> None:
    """Of the draft in its own tokens, the one that ends the draft included: by blocks and token by
    token."""
    lengths = set()
    for seed in range(6):
        target, draft = Model(seed, vocab), Model(seed + 100, vocab, 0.2)
        length = confident(draft)
        lengths |= {len(tokens) for _, tokens, _ in drafted(draft, (), length)}
        assert is_lossless(reviewed_chains(target, draft, length), target, 4)
        assert is_lossless(reviewed_chains(target, draft, length, rounds), target, 4)
    assert lengths == {1, 2, 3}


def test_leaving_out_the_token_that_ends_a_draft_is_not() -> None:
    """Whether a token is proposed would depend on the token itself."""
    target, draft = Model(3, 3), Model(103, 3)
    stops = (
        (prob * p, (*tokens[: len(kept)], own))
        for prob, drawn, dists in drafted(draft, (), confident(draft))
        for tokens in [drawn if confident(draft)(drawn[:-1]) == 3 == len(drawn) else drawn[:-1]]
        for p, (kept, own, _) in rule.outcomes(
            lambda tokens=tokens, dists=dists: rule.block(  # type: ignore[misc]
                lambda _, row: target(row), (), tokens, dists[: len(tokens)]
            )
        )
    )
    assert not is_lossless(stops, target, 4)


def test_block_verification_keeps_more_than_token_by_token() -> None:
    """And never less: the example of Sun et al., section 2 (two tokens, blocks of two)."""
    target = lambda _: [Fraction(1, 3), Fraction(2, 3)]  # noqa: E731
    draft = lambda _: [Fraction(2, 3), Fraction(1, 3)]  # noqa: E731
    expected = {}
    for name in ("block", "tree"):
        expected[name] = Fraction(0)
        for prob, tokens, dists in drafted(draft, (), lambda _: 2):
            level = lambda _, row: target(row)  # noqa: E731
            start = {
                "block": lambda t=tokens, d=dists: rule.block(level, (), t, d),  # noqa: B023
                "tree": lambda t=tokens, d=dists: rule.tree(level, (), t, (-1, 0), d),  # noqa: B023
            }[name]
            for p, (kept, _, _) in rule.outcomes(start):
                expected[name] += prob * p * len(kept)
    assert expected == {"block": Fraction(11, 9), "tree": Fraction(10, 9)}


def shapes(nodes: int) -> Iterator[Row]:
    """Every tree of so many nodes, as parents."""
    return itertools.product(*(range(-1, j) for j in range(nodes)))


def reviewed_trees(
    target: Model, draft: Model, parents: Row, trunk: int, seed: int
) -> Iterator[tuple[Fraction, Row]]:
    """The trunk is drawn from the draft; other nodes depend on it in any way."""
    vocab = target.vocab
    for prob, chain, dists in drafted(draft, (), lambda _: trunk):
        rng = random.Random(f"{seed} {chain}")
        tokens, sources = list(chain), list(dists)
        for j in range(trunk, len(parents)):
            taken = {tokens[c] for c in range(j) if parents[c] == parents[j]}
            free = [t for t in range(vocab) if t not in taken] or list(range(vocab))
            tokens.append(rng.choice(free))
            sources.append(rule.one_hot(tokens[-1], vocab))
        for p, (path, own, _) in rule.outcomes(
            lambda tokens=tokens, sources=sources: rule.tree(  # type: ignore[misc]
                lambda _, row: target(row), (), tokens, parents, sources
            )
        ):
            yield prob * p, (*(tokens[node] for node in path), own)


def is_lossless_on_trees(nodes: int, vocab: int, seed: int, every: int = 1) -> bool:
    for i, parents in enumerate(shapes(nodes)):
        trunk = next((j for j, p in enumerate(parents) if p != j - 1), nodes)
        if i % every != seed % every:
            continue
        for length in {0, min(1, trunk), min(2, trunk), min(3, trunk)}:
            target, draft = Model(seed + i, vocab), Model(seed + i + 1000, vocab, 0.2)
            stops = reviewed_trees(target, draft, parents, length, seed)
            deepest = max(depth(parents, j) for j in range(nodes)) + 1
            if not is_lossless(stops, target, min(deepest + 1, 6)):
                return False
    return True


def depth(parents: Row, node: int) -> int:
    return 0 if parents[node] == -1 else 1 + depth(parents, parents[node])


@pytest.mark.parametrize(
    ("nodes", "vocab", "every"),
    [(1, 3, 1), (2, 3, 1), (3, 3, 1), (3, 5, 1), (4, 3, 1), (4, 4, 3), (5, 3, 1), (5, 5, 30)],
)
def test_residual_rounds_of_trees(nodes: int, vocab: int, every: int) -> None:
    """Every shape of up to 5 nodes, with a trunk drawn from a distribution and without."""
    assert is_lossless_on_trees(nodes, vocab, 7, every)


def test_two_siblings_by_hand() -> None:
    """Drafts without a distribution: [.2, .5, .3] stays what it is with two siblings."""
    target = [Fraction(2, 10), Fraction(5, 10), Fraction(3, 10)]
    law: dict[int, Fraction] = defaultdict(Fraction)
    hot = [rule.one_hot(t, 3) for t in (0, 1)]
    for p, (path, own, _) in rule.outcomes(
        lambda: rule.tree(lambda _, row: target, (), (0, 1), (-1, -1), hot)
    ):
        law[path[0] if path else own] += p
    assert [law[t] for t in range(3)] == target


def test_a_residual_that_is_not_normalised_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rule, "normalised", lambda weights: weights)
    target = [Fraction(2, 10), Fraction(5, 10), Fraction(3, 10)]
    law: dict[int, Fraction] = defaultdict(Fraction)
    hot = [rule.one_hot(t, 3) for t in (0, 1)]
    for p, (path, own, _) in rule.outcomes(
        lambda: rule.tree(lambda _, row: target, (), (0, 1), (-1, -1), hot)
    ):
        law[path[0] if path else own] += p
    assert [law[t] for t in range(3)] != target


def cascade(
    target: Model,
    middle: Model,
    low: Model,
    lenience: Fraction | int,
    tail: int,
    block: bool,
    stops: bool = False,
) -> Iterator[tuple[Fraction, Row]]:
    """`low` drafts two tokens, `middle` reviews them, `low` drafts `tail` more, the target reviews
    what `middle` left as drawn from what the review says it was. `stops`: `low` ends its drafts
    where they are not confident, and no tail follows where `middle` is not."""
    first = confident(low, (), 2) if stops else lambda _: 2
    for prob, tokens, dists in drafted(low, (), first):
        level = lambda _, row: middle(row)  # noqa: E731
        start = {
            True: lambda t=tokens, d=dists: rule.block(level, (), t, d),  # noqa: B023
            False: lambda t=tokens, d=dists: rounds(level, (), t, d, lenience),  # noqa: B023
        }[block]
        for p, (kept, own, vouched) in rule.outcomes(start):
            row = (*tokens[: len(kept)], own)
            sure = not stops or confident(middle)(row) == 3
            for more, extra, sources in drafted(low, row, lambda _: tail if sure else 0):  # noqa: B023
                whole, all_dists = (*row, *extra), [*vouched, *sources]
                for last, (kept0, own0, _) in rule.outcomes(
                    lambda w=whole, d=all_dists: rule.block(  # type: ignore[misc]
                        lambda _, prefix: target(prefix), (), w, d
                    )
                ):
                    yield prob * p * more * last, (*whole[: len(kept0)], own0)


@pytest.mark.parametrize("certain", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(
    ("lenience", "block"), [(1, True), (1, False), (Fraction(2), False), (Fraction(7, 2), False)]
)
def test_cascades_are_lossless(certain: float, lenience: Fraction | int, block: bool) -> None:
    """Also with lenience between the drafting levels, since the target knows the distribution that
    a lenient review in fact leaves."""
    for seed in range(3):
        target, middle = Model(seed, 3), Model(seed + 10, 3)
        low = Model(seed + 20, 3, certain)
        stops = cascade(target, middle, low, lenience, seed % 2, block)
        assert is_lossless(stops, target, 5)


@pytest.mark.parametrize("block", [True, False])
def test_cascades_that_stop_on_confidence_are_lossless(block: bool) -> None:
    """What reviews a token is settled by the tokens before it and by how they were reviewed."""
    for seed in range(4):
        target, middle, low = Model(seed, 3), Model(seed + 10, 3), Model(seed + 20, 3, 0.3)
        stops = cascade(target, middle, low, 1, 1, block, stops=True)
        assert is_lossless(stops, target, 5)


def test_the_level_s_own_distribution_would_not_do_with_lenience(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rule, "after_one_round", lambda level, draft, lenience: level)
    lossless = []
    for seed in range(4):
        target, middle, low = Model(seed, 3), Model(seed + 10, 3), Model(seed + 20, 3)
        stops = cascade(target, middle, low, Fraction(2), 0, False)
        lossless.append(is_lossless(stops, target, 5))
    assert not all(lossless)
