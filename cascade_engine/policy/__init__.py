"""Policies: pure functions from a row's state to its next action; no tensors, no torch."""

from cascade_engine.policy.base import Action, Draft, Policy, Review, RowState
from cascade_engine.policy.fixed import FixedCascade
from cascade_engine.policy.plain import PlainDecoding
from cascade_engine.policy.published import PUBLISHED, published

__all__ = [
    "PUBLISHED",
    "Action",
    "Draft",
    "FixedCascade",
    "PlainDecoding",
    "Policy",
    "Review",
    "RowState",
    "published",
]
