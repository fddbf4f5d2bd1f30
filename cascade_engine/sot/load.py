"""What the engine's load says about expanding points at once: whether it pays, and how deep drafts
should be.

A pass over more tokens takes longer: seconds = a + b * tokens, fitted to what was measured.
Branches and draft depth draw on the same pass, so the depth is chosen for the number of rows there
are.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from cascade_engine.engine import Capacity
from cascade_engine.policy import FixedCascade, Policy
from cascade_engine.policy.expected import expected_tokens
from cascade_engine.sot.results import Decision, SotResult

DECAY = 0.98
"""Weight of what is known when a further step is measured: about the last fifty count."""


@dataclass
class StepCosts:
    """Measured steps: their seconds over the tokens reviewed in them, and how many were kept."""

    weight: float = 0.0
    sums: list[float] = field(default_factory=lambda: [0.0] * 4)
    """Of tokens, seconds, tokens^2 and tokens * seconds."""
    kept: float = 0.0
    row_steps: float = 0.0
    depth: float = 0.0

    def observe(self, rows: int, depth: int, seconds: float, emitted: int) -> None:
        """A step in which `rows` rows drafted up to `depth` tokens each and `emitted` came out."""
        tokens = rows * (depth + 1)
        values = (tokens, seconds, tokens * tokens, tokens * seconds)
        self.sums = [DECAY * total + value for total, value in zip(self.sums, values, strict=True)]
        self.weight = DECAY * self.weight + 1
        self.kept = DECAY * self.kept + emitted
        self.row_steps = DECAY * self.row_steps + rows
        self.depth = DECAY * self.depth + rows * depth

    def seconds(self, rows: int, depth: int) -> float | None:
        """Of a step, from the line of least squares; None before steps of two sizes were seen."""
        line = self._line()
        return None if line is None else line[0] + line[1] * rows * (depth + 1)

    @property
    def slope(self) -> float:
        """Seconds that a token adds to a step; 0 before that is known."""
        line = self._line()
        return 0.0 if line is None else line[1]

    def seconds_per_token(self, rows: int, deepest: int) -> float | None:
        """Of each row at the best depth."""
        depth = self.best_depth(rows, deepest)
        seconds = self.seconds(rows, depth)
        return None if seconds is None else seconds / expected_tokens(self.acceptance, depth)

    def _line(self) -> tuple[float, float] | None:
        tokens, seconds, squares, products = self.sums
        variance = self.weight * squares - tokens * tokens
        if self.weight < 4 or variance <= 1e-6 * squares * self.weight:
            return None
        slope = max(0.0, (self.weight * products - tokens * seconds) / variance)
        return max(0.0, (seconds - slope * tokens) / self.weight), slope

    @property
    def acceptance(self) -> float:
        """The chance that a drafted token is kept which explains the tokens kept per row."""
        if not self.row_steps:
            return 0.7
        tokens, depth = self.kept / self.row_steps, round(self.depth / self.row_steps)
        low, high = 0.0, 1.0
        for _ in range(20):
            middle = (low + high) / 2
            low, high = (middle, high) if expected_tokens(middle, depth) < tokens else (low, middle)
        return (low + high) / 2

    def best_depth(self, rows: int, deepest: int) -> int:
        """The depth of the most expected tokens a second over `rows` rows; `deepest` while nothing
        is known."""
        line, acceptance = self._line(), self.acceptance
        if line is None or not sum(line):
            return deepest

        def rate(depth: int) -> float:
            seconds = line[0] + line[1] * rows * (depth + 1)
            return rows * expected_tokens(acceptance, depth) / seconds

        return max(range(deepest + 1), key=rate)


def depth_of(policy: Policy) -> int:
    """Tokens (or nodes of a tree) that the target reviews at a time, as far as the policy says."""
    if not isinstance(policy, FixedCascade):
        return 0
    return max(sum(policy.k_matrix[0]), policy.tree[0])


def narrowed(policy: FixedCascade, depth: int) -> FixedCascade:
    """The cascade with at most `depth` tokens between two reviews of the target."""
    left = depth
    first = []
    for entry in policy.k_matrix[0]:
        first.append(min(entry, left))
        left -= first[-1]
    others = [[min(entry, depth) for entry in row] for row in policy.k_matrix[1:]]
    tree = [min(nodes, depth) for nodes in policy.tree]
    siblings = policy.siblings if depth else 0
    return FixedCascade([first, *others], policy.lenience, tree, siblings, policy.min_confidence)


@dataclass
class Expectations:
    """Sizes of an answer, averaged over those seen: what a decision is made with."""

    points: float = 6.0
    skeleton_tokens: float = 36.0
    point_tokens: float = 40.0
    prompt_tokens: float = 250.0
    fed_tokens: float = 40.0
    """Of a point's prompt, those that are not shared."""

    def learn(self, result: SotResult) -> None:
        counts = {stage.name: stage for stage in result.stages}
        if not result.used_sot or "points" not in counts:
            return
        number = len(result.skeleton.points)
        seen = {
            "points": number,
            "skeleton_tokens": counts["skeleton"].new_tokens,
            "point_tokens": (counts["points"].new_tokens or 0) / number,
            "prompt_tokens": (counts["points"].prompt_tokens or 0) / number,
            "fed_tokens": (counts["points"].prefill_tokens or 0) / number,
        }
        for name, value in seen.items():
            if value:
                setattr(self, name, 0.8 * getattr(self, name) + 0.2 * value)


def room_for_points(
    capacity: Capacity, costs: StepCosts, sizes: Expectations, depth: int
) -> Decision:
    """Whether points pay now: rows and pages that are free, and the time that steps with them take
    against that of an ordinary answer."""
    free = capacity.free_rows - capacity.waiting
    if free < 2:
        return Decision(False, f"{max(free, 0)} rows are free, points need at least 2")
    branches = min(free, round(sizes.points))
    needed = round(branches * (sizes.prompt_tokens + sizes.point_tokens))
    if capacity.free_tokens < needed:
        return Decision(
            False, f"the cache has room for {capacity.free_tokens} tokens, points need {needed}"
        )
    alone = costs.seconds_per_token(capacity.running + 1, depth)
    together = costs.seconds_per_token(capacity.running + branches, depth)
    if alone is None or together is None:
        return Decision(True, f"{free} rows are free")
    rounds = sizes.points / branches
    ordinary = sizes.points * sizes.point_tokens * alone
    by_points = sizes.skeleton_tokens * alone + rounds * sizes.point_tokens * together
    by_points += costs.slope * sizes.points * sizes.fed_tokens
    gain = ordinary / by_points if by_points else 1.0
    reason = f"{free} rows are free; points are expected to take {gain:.2f} times less time"
    return Decision(gain > 1.0, reason)
