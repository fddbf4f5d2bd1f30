"""Rows in, tokens out."""

from cascade_engine.engine.engine import Engine
from cascade_engine.engine.results import Generation, LevelStats, Piece, RunStats, StepOutput

__all__ = ["Engine", "Generation", "LevelStats", "Piece", "RunStats", "StepOutput"]
