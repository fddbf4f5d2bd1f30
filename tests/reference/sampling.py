"""The acceptance rule in float64 and plain loops: processors, filters, Gumbel choice, review.

Processors follow transformers' order: bias, repetition penalty, frequency and presence penalty,
min_tokens, allowed tokens, temperature, top-k, top-p, min-p. Margins say how near a result was
to another one, so that a float32 implementation is only held to decisions that float32 can make.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Sequence

import torch

from tests.reference import philox

INF = math.inf
# Sums of probabilities are good to 1e-7 in float32, perturbed logits to about 2e-6.
FILTER_SCALE = 20.0


def as_float32(value: float) -> float:
    return torch.tensor(value, dtype=torch.float32).item()


@dataclasses.dataclass(frozen=True)
class Params:
    """As the native Sampler's keywords."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    min_tokens: int = 0
    stop_ids: tuple[int, ...] = ()
    seed: int = 0
    sample_index: int = 0
    prompt_length: int = 0
    source_length: int = 0


def processed(
    logits: Sequence[float], prefix: Sequence[int], p: Params, allowed: Sequence[bool] | None = None
) -> list[float]:
    """Logits after everything up to the allowed tokens; forbidden ones are -inf."""
    values = [-INF if math.isnan(x) else x for x in logits]
    for token, bias in p.logit_bias:
        values[token] += as_float32(bias)
    output = Counter(prefix[max(p.prompt_length, p.source_length) :])
    for token in set(prefix[p.source_length :]):
        penalty = as_float32(p.repetition_penalty)
        values[token] = values[token] * penalty if values[token] < 0 else values[token] / penalty
        values[token] -= as_float32(p.frequency_penalty) * output[token]
        values[token] -= as_float32(p.presence_penalty) * (output[token] > 0)
    if len(prefix) - p.prompt_length < p.min_tokens:
        for token in p.stop_ids:
            values[token] = -INF
    if allowed is not None:
        values = [x if ok else -INF for x, ok in zip(values, allowed, strict=True)]
    return values


@dataclasses.dataclass(frozen=True)
class Distribution:
    """Probabilities of the kept tokens (all others have none), and how clear the decisions of the
    filters were: FILTER_SCALE times the smallest difference of probabilities that made one."""

    probs: dict[int, float]
    margin: float


def distribution(values: Sequence[float], p: Params) -> Distribution:
    """Temperature and filters; temperature 0 counts as 1 without filters (lenience, logprobs)."""
    temperature = as_float32(p.temperature) or 1.0
    highest = max(values)
    order = sorted(range(len(values)), key=lambda i: (-values[i], i))
    order = [i for i in order if values[i] > -INF]
    weights = {i: math.exp((values[i] - highest) / temperature) for i in order}
    margin = 1.0
    if p.temperature > 0:
        if 0 < p.top_k < len(order):
            margin = min(margin, abs(weights[order[p.top_k - 1]] - weights[order[p.top_k]]) or 1.0)
            order = order[: p.top_k]
        if p.top_p < 1:
            total = sum(weights[i] for i in order)
            mass, kept = 0.0, 0
            while kept < len(order) and mass < as_float32(p.top_p) * total:
                mass += weights[order[kept]]
                kept += 1
                margin = min(margin, abs(mass / total - as_float32(p.top_p)))
            order = order[:kept]
        floor = as_float32(p.min_p)
        margin = min([margin, *(abs(weights[i] - floor) for i in order)])
        order = [i for i in order if weights[i] >= floor]
    total = sum(weights[i] for i in order)
    return Distribution({i: weights[i] / total for i in order}, FILTER_SCALE * margin)


def ranking(values: Sequence[float], position: int, p: Params) -> list[tuple[int, float]]:
    """What the `exact` rule compares, (token, score), best first, ties to the lowest id."""
    if p.temperature == 0:
        scores = {i: value for i, value in enumerate(values) if value > -INF}
    else:
        noise = philox.gumbel_row(len(values), position, p.seed, p.sample_index)
        kept = distribution(values, p).probs
        scores = {i: values[i] / as_float32(p.temperature) + noise[i] for i in kept}
    return sorted(scores.items(), key=lambda item: (-item[1], item[0]))


