"""What a draft's `segment` says is what the policy asks for, one by one."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator

import pytest

from cascade_engine.policy import Draft, FixedCascade, Policy, Review, RowState, Segment
from cascade_engine.policy.plans import Plan


class Walk:
    """A row that goes the way a policy asks, with drafts found and kept by chance."""

    def __init__(self, rng: random.Random, policy: Policy | Plan, neural: int) -> None:
        self.rng, self.policy, self.n = rng, policy, neural
        dormant = tuple(i > 0 and rng.random() < 0.2 for i in range(neural))
        self.probs = [1.0] * 9
        room = rng.randint(0, 40)
        self.state = RowState((9,) * neural, 9, room, dormant=dormant, probs=self.probs)

    def draft(self, tokens: int) -> int:
        """The statistical level finds some of so many."""
        found = self.rng.choice([tokens, tokens, self.rng.randint(0, tokens)])
        state = self.state
        self.probs += [1.0] * found
        self.state = state._replace(
            length=state.length + found, room=state.room - found, exhausted=found == 0
        )
        return found

    def review(self, level: int) -> int:
        """A level keeps some of what is behind its frontier."""
        state, frontier = self.state, list(self.state.frontier)
        end = self.rng.randint(frontier[level], state.length) + 1
        frontier[level:] = [end] * (self.n - level)
        self.probs[end - 1 :] = [self.rng.choice([0.3, 0.7, 0.9])]
        self.state = state._replace(
            frontier=tuple(frontier),
            length=end,
            room=state.room + state.length - end,
            exhausted=False,
            widened=False,
        )
        return end

    def asks(self) -> Draft | Review:
        return self.policy.next_action(self.state)

    def go(self) -> Segment | None:
        """One action; what it says of those to come."""
        action = self.asks()
        if isinstance(action, Review):
            self.review(action.level)
        elif action.nodes:
            self.state = self.state._replace(widened=True)
        elif action.level == self.n:
            if action.segment is not None:
                return action.segment
            self.draft(action.tokens)
        else:
            for _ in range(action.tokens):
                self.probs.append(self.rng.choice([0.3, 0.7, 0.9]))
                self.state = self.state._replace(
                    length=self.state.length + 1, room=self.state.room - 1
                )
            frontier = list(self.state.frontier)
            frontier[action.level :] = [self.state.length] * (self.n - action.level)
            self.state = self.state._replace(frontier=tuple(frontier), exhausted=False)
        return None

    def follow(self, segment: Segment) -> Iterator[tuple[int, int]]:
        """The segment as csrc/include/ce/segment_loop.h has it: (level, tokens asked) of each
        action, which is taken when the next is asked for."""
        begin = self.state.length
        assert self.state.frontier[segment.level] == begin
        while (got := self.state.length - begin) < min(segment.tokens, segment.most):
            if math.prod(self.probs[begin:]) < segment.min_confidence:
                return
            drafted, room = 0, segment.most - got - 1
            while drafted < room:
                asked = min(segment.width, room - drafted)
                yield self.n, asked
                found = self.draft(asked)
                drafted += found
                if found == 0 or drafted >= segment.least:
                    break
            yield segment.level, 0
            self.review(segment.level)


def random_policy(rng: random.Random, neural: int) -> Policy | Plan:
    if rng.random() < 0.5:
        levels = range(neural)
        k = [[rng.choice([0, 0, 1, 3, 8]) if j >= i else 0 for j in levels] for i in levels]
        k[-1][-1] = rng.choice([1, 4, 9])
        tree = rng.choice([0, 0, 0, 16])
        siblings, least = rng.choice([0, 2]) if tree else 0, rng.choice([0.0, 0.4, 0.8])
        return FixedCascade(k, tree=tree, siblings=siblings, min_confidence=least)
    drafter = rng.randint(1, neural - 1)
    return Plan(
        drafter=drafter,
        tokens=rng.randint(1, 9),
        second=rng.choice([0, neural - 1]) if drafter < neural - 1 else 0,
        second_tokens=rng.randint(1, 5),
        width=rng.randint(1, 9),
        tail=rng.choice([0, 3]),
        siblings=rng.choice([0, 0, 2]),
    )


@pytest.mark.parametrize("neural", [2, 3, 4])
def test_a_segment_is_what_the_policy_asks_for_one_by_one(neural: int) -> None:
    """Breaks when a segment ends elsewhere, leaves more or less room, or is promised where another
    level has a part in it."""
    seen = 0
    for seed in range(600):
        rng = random.Random(seed)
        walk = Walk(rng, random_policy(rng, neural), neural)
        for _ in range(30):
            segment = walk.go()
            if segment is None:
                continue
            steps = 0
            for level, tokens in walk.follow(segment):
                action = walk.asks()
                if level == neural:
                    assert isinstance(action, Draft), (seed, segment, walk.state)
                    assert (action.level, action.tokens, action.nodes) == (level, tokens, 0)
                else:
                    assert action == Review(level), (seed, segment, walk.state)
                steps += 1
            assert steps, "nothing to do"
            seen += 1
    assert seen > 300


def test_whole_segments_are_told() -> None:
    """Where the statistics draft for a neural level alone; not in the middle of it, nor for the
    target, nor where runners-up are wanted."""
    policy = FixedCascade([[6, 0], [0, 8]])
    state = RowState((5, 5), 5, 30)
    (segment,) = (policy.next_action(state).segment,)  # type: ignore[union-attr]
    assert segment == Segment(1, 6, 30, 8, 8)
    sure = state._replace(frontier=(4, 5), probs=[0.8] * 5)
    stops = FixedCascade([[6, 0], [0, 8]], min_confidence=0.4).next_action(sure)
    assert stops == Draft(2, 8, segment=Segment(1, 5, 30, 8, 8, 0.4 / 0.8))
    assert policy.next_action(state._replace(length=8)) == Draft(2, 8)
    assert FixedCascade([[0, 6], [0, 8]]).next_action(state) == Draft(2, 8)
    branching = FixedCascade([[6, 0], [0, 8]], tree=8, siblings=1)
    assert branching.next_action(state) == Draft(2, 8)
    plan = Plan(drafter=1, tokens=3, width=4)
    assert plan.next_action(state) == Draft(2, 4, segment=Segment(1, 3, 30, 4, 1))
    assert plan._replace(siblings=2).next_action(state) == Draft(2, 4)
