"""FixedCascade against a direct transcription of the recursion, and its checks."""

from __future__ import annotations

import math
import random

import pytest

from cascade_engine.errors import RequestError
from cascade_engine.policy import Draft, FixedCascade, PlainDecoding, Review, RowState
from tests.reference.cascade import Recursion, World

PUBLISHED = [
    [[5, 14, 10], [0, 1, 10], [0, 0, 10]],
    [[5, 8, 10], [0, 1, 10], [0, 0, 10]],
    [[13, 10], [0, 10]],
    [[10]],
]
FAR = 10**9


def actions_of_policy(
    world: World, policy: FixedCascade, prompt: list[int], reviews: int
) -> tuple[list[tuple[str, int, int]], list[int]]:
    """Drives the policy through the world until the target has reviewed `reviews` times."""
    n = len(policy.k_matrix)
    row, frontier, probs = list(prompt), [len(prompt)] * n, [1.0] * len(prompt)
    log: list[tuple[str, int, int]] = []
    while reviews:
        action = policy.next_action(RowState(tuple(frontier), len(row), FAR, probs=probs))
        if isinstance(action, Draft) and action.level < n:  # so many reviews of nothing
            begin = len(row)
            for _ in range(action.tokens):
                log.append(("review", action.level, len(row)))
                probs.append(world.prob(action.level, row))
                row.append(world.next_token(action.level, row))
                if math.prod(probs[begin:]) < action.min_confidence:
                    break
            frontier[action.level :] = [len(row)] * (n - action.level)
            continue
        if isinstance(action, Draft):
            log.append(("draft", action.level, action.tokens))
            for _ in range(action.tokens):
                row.append(world.next_token(n, row))
            probs += [1.0] * action.tokens
            continue
        log.append(("review", action.level, len(row)))
        end = frontier[action.level]
        while end < len(row) and world.next_token(action.level, row[:end]) == row[end]:
            end += 1
        probs[end:] = [world.prob(action.level, row[:end])]
        row = [*row[:end], world.next_token(action.level, row[:end])]
        for level in range(action.level, n):
            frontier[level] = len(row)
        reviews -= action.level == 0
    return log, row


def compare(
    seed: int, k_matrix: list[list[int]], agreement: list[float], min_confidence: float = 0.0
) -> int:
    """Returns how many actions that took."""
    world = World(seed, agreement)
    recursion = Recursion(world, k_matrix, min_confidence)
    row = [1, 2, 3]
    recursion.probs = [1.0] * 3
    for _ in range(4):
        row = recursion.iterate(0, row)
    policy = FixedCascade(k_matrix, min_confidence=min_confidence)
    log, driven = actions_of_policy(world, policy, [1, 2, 3], 4)
    assert log == recursion.log
    assert driven == row
    return len(log)


def random_matrix(rng: random.Random, n: int) -> list[list[int]]:
    k = [[rng.choice([0, 0, 1, 2, 5, 9]) if j >= i else 0 for j in range(n)] for i in range(n)]
    k[-1][-1] = rng.randint(1, 10)
    return k


def test_next_action_follows_the_recursion() -> None:
    rng = random.Random(0)
    for case in range(5000):
        n = rng.randint(1, 4)
        agreement = [1.0] + [rng.choice([0.0, 0.3, 0.8, 1.0]) for _ in range(n)]
        compare(case, random_matrix(rng, n), agreement)


def test_segments_end_where_their_confidence_falls() -> None:
    """Whoever drafts them, and however deep: as in the recursion, whose reviews keep the
    probabilities of what they keep."""
    rng, fewer = random.Random(1), 0
    for case in range(500):
        n = rng.randint(2, 4)
        agreement = [1.0] + [rng.choice([0.3, 0.8, 1.0]) for _ in range(n)]
        matrix, least = random_matrix(rng, n), rng.choice([0.05, 0.3, 0.7, 1.0])
        fewer += compare(case, matrix, agreement, least) < compare(case, matrix, agreement)
    assert fewer > 250


@pytest.mark.parametrize("k_matrix", PUBLISHED)
@pytest.mark.parametrize("agreement", [0.0, 0.5, 0.9, 1.0])
def test_published_settings(k_matrix: list[list[int]], agreement: float) -> None:
    for seed in range(20):
        compare(seed, k_matrix, [1.0] + [agreement] * len(k_matrix))


