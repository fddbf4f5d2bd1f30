"""Levels: what drafts and what reviews. Level 0 is the target, the last one is statistical."""

from cascade_engine.levels.neural import NeuralLevel, Verdict
from cascade_engine.levels.rows import ReviewItem, TokenRows
from cascade_engine.levels.statistical import StatisticalLevel

__all__ = ["NeuralLevel", "ReviewItem", "StatisticalLevel", "TokenRows", "Verdict"]
