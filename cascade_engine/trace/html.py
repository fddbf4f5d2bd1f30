"""One self-contained page of a trace: text by level, rejected drafts, acceptance, passes in time.

Whatever comes from the trace goes into one JSON block, which no text can leave, and from there
into the page as text nodes. The page's policy allows its own script and style alone, by their
digests, and no request to anywhere.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from importlib import resources
from typing import Any

from cascade_engine.trace.history import Action, History, Round, TracedRow
from cascade_engine.trace.statistics import statistics

SCRIPTS = ("data.js", "text.js", "timeline.js", "page.js")


def page(history: History, name: str) -> str:
    """The page as text; `name` says where the trace came from."""
    style = _file("page.css")
    script = '"use strict";\n(() => {\n' + "\n".join(map(_file, SCRIPTS)) + "\n})();\n"
    parts = {
        "POLICY": (
            "default-src 'none'; img-src data:; base-uri 'none'; form-action 'none'; "
            f"script-src {_digest(script)}; style-src {_digest(style)}"
        ),
        "STYLE": style,
        "DATA": _escaped(_data(history, name)),
        "SCRIPT": script,
    }
    template = _file("page.html").split("@@")  # text, name, text, name, ..., text
    return "".join(parts[each] if i % 2 else each for i, each in enumerate(template))


def _file(name: str) -> str:
    return resources.files(__package__).joinpath("page", name).read_text("utf-8")


def _digest(content: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


def _escaped(data: dict[str, Any]) -> str:
    """JSON in which no character means anything to HTML."""
    text = json.dumps(data, separators=(",", ":"))  # ASCII, so U+2028 and its like are escaped
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _data(history: History, name: str) -> dict[str, Any]:
    return {
        "name": name,
        "started": history.header["started"],
        "truncated": history.truncated,
        "levels": history.levels,
        "pieces": history.pieces,
        "stats": statistics(history),
        "passes": [[p.kind, p.level, p.t, p.s, p.rows] for p in history.passes],
        "steps": history.steps,
        "rows": [_row(row) for row in history.rows],
    }


def _row(row: TracedRow) -> dict[str, Any]:
    return {
        "request": row.request,
        "index": row.index,
        "prompt": row.prompt,
        "text": row.text,
        "emitted": row.emitted,
        "start": row.start,
        "settings": {key: str(value) for key, value in row.settings.items()},
        "asked": row.asked,
        "begun": row.begun,
        "ended": row.ended,
        "finish": row.finish,
        "rounds": [_round(this) for this in row.rounds],
    }


def _round(this: Round) -> dict[str, Any]:
    return {
        "t": this.t,
        "tokens": this.tokens,
        "levels": this.levels,
        "texts": this.texts,
        "actions": [_action(action) for action in this.actions],
    }


def _action(action: Action) -> dict[str, Any]:
    """Chains leave their parents out, drafts their sources."""
    entry: dict[str, Any] = {
        "kind": action.kind,
        "level": action.level,
        "pass": action.number,
        "at": action.at,
        "tokens": action.tokens,
        "probs": action.probs,
    }
    chain: Sequence[int] = range(-1, len(action.tokens) - 1)
    if list(action.parents) != list(chain):
        entry["parents"] = list(action.parents)
    if action.kind == "review":
        entry |= {"sources": action.sources, "kept": action.kept}
        entry |= {"token": action.token, "prob": action.prob}
    return entry
