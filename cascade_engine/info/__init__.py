"""What models hold, what they cost on this machine, and what a draft can gain."""

from cascade_engine.info.collect import collect
from cascade_engine.info.text import as_text

__all__ = ["as_text", "collect"]
