"""How lenient drafting levels are with one another, by what the target keeps of it."""

from __future__ import annotations

from cascade_engine.policy.planning import Knowledge
from cascade_engine.policy.plans import Plan

ENOUGH = 16.0
"""Reviews that a change needs."""
KEPT = 0.93, 0.97
"""Share of the tokens that the target is to keep."""
STEP = 1.1


def adapted(lenience: float, most: float, plan: Plan, known: Knowledge) -> float:
    """Where the target keeps nearly all of what a lenient level vouches for, it may be more
    lenient, up to `most`; where it does not, less, down to 1."""
    if not plan.drafter or not (plan.width or plan.second):
        return lenience
    ends = known.ends(0, plan.drafter)
    if ends.reviews < ENOUGH:
        return lenience
    kept = ends.kept_share()
    if kept > KEPT[1]:
        return min(lenience * STEP, most)
    return max(lenience / STEP, 1.0) if kept < KEPT[0] else lenience
