"""Policies: pure functions from a row's state to its next action; no tensors, no torch."""

from collections.abc import Sequence
from os import PathLike

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
    Segment,
)
from cascade_engine.policy.file import read_policy, write_policy
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
    "Segment",
    "named",
    "published",
    "read_policy",
    "write_policy",
]


def named(name: str | PathLike[str], levels: Sequence[str]) -> Policy:
    """The policy of this name, or in this file, for levels (the neural ones) of these names; raises
    RequestError for other names and for files that are none or for other levels."""
    if name == "auto":
        return AutoCascade()
    if name == "fixed":
        return FixedCascade.default(len(levels))
    if name == "plain":
        return PlainDecoding()
    return read_policy(name, levels)