def test_without_room_the_target_reviews() -> None:
    policy = FixedCascade([[5, 5], [0, 10]])
    assert policy.next_action(RowState((4, 4), 4, room=0)) == Review(0)
    assert policy.next_action(RowState((4, 4), 4, room=3))._replace(segment=None) == Draft(
        2, 2
    )  # and the draft's own

    direct = FixedCascade([[0, 5], [0, 10]])
    assert direct.next_action(RowState((4, 4), 4, room=3)) == Draft(2, 3)


@pytest.mark.parametrize("room", range(12))
def test_room_does_not_decide_who_reviews(room: int) -> None:
    """In a vertical cascade the target gets nothing that the first draft has not reviewed, however
    much the levels below it kept; else it would get drafts because of what they are."""
    policy = FixedCascade([[3, 0, 0], [0, 2, 0], [0, 0, 2]])
    for seed in range(200):
        rng = random.Random(seed)
        frontier, length, limit = [9, 9, 9], 9, 9 + 1 + room
        while True:
            action = policy.next_action(RowState(tuple(frontier), length, limit - 1 - length))
            if isinstance(action, Draft):
                length += action.tokens
                continue
            if action.level == 0:
                break
            kept = rng.randint(0, length - frontier[action.level])
            length = frontier[action.level] + kept + 1
            frontier[action.level :] = [length] * (3 - action.level)
        assert frontier[1] == length <= limit - 1


def test_an_exhausted_statistical_level_counts_as_past_its_segment() -> None:
    policy = FixedCascade([[5, 5], [0, 10]])
    assert policy.next_action(RowState((4, 4), 4, FAR, exhausted=True)) == Review(1)
    assert FixedCascade([[10]]).next_action(RowState((4,), 4, FAR, exhausted=True)) == Review(0)


def test_a_dormant_draft_is_passed_over() -> None:
    policy = FixedCascade([[5, 5], [0, 10]])
    state = RowState((4, 4), 4, FAR, dormant=(False, True))
    assert policy.next_action(state)._replace(segment=None) == Draft(2, 10)
    assert policy.next_action(state._replace(exhausted=True)) == Review(0)


def test_zero_rows_draft_on_their_own() -> None:
    policy = FixedCascade([[3, 0], [0, 0]])
    assert policy.next_action(RowState((4, 4), 4, FAR)) == Draft(1, 3)
    assert policy.next_action(RowState((4, 6), 6, FAR)) == Draft(1, 1)
    assert policy.next_action(RowState((4, 7), 7, FAR)) == Review(0)
    assert policy.next_action(RowState((4, 4), 4, room=2)) == Draft(1, 2)
    assert policy.next_action(RowState((4, 4), 6, FAR)) == Review(1)  # another level's drafts
    nested = FixedCascade([[3, 0, 0], [0, 3, 0], [0, 0, 0]])
    assert nested.next_action(RowState((4, 4, 5), 5, room=3)) == Draft(2, 2)  # and level 1's own
    for wide in (
        FixedCascade(policy.k_matrix, tree=(8, 4)),
        FixedCascade(policy.k_matrix, 1, 8, 2),
    ):
        state = RowState((4, 4), 4, FAR, widened=True)
        assert isinstance(wide.next_action(state), Review)


def test_confidence_counts_what_a_level_has_vouched_for() -> None:
    """A nested draft ends its own segment, not that of the level above; relative to what stands
    there, the level below has as much left to lose."""
    policy = FixedCascade([[9, 0], [0, 0]], min_confidence=0.4)
    probs = [1.0] * 4 + [0.8, 0.625, 0.7]
    assert policy.next_action(RowState((4, 4), 4, FAR, probs=probs)) == Draft(1, 9, 0, 0.4)
    assert policy.next_action(RowState((4, 6), 6, FAR, probs=probs)) == Draft(1, 7, 0, 0.4 / 0.5)
    assert policy.next_action(RowState((4, 7), 7, FAR, probs=probs)) == Review(0)
    assert policy.next_action(RowState((4, 7), 7, FAR)) == Draft(1, 6, 0, 0.4)  # nobody knows
    nested = FixedCascade([[9, 3, 5], [0, 4, 6], [0, 0, 0]], min_confidence=0.4)
    assert nested.next_action(RowState((4, 4, 7), 7, FAR, probs=probs)) == Review(1)
    assert nested.next_action(RowState((4, 6, 7), 7, FAR, probs=probs)).level == 2
    assert nested.next_action(RowState((4, 7, 7), 7, FAR, probs=probs)) == Review(0)
    wide = FixedCascade([[9, 0], [0, 0]], tree=8, min_confidence=0.4)
    assert wide.next_action(RowState((4, 7), 7, FAR, probs=probs)) == Draft(2, 8, 8)


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_bad_confidence(value: float) -> None:
    with pytest.raises(RequestError, match=r"min_confidence must be in 0\.\.1 \(0: off\), got"):
        FixedCascade([[10]], min_confidence=value)


