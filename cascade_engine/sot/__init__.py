"""Skeleton-of-Thought (Ning et al., arXiv 2307.15337): an outline, then all points at once."""

from cascade_engine.sot.options import SotOptions
from cascade_engine.sot.results import Decision, Prices, SotPiece, SotResult
from cascade_engine.sot.router import Router, TrainedRouter
from cascade_engine.sot.runner import SkeletonOfThought, SotStream, skeleton_of_thought

__all__ = [
    "Decision",
    "Prices",
    "Router",
    "SkeletonOfThought",
    "SotOptions",
    "SotPiece",
    "SotResult",
    "SotStream",
    "TrainedRouter",
    "skeleton_of_thought",
]
