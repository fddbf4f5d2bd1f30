"""Models and questions of the tests of Skeleton-of-Thought."""

from __future__ import annotations

import functools

from cascade_engine import Engine, FixedCascade
from cascade_engine.demo.family import llama_family

QUESTION = "How can I save water at home? List six points."


@functools.cache
def embedded_engine() -> Engine:
    """The embedded cascade; every test leaves it without requests."""
    family = llama_family()
    return Engine.load(
        family.target,
        family.drafts,
        family.table,
        policy=FixedCascade(family.k_matrix),
        threads=1,
    )


def words_of(text: str) -> str:
    return " ".join(text.split())