def test_plain_decoding_always_reviews() -> None:
    assert PlainDecoding().next_action(RowState((4, 4), 4, FAR)) == Review(0)


def test_a_tree_takes_the_place_of_the_targets_statistical_segment() -> None:
    policy = FixedCascade([[10]], tree=32)
    state = RowState((4,), 4, FAR)
    assert policy.next_action(state) == Draft(1, 32, 32)
    assert policy.next_action(state._replace(widened=True)) == Review(0, 32)
    assert policy.next_action(state._replace(room=3)) == Draft(1, 3, 32)
    assert policy.next_action(state._replace(room=0)) == Review(0)


def test_drafts_come_before_the_targets_tree() -> None:
    policy = FixedCascade([[5, 3], [0, 8]], tree=(32, 6), siblings=2)
    state = RowState((4, 4), 4, FAR)
    assert policy.next_action(state) == Draft(2, 6, 6)
    assert policy.next_action(state._replace(widened=True)) == Review(1, 6, 2)
    vouched = RowState((4, 9), 9, FAR)
    assert policy.next_action(vouched) == Draft(2, 32, 32)
    assert policy.next_action(vouched._replace(widened=True)) == Review(0, 32)
    chains = FixedCascade([[5, 3], [0, 8]], tree=32, siblings=2)
    assert chains.next_action(state) == Draft(2, 8)
    assert chains.next_action(state._replace(exhausted=True)) == Review(1, 0, 2)


@pytest.mark.parametrize(
    ("tree", "siblings", "message"),
    [
        (65, 0, r"tree must be integers in 0\.\.64 \(nodes\), got 65"),
        (-1, 0, "got -1"),
        ((8, 1.5), 0, "got 1.5"),
        ((8, 8, 8), 0, "tree has 3 entries, there are 2 reviewing levels"),
        (8, -1, "siblings must be an integer >= 0, got -1"),
        (0, 2, "siblings=2 are branches of a tree: give tree > 0"),
    ],
)
def test_bad_trees(tree: int, siblings: int, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        FixedCascade([[5, 5], [0, 10]], tree=tree, siblings=siblings)


def test_parse() -> None:
    assert FixedCascade.parse("13,10;0,10").k_matrix == ((13, 10), (0, 10))


@pytest.mark.parametrize(
    ("k_matrix", "message"),
    [
        ([], "at least one row"),
        ([[1, 2]], "must be square: row 0 has 2 entries, there are 1 rows"),
        ([[1, -3], [0, 1]], r"k_matrix\[0\]\[1\] must be >= 0, got -3"),
        ([[1, 2], [3, 1]], r"k_matrix\[1\]\[0\] lies below the diagonal and must be 0, got 3"),
        ([[1.5]], r"k_matrix\[0\]\[0\] must be an integer, got 1.5"),
    ],
)
def test_bad_matrices(k_matrix: list[list[int]], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        FixedCascade(k_matrix)


@pytest.mark.parametrize("lenience", [0.5, float("nan"), float("inf"), -1.0])
def test_bad_lenience(lenience: float) -> None:
    with pytest.raises(RequestError, match="lenience must be a finite number >= 1"):
        FixedCascade([[10]], lenience)


def test_the_matrix_must_fit_the_levels() -> None:
    with pytest.raises(RequestError, match="k_matrix has 1 rows, but there are 2 drafting levels"):
        FixedCascade([[10]]).check(2)


def test_bad_text() -> None:
    with pytest.raises(RequestError, match="'3,x' is not rows of integers"):
        FixedCascade.parse("3,x")
