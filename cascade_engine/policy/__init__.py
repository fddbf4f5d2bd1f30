"""Policies: pure functions from a row's state to its next action; no tensors, no torch."""

from cascade_engine.errors import RequestError
from cascade_engine.policy.automatic import AutoCascade
from cascade_engine.policy.base import (
    Action,
    Draft,
    Learner,
    Learning,
    LevelSet,
    Listener,
    Policy,
    Review,
    RowState,
)
from cascade_engine.policy.fixed import FixedCascade
from cascade_engine.policy.plain import PlainDecoding
from cascade_engine.policy.published import PUBLISHED, published

__all__ = [
    "PUBLISHED",
    "Action",
    "AutoCascade",
    "Draft",
    "FixedCascade",
    "Learner",
    "Learning",
    "LevelSet",
    "Listener",
    "PlainDecoding",
    "Policy",
    "Review",
    "RowState",
    "named",
    "published",
]


def named(name: str, drafting_levels: int) -> Policy:
    """The policy of this name for so many drafting levels; raises RequestError for other names."""
    if name == "auto":
        return AutoCascade()
    if name == "fixed":
        return FixedCascade.default(drafting_levels)
    if name == "plain":
        return PlainDecoding()
    raise RequestError(f"policy must be 'auto', 'fixed', 'plain' or a policy, got {name!r}")
