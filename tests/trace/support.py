"""A trace written by hand, whose figures can be counted on fingers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

NASTY = "</script><script>window.hacked = 1</script><!-- \u2028 \"'&<img src=x onerror=hacked()>"

HEADER = {
    "format": "cascade_engine.trace",
    "version": 1,
    "started": 1795369556.34,
    "levels": ["big", "small", NASTY],
}
PIECES = {"1": "<s>", "10": " a", "11": " b", "12": "\n", "13": " d", "14": "</script>", "15": " f"}


EVENTS: list[dict[str, Any]] = [
    {"event": "pieces", "pieces": PIECES},
    {
        "event": "request", "t": 0.0, "row": 0, "request": NASTY, "index": 0, "prompt": [1, 10],
        "start": 2, "text": NASTY, "emitted": [], "settings": {"seed": 2**60, "note": NASTY},
    },
    {
        "event": "request", "t": 0.0, "row": 1, "request": "b", "index": 1, "prompt": [1],
        "start": 1, "emitted": [15],
    },
    {"event": "admit", "t": 0.5, "row": 0, "cached": 1},
    {"event": "prefill", "t": 0.5, "s": 0.25, "row": 0, "begin": 0, "end": 1},
    {"event": "step", "t": 0.5, "s": 0.5},
    # Round 1 of row 0: small keeps one of three, writes 13; big keeps all and writes 14.
    {
        "event": "draft", "t": 1.0, "s": 0.125, "level": 2,
        "rows": [
            {"row": 0, "at": 2, "tokens": [11, 12, 10], "probs": [1, 1, 0.25]},
            {"row": 1, "at": 2, "tokens": [], "probs": []},
        ],
    },
    {
        "event": "review", "t": 1.25, "s": 0.25, "level": 1,
        "rows": [
            {"row": 0, "at": 2, "tokens": [11, 12, 10], "probs": [1, 1, 0.25],
             "sources": [2, 2, 2], "kept": [0], "token": 13, "prob": 0.5},
        ],
    },
    {
        "event": "review", "t": 1.5, "s": 1.0, "level": 0,
        "rows": [
            {"row": 0, "at": 2, "tokens": [11, 13], "probs": [1, 0.5], "sources": [2, 1],
             "kept": [0, 1], "token": 14},
            {"row": 1, "at": 2, "tokens": [], "probs": [], "sources": [], "kept": [], "token": 11},
        ],
    },
    {"event": "emit", "t": 2.5, "row": 0, "tokens": [11, 13, 14], "levels": [2, 1, 0],
     "texts": [" b", "", " d</script>"]},
    {"event": "emit", "t": 2.5, "row": 1, "tokens": [11], "levels": [0], "texts": [" b"]},
    {"event": "preempt", "t": 2.5, "row": 1},
    {"event": "step", "t": 1.0, "s": 1.5},
    # Round 2 of row 0: a tree of six nodes, of which the path 1, 3 is kept, and a stop cuts it.
    {
        "event": "review", "t": 3.0, "s": 0.5, "level": 0,
        "rows": [
            {"row": 0, "at": 5, "tokens": [10, 11, 10, 12, 15, 14],
             "parents": [-1, -1, 1, 1, 3, -1], "probs": [0.5, 0.25, 0.125, 1, 0.75, 0.0625],
             "sources": [1, 2, 2, 1, 2, 1],
             "kept": [1, 3], "token": 13},
        ],
    },
    {"event": "emit", "t": 3.5, "row": 0, "tokens": [11, 12], "levels": [2, 1],
     "texts": [" b", "\n"], "finish": "stop"},
    {"event": "drop", "t": 3.5, "row": 1},
    {"event": "step", "t": 3.0, "s": 0.5},
]  # fmt: skip


def lines(events: list[dict[str, Any]] = EVENTS, header: dict[str, Any] = HEADER) -> str:
    return "".join(json.dumps(event) + "\n" for event in [header, *events])


def write(path: Path, text: str | None = None) -> Path:
    path.write_text(lines() if text is None else text, "utf-8")
    return path
