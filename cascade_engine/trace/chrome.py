"""A trace in the trace event format, which Perfetto and chrome://tracing open.

A process for each level with a thread (track) for each row, and one for the engine's steps and
its requests. Times are microseconds from the trace's beginning.
"""

from __future__ import annotations

from typing import Any

from cascade_engine.trace.history import Action, History, TracedRow

STEPS = 1
"""Thread of the engine's process."""


def chrome(history: History) -> dict[str, Any]:
    """JSON-ready: rows are threads 1, 2, ..., levels processes 1, 2, ..., the engine the last."""
    engine = len(history.levels) + 1
    return {
        "displayTimeUnit": "ms",
        "otherData": {"format": history.header["format"], "started": history.header["started"]},
        "traceEvents": [
            *_names(history, engine),
            *(
                _span("step", "step", engine, STEPS, t, s, {"step": i})
                for i, (t, s) in enumerate(history.steps)
            ),
            *(event for row in history.rows for event in _request(history, row, engine)),
            *_prefills(history),
            *(event for row in history.rows for event in _actions(history, row)),
        ],
    }


def _names(history: History, engine: int) -> list[dict[str, Any]]:
    """Of processes and threads, and their order."""
    names = [*history.levels, "engine"]
    events = [_meta("thread_name", engine, STEPS, name="steps")]
    for number, name in enumerate(names, 1):
        events.append(_meta("process_name", number, 0, name=name))
        order = 0 if number == engine else number
        events.append(_meta("process_sort_index", number, 0, sort_index=order))
    for level, row in sorted({(p.level, row) for p in history.passes for row in p.rows}):
        events.append(_meta("thread_name", level + 1, row + 1, name=_label(history.rows[row])))
        events.append(_meta("thread_sort_index", level + 1, row + 1, sort_index=row))
    return events


def _label(row: TracedRow) -> str:
    return f"{row.number + 1}: {row.request}" + (f" sample {row.index}" if row.index else "")


def _meta(kind: str, pid: int, tid: int, **args: Any) -> dict[str, Any]:
    return {"ph": "M", "name": kind, "pid": pid, "tid": tid, "args": args}


def _span(
    name: str, category: str, pid: int, tid: int, t: float, s: float, args: dict[str, Any]
) -> dict[str, Any]:
    times = {"ts": round(t * 1e6, 3), "dur": round(s * 1e6, 3)}
    return {"ph": "X", "name": name, "cat": category, "pid": pid, "tid": tid, **times, "args": args}


def _request(history: History, row: TracedRow, engine: int) -> list[dict[str, Any]]:
    """From when it was asked to its end, or the last that is known of it."""
    last = max((this.t for this in row.rounds), default=row.asked)
    ended = max(row.asked, last) if row.ended is None else row.ended
    same = {"cat": "request", "name": _label(row), "id": row.number, "pid": engine, "tid": STEPS}
    settings = {name: str(value) for name, value in row.settings.items()}
    args = {"prompt": row.text, "finish": row.finish, **settings}
    return [
        {"ph": "b", **same, "ts": round(row.asked * 1e6, 3), "args": args},
        {"ph": "e", **same, "ts": round(ended * 1e6, 3)},
    ]


def _prefills(history: History) -> list[dict[str, Any]]:
    return [
        _span("prefill", "prefill", 1, row + 1, each.t, each.s, {})
        for each in history.passes
        if each.kind == "prefill"
        for row in each.rows
    ]


def _actions(history: History, row: TracedRow) -> list[dict[str, Any]]:
    events = []
    for number, this in enumerate(row.rounds):
        for action in this.actions:
            if action.kind != "retire":
                each = history.passes[action.number]
                args = {"round": number, "rows in the pass": len(each.rows)}
                args |= _told(history, action)
                name = _name(action)
                place = (action.level + 1, row.number + 1, each.t, each.s)
                events.append(_span(name, action.kind, *place, args))
    return events


def _name(action: Action) -> str:
    if action.kind == "draft":
        return f"draft {len(action.tokens)}"
    return f"review {len(action.kept)}/{len(action.tokens)}"


def _told(history: History, action: Action) -> dict[str, Any]:
    if action.kind == "draft":
        return {"drafted": "".join(map(history.piece, action.tokens)), "probs": action.probs}
    kept = set(action.kept)
    gone = [t for node, t in enumerate(action.tokens) if node not in kept]
    assert action.token is not None
    return {
        "kept": "".join(history.piece(action.tokens[node]) for node in action.kept),
        "rejected": "".join(map(history.piece, gone)),
        "own": history.piece(action.token),
    }
