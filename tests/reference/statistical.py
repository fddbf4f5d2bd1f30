"""The statistical drafter by its description (csrc/include/ce/draft_tree.h): occurrences found by
looking everywhere, shares in float32 in the order that the description gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from tests.reference.drafting import longest_match

F = np.float32
WINDOW = 16
BOUNDARY = -1
LAYERS = [
    *[("row", n) for n in range(8, 0, -1)],
    *[("finished", n) for n in range(8, 3, -1)],
    *[("table", n) for n in range(8, 0, -1)],
    ("finished", 3),
    ("finished", 2),
]
Layer = tuple[int, float, list[tuple[int, float]]]


@dataclass
class Sources:
    """doubts: [source][several, one][order - 1]; lookup: the table's layers for a context."""

    doubts: np.ndarray
    row: list[int] = field(default_factory=list)
    finished: list[int] = field(default_factory=list)
    lookup: object = None
    prediction: list[int] = field(default_factory=list)


def followers(text: Sequence[int], context: Sequence[int]) -> list[int]:
    """What followed the context in the text, the latest first, at most WINDOW of them."""
    n, found = len(context), []
    for i in range(len(text) - 1, n - 1, -1):
        if list(text[i - n : i]) == list(context) and text[i] != BOUNDARY:
            found.append(text[i])
    return found[:WINDOW]


def blend(
    s: Sources,
    context: list[int],
    path: np.float32,
    floor: np.float32,
    rest: np.float32,
    shares: dict[int, np.float32],
) -> None:
    """Adds to the shares by token, in the order in which they are found."""
    enough = max(F(0.005), F(0.1) * floor / path)
    table = {} if s.lookup is None else {n: (t, f) for n, t, f in s.lookup(context[-8:])}
    for source, n in LAYERS:
        if rest < enough:
            break
        if n > len(context):
            continue
        spent = F(0)
        if source == "table":
            if n not in table:
                continue
            total, successors = table[n]
            successors = successors[:WINDOW]
            each = rest / (F(total) + s.doubts[2, int(len(successors) == 1), n - 1])
            for token, count in successors:
                share = min(each * F(count), rest - spent)
                shares[token] = shares.get(token, F(0)) + share
                spent = spent + share
        else:
            text = s.row if source == "row" else s.finished
            seen = followers(text, context[len(context) - n :])
            if not seen:
                continue
            one = len(set(seen)) == 1
            each = rest / (F(len(seen)) + s.doubts[int(source == "finished"), int(one), n - 1])
            spent = each * F(len(seen))
            for token in seen[: 1 if one else None]:
                shares[token] = shares.get(token, F(0)) + (spent if one else each)
        rest = rest - spent


def draft(
    s: Sources, tokens: list[int], budget: int, depth: int, least: float, chain: bool
) -> list[tuple[int, int, np.float32]]:
    """(token, parent, path probability) of each node, the likely chain first."""
    matched, following = longest_match(s.prediction, tokens, 32)
    nodes: list[tuple[int, int, np.float32, int, int]] = []  # ..., depth, place in the prediction
    opened: list[tuple[np.float32, int, int, int]] = []

    def room() -> int:
        return 1 if chain else budget - len(nodes)

    def expand(parent: int) -> None:
        context, at = [], parent
        while at >= 0:
            context.insert(0, nodes[at][0])
            at = nodes[at][1]
        context = (tokens + context)[-8:]
        path = F(1) if parent < 0 else nodes[parent][2]
        place = (following if matched else -1) if parent < 0 else nodes[parent][4]
        floor = opened[-1][0] if len(opened) >= room() else F(least)
        expected = s.prediction[place] if 0 <= place < len(s.prediction) else None
        rest, shares = F(1), {}
        if expected is not None:
            m = F(matched) + F(0 if parent < 0 else nodes[parent][3])
            rest = rest - m / (m + F(0.5))
            shares[expected] = F(1) - rest
        blend(s, context, path, floor, rest, shares)
        for token, share in shares.items():
            push((path * share, parent, token, place + 1 if token == expected else -1))

    def push(candidate: tuple[np.float32, int, int, int]) -> None:
        if not candidate[0] > F(least):
            return
        if len(opened) >= room():
            if opened[-1][0] >= candidate[0]:
                return
            opened.pop()
        at = len(opened)
        while at and opened[at - 1][0] < candidate[0]:
            at -= 1
        opened.insert(at, candidate)

    def add(candidate: tuple[np.float32, int, int, int]) -> None:
        prob, parent, token, place = candidate
        level = 1 if parent < 0 else nodes[parent][3] + 1
        nodes.append((token, parent, prob, level, place))

    if chain:
        while len(nodes) < min(budget, depth):
            opened.clear()
            expand(len(nodes) - 1)
            if not opened:
                break
            add(opened[0])
    else:
        if budget and depth:
            expand(-1)
        while len(nodes) < budget and opened:
            add(opened.pop(0))
            if len(nodes) < budget and nodes[-1][3] < depth:
                expand(len(nodes) - 1)
    likely, tip = [], -1
    for i, node in enumerate(nodes):
        if node[1] == tip:
            likely.append(i)
            tip = i
    order = likely + [i for i in range(len(nodes)) if i not in likely]
    place = {-1: -1, **{old: new for new, old in enumerate(order)}}
    return [(nodes[i][0], place[nodes[i][1]], nodes[i][2]) for i in order]
