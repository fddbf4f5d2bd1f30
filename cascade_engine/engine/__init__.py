"""Rows in, tokens out."""

from cascade_engine.engine.engine import Engine
from cascade_engine.engine.results import (
    Batching,
    Capacity,
    Generation,
    LevelStats,
    Piece,
    RunStats,
    StepOutput,
)

__all__ = [
    "Batching",
    "Capacity",
    "Engine",
    "Generation",
    "LevelStats",
    "Piece",
    "RunStats",
    "StepOutput",
]
