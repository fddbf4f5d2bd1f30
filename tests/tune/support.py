"""The embedded models with both drafts, and questions for them."""

from __future__ import annotations

from functools import cache

from cascade_engine import Engine
from cascade_engine.demo.corpus import sample_prompts
from cascade_engine.demo.family import llama_family
from cascade_engine.tune.simulate import Task

NEW_TOKENS = 40


@cache
def loaded(rows: int) -> Engine:
    family = llama_family()
    drafts = [family.target.parent / "llama-middle", *family.drafts]
    return Engine.load(
        family.target, drafts, family.table, threads=1, max_rows=rows, reuse_cache=False
    )


@cache
def questions(count: int) -> list[list[int]]:
    tokenizer = loaded(1).tokenizer
    assert tokenizer is not None
    return [tokenizer.encode(text) for text in sample_prompts("test", count)]


@cache
def task(rows: int) -> Task:
    return Task(loaded(rows), questions(6), NEW_TOKENS)
