"""How good a draft is: what it would choose beside the target, and what the cascade makes of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from cascade_engine.distill.answers import Answer
from cascade_engine.engine import Engine
from cascade_engine.params import SamplingParams
from cascade_engine.policy import FixedCascade, PlainDecoding

SETTINGS = {
    "statistical level alone": FixedCascade([[0, 10], [0, 10]]),
    "draft alone": FixedCascade([[6, 0], [0, 0]]),
    "cascade": FixedCascade([[6, 0], [0, 8]]),
}


def agreement(draft: Path, answers: Sequence[Answer], threads: int | None = None) -> float:
    """Share of the target's answer tokens that are the draft's most likely ones behind the target's
    own text, as the engine computes the draft. Answers beyond the draft's context do not count."""
    longest = max(len(a.prompt) + len(a.answer) for a in answers)
    engine = Engine.load(
        draft, tables="none", policy=PlainDecoding(), threads=threads, max_rows=1,
        max_context=longest,
    )  # fmt: skip
    level = engine.neural[0]
    agreed = total = 0
    for answer in answers:
        text = answer.prompt + answer.answer
        if len(text) > level.context or not answer.answer:
            continue
        level.truncate(0, 0)
        level.rows.write(0, text)
        level.prefill(0, len(answer.prompt) - 1)
        logits = level.score(0, len(text) - 1, len(answer.answer))[:, : level.vocab_size]
        agreed += int((logits.argmax(-1) == torch.tensor(answer.answer)).sum())
        total += len(answer.answer)
    return agreed / total if total else 0.0


def tokens_per_call(
    engine: Engine, answers: Sequence[Answer], max_new_tokens: int
) -> dict[str, Any]:
    """With a target and the draft loaded: tokens for each pass of the target, and how many answers
    are the target's (all of them, or something is wrong), by setting."""
    params = SamplingParams(max_tokens=max_new_tokens)
    prompts = [answer.prompt for answer in answers]
    found = {}
    for name, policy in SETTINGS.items():
        engine.set_policy(policy)
        results = engine.generate(prompts, params)
        calls = sum(result.stats.target_calls for result in results)
        found[name] = {
            "tokens_per_target_call": sum(len(r.token_ids) for r in results) / calls,
            "identical": sum(
                r.token_ids == a.answer for r, a in zip(results, answers, strict=True)
            ),
        }
    return {"answers": len(answers), "settings": found}
