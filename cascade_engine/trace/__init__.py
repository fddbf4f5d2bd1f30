"""What the cascade did: traces written while decoding, pages and pictures of them."""

from cascade_engine.trace.history import History, load
from cascade_engine.trace.statistics import statistics

__all__ = ["History", "load", "statistics"]