def choose(values: Sequence[float], position: int, p: Params) -> tuple[int, float]:
    """The token of the `exact` rule and its lead over the runner-up (0: an exact tie)."""
    ranked = ranking(values, position, p)
    return ranked[0][0], ranked[0][1] - ranked[1][1] if len(ranked) > 1 else INF


@dataclasses.dataclass(frozen=True)
class Review:
    """What a review leaves: tokens and probs up to and with the level's own token, and the
    smallest margin of any decision on the way."""

    num_accepted: int
    tokens: list[int]
    probs: list[float]
    margin: float


def review(
    logits: Sequence[Sequence[float]],
    tokens: Sequence[int],
    probs: Sequence[float],
    frontier: int,
    p: Params,
    lenience: float,
    allowed: Sequence[Sequence[bool]] | None = None,
) -> Review:
    """Reviews tokens[frontier:], of which logits[j] predicts position frontier + j."""
    row, given, margin = list(tokens[:frontier]), list(probs[:frontier]), INF
    for j in range(len(tokens) - frontier + 1):
        values = processed(logits[j], row, p, None if allowed is None else allowed[j])
        dist = distribution(values, p)
        own, lead = choose(values, frontier + j, p)
        margin = min(margin, lead, dist.margin)
        if frontier + j < len(tokens):
            drafted = tokens[frontier + j]
            prob, bar = dist.probs.get(drafted, 0.0), probs[frontier + j] / lenience
            if lenience > 1 and drafted != own:
                margin = min(margin, FILTER_SCALE * abs(prob - bar))
            if drafted == own or (lenience > 1 and prob > bar):
                row.append(drafted)
                given.append(prob if lenience > 1 else probs[frontier + j])
                continue
        return Review(j, [*row, own], [*given, dist.probs[own]], margin)
    raise AssertionError("a review ends with the level's own token")


@dataclasses.dataclass(frozen=True)
class Tree:
    """Drafted nodes: a token, a parent (-1: the row's last token), the drafter's probability."""

    tokens: list[int]
    parents: list[int]
    probs: list[float]

    def children(self, node: int) -> list[int]:
        return [j for j, parent in enumerate(self.parents) if parent == node]


def review_tree(
    logits: Sequence[Sequence[float]],
    prefix: Sequence[int],
    tree: Tree,
    p: Params,
    lenience: float,
    allowed: Sequence[Sequence[bool]] | None = None,
) -> tuple[list[int], Review]:
    """The accepted nodes, and what they leave; logits[0] predicts the token after the prefix,
    logits[1 + j] the one after node j."""
    path, row, given, margin = [], list(prefix), [], INF
    node = -1
    while True:
        values = processed(logits[node + 1], row, p, None if allowed is None else allowed[node + 1])
        dist = distribution(values, p)
        own, lead = choose(values, len(row), p)
        margin = min(margin, lead, dist.margin)
        children = tree.children(node)
        chosen = [c for c in children if tree.tokens[c] == own]
        if not chosen and lenience > 1 and children:
            prob = {c: dist.probs.get(tree.tokens[c], 0.0) for c in children}
            bars = {c: tree.probs[c] / lenience for c in children}
            margin = min([margin, *(FILTER_SCALE * abs(prob[c] - bars[c]) for c in children)])
            passing = sorted((c for c in children if prob[c] > bars[c]), key=lambda c: -prob[c])
            if len(passing) > 1:
                margin = min(margin, FILTER_SCALE * (prob[passing[0]] - prob[passing[1]]))
            chosen = passing[:1]
        if not chosen:
            tokens = [*row, own]
            return path, Review(len(path), tokens, [*given, dist.probs[own]], margin)
        node = chosen[0]
        path.append(node)
        row.append(tree.tokens[node])
        given.append(dist.probs.get(row[-1], 0.0) if lenience > 1 else tree.probs[node])
