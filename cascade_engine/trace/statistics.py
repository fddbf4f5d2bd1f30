"""The engine's statistics, counted from a trace: the same keys as `Engine.stats`."""

from __future__ import annotations

from typing import Any

from cascade_engine.trace.history import Action, History


def statistics(history: History) -> dict[str, Any]:
    """What `Engine.stats` counted while the trace ran (docs/serving.md defines the keys)."""
    rows, passes = history.rows, history.passes
    levels: list[dict[str, Any]] = [
        {"name": name, "passes": 0, "rows": 0, "seconds": 0.0, "drafted": [], "accepted": []}
        for name in history.levels
    ]
    for each in passes:
        if each.kind != "prefill":
            level = levels[each.level]
            level["passes"] += each.passes
            level["rows"] += each.row_passes
            level["seconds"] += each.s
    tokens_per_pass: list[int] = []
    for action in (a for row in rows for this in row.rounds for a in this.actions):
        if action.kind == "review" and action.level == 0:
            _bump(tokens_per_pass, len(action.kept))
            _count_positions(levels, action)
    reviews = sum(tokens_per_pass)
    tokens = sum((i + 1) * count for i, count in enumerate(tokens_per_pass))
    return {
        "requests": {
            "added": len(rows),
            "finished": sum(row.finish not in (None, "dropped") for row in rows),
            "aborted": sum(row.finish == "dropped" for row in rows),
            "preempted": history.preempted,
        },
        "prompt_tokens": sum(len(row.prompt) for row in rows),
        "cached_prompt_tokens": history.cached,
        "new_tokens": sum(len(this.tokens) for row in rows for this in row.rounds),
        "steps": len(history.steps),
        "step_seconds": sum(seconds for _, seconds in history.steps),
        "prefill_seconds": sum(each.s for each in passes if each.kind == "prefill"),
        "tokens_per_target_review": tokens / reviews if reviews else 0.0,
        "tokens_per_pass": tokens_per_pass,
        "levels": levels,
    }


def _count_positions(levels: list[dict[str, Any]], review: Action) -> None:
    kept = set(review.kept)
    for node, (level, depth) in enumerate(zip(review.sources, review.depths(), strict=True)):
        _bump(levels[level]["drafted"], depth)
        if node in kept:
            _bump(levels[level]["accepted"], depth)


def _bump(counts: list[int], index: int) -> None:
    counts.extend([0] * (index + 1 - len(counts)))
    counts[index] += 1
