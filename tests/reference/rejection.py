"""Rejection rules of speculative sampling, in any numbers (fractions for proofs, floats to compare
with), as generators that ask for their random decisions:

    ("flip", p, position, round)    is answered by True with probability p
    ("draw", weights, position, round)  by an index with probability weights[i] / sum(weights)

Leviathan et al., arXiv 2211.17192 (one draft, lenience); SpecInfer, arXiv 2305.09781 (a residual
round for each sibling); Sun et al., arXiv 2403.10444, algorithm 2 (block verification).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Sequence
from fractions import Fraction
from typing import Any

from tests.reference.philox import MASK, philox

Number = Any
Dist = list[Number]
Level = Callable[[int, tuple[int, ...]], Dist]
"""From (logit row, the row's tokens before the position) to the level's distribution there."""
Decisions = Generator[tuple[str, Any, int, int], Any, tuple[list[int], int, list[Dist]]]
"""Returns the accepted nodes (drafts of a chain), the own token, and what each token that the
review leaves is drawn from."""


def one_hot(token: int, vocab: int) -> Dist:
    return [Fraction(int(i == token)) for i in range(vocab)]


def residual(level: Dist, draft: Dist) -> Dist:
    return [max(p - q, 0 * p) for p, q in zip(level, draft, strict=True)]


def normalised(weights: Dist) -> Dist:
    total = sum(weights)
    return [w / total for w in weights]


def block(level: Level, prefix: Sequence[int], tokens: Sequence[int], drafts: Sequence[Dist]) -> (
    Decisions
):  # fmt: skip
    """Algorithm 2 of Sun et al.: `drafts[j]` is what tokens[j] was drawn from."""
    accepted, reach, kept = 0, Fraction(1), []
    final: Dist = []
    for j in range(len(tokens) + 1):
        row = (*prefix, *tokens[:j])
        dist = level(j, row)
        kept.append(dist)
        if j == len(tokens):
            left, passes = dist, reach
        else:
            left = residual([reach * p for p in dist], drafts[j])
            rest = sum(left)
            passes = Fraction(1) if reach == 1 else rest / (rest + 1 - reach)
        if j == 0 or (yield "flip", passes, len(row), 0):
            accepted, final = j, left if sum(left) > 0 else dist
        if j == len(tokens):
            break
        token = tokens[j]
        ratio = dist[token] / drafts[j][token] if dist[token] > 0 else 0
        reach = min(Fraction(1), reach * ratio)
        if reach == 0:
            break
    own = yield "draw", final, len(prefix) + accepted, 0
    return list(range(accepted)), own, kept[: accepted + 1]


def tree(
    level: Level,
    prefix: Sequence[int],
    tokens: Sequence[int],
    parents: Sequence[int],
    drafts: Sequence[Dist],
    lenience: Number = 1,
) -> Decisions:
    """A round for each child in order, from the root on; lenience is for the first child."""
    row, path, kept = list(prefix), [], []
    at = -1
    while True:
        dist = level(at + 1, tuple(row))
        children = [c for c, parent in enumerate(parents) if parent == at]
        left = dist
        kept.append(dist)
        chosen = -1
        for i, c in enumerate(children):
            scale = lenience if i == 0 else 1
            token = tokens[c]
            bar = min(scale * left[token] / drafts[c][token], Fraction(1))
            if i == 0 and lenience != 1:
                kept[-1] = after_one_round(dist, drafts[c], lenience)
            if (yield "flip", bar, len(row), i):
                chosen = c
                break
            left = normalised(residual([scale * p for p in left], drafts[c]))
        if chosen < 0:
            own = yield "draw", left, len(row), len(children)
            return path, own, kept
        at = chosen
        path.append(at)
        row.append(tokens[at])


def after_one_round(level: Dist, draft: Dist, lenience: Number) -> Dist:
    """The distribution of the token that one round leaves: accepted or drawn anew."""
    lenient = [lenience * p for p in level]
    accepted = [min(p, q) for p, q in zip(lenient, draft, strict=True)]
    left = residual(lenient, draft)
    if sum(left) == 0:
        return accepted
    rest = 1 - sum(accepted)
    return [a + rest * r for a, r in zip(accepted, normalised(left), strict=True)]


def outcomes(
    start: Callable[[], Decisions],
) -> Iterator[tuple[Number, tuple[list[int], int, list[Dist]]]]:
    """Every way the decisions can go, with its probability."""
    stack: list[list[Any]] = [[]]
    while stack:
        answers = stack.pop()
        run = start()
        prob: Number = Fraction(1)
        try:
            asked = next(run)
            for answer in answers:
                prob *= _chance(asked, answer)
                asked = run.send(answer)
        except StopIteration as end:
            yield prob, end.value
            continue
        choices = (True, False) if asked[0] == "flip" else range(len(asked[1]))
        stack += [[*answers, c] for c in choices if _chance(asked, c) > 0]


def _chance(asked: tuple[str, Any, int, int], answer: Any) -> Number:
    kind, what = asked[:2]
    if kind == "flip":
        return what if answer else 1 - what
    return what[answer] / sum(what)


def decide(
    run: Decisions, seed: int, sample_index: int, number: int
) -> tuple[list[int], int, list[Dist], float]:
    """The decisions that the engine's uniforms make, and the margin of the closest one."""
    margin = math.inf
    try:
        asked = next(run)
        while True:
            kind, what, position, round_ = asked
            words = philox(
                (number, position, sample_index, 1 + 256 * round_), (seed & MASK, seed >> 32)
            )
            accept, choose = (((words[i] << 20 | words[i + 1] >> 12) + 0.5) / 2**52 for i in (0, 2))
            if kind == "flip":
                margin = min(margin, abs(accept - what))
                asked = run.send(accept < what)
            else:
                bounds, total = [], 0.0
                for w in what:
                    total += w
                    bounds.append(total)
                margin = min([margin, *(abs(b / total - choose) for b in bounds[:-1])])
                asked = run.send(next(i for i, b in enumerate(bounds) if b > choose * total))
    except StopIteration as end:
        return (*end.value, margin)
