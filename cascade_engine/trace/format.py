"""The trace file: JSON lines, a header first; docs/trace.md defines it.

Reading checks every field that is used, so that what comes after can rely on them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from cascade_engine.errors import TraceError

FORMAT = "cascade_engine.trace"
VERSION = 1
MOST = 2**53
"""Whole numbers below it are exact to every program that reads JSON."""

Event = dict[str, Any]


def read_events(path: str | Path) -> tuple[Event, list[Event], bool]:
    """The header, the events of kinds that this version knows, and whether the last line was cut
    off (a run that was killed, or still goes on): it is left out then.

    Raises TraceError for a file that is no trace, a newer version, or a damaged line, OSError.
    """
    path = Path(path)
    lines = path.read_bytes().split(b"\n")
    truncated = lines.pop() != b""
    if not lines:
        raise TraceError(f"{path}: not a trace: it has no complete header line")
    header = _object(path, 1, lines[0])
    _check_header(path, header)
    events = []
    for number, line in enumerate(lines[1:], 2):
        event = _object(path, number, line)
        check = FIELDS.get(str(event.get("event")))
        if check is None:
            continue
        wrong = _first_wrong(event, check)
        if wrong:
            raise TraceError(f"{path}: line {number}: {event['event']} has no valid {wrong}")
        events.append(event)
    return header, events, truncated


def _object(path: Path, number: int, line: bytes) -> Event:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise TraceError(f"{path}: line {number} is not a JSON object: the file is damaged")
    return value


def _check_header(path: Path, header: Event) -> None:
    if header.get("format") != FORMAT:
        raise TraceError(f"{path}: not a trace: its first line has no format {FORMAT!r}")
    if header.get("version") != VERSION:
        raise TraceError(
            f"{path}: a trace of version {header.get('version')!r}; this program reads version "
            f"{VERSION}: use the one that wrote it"
        )
    if not _texts(header.get("levels")) or len(header["levels"]) < 2:
        raise TraceError(f"{path}: the header's levels must name a target and a statistical level")
    if not _number(header.get("started")):
        raise TraceError(f"{path}: the header has no valid started")


def _first_wrong(event: Event, checks: dict[str, Check]) -> str | None:
    for name, check in checks.items():
        optional = name.endswith("?")
        name = name.rstrip("?")
        if name not in event:
            if not optional:
                return name
        elif not check(event[name]):
            return name
    return None


Check = Callable[[Any], bool]


def _whole(value: Any) -> bool:
    return type(value) is int and 0 <= value < MOST


def _number(value: Any) -> bool:
    return type(value) in (int, float) and -MOST < value < MOST  # False for NaN too


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _every(value: Any, check: Check) -> bool:
    return isinstance(value, list) and all(check(entry) for entry in value)


def _wholes(value: Any) -> bool:
    return _every(value, _whole)


def _texts(value: Any) -> bool:
    return _every(value, _text)


def _pieces(value: Any) -> bool:
    return isinstance(value, dict) and all(k.isdigit() and _text(v) for k, v in value.items())


def _drafts(value: Any) -> bool:
    """Parts of rows in a draft: tokens behind `at`, a chain or with parents a tree."""
    return _every(value, lambda part: isinstance(part, dict) and _draft(part))


def _reviews(value: Any) -> bool:
    return _every(value, lambda part: isinstance(part, dict) and _review(part))


def _draft(part: Event) -> bool:
    return _whole(part.get("row")) and _whole(part.get("at")) and _nodes(part)


def _nodes(part: Event) -> bool:
    tokens, probs = part.get("tokens", 0), part.get("probs", 0)
    if not (_wholes(tokens) and _every(probs, _number) and len(tokens) == len(probs)):
        return False
    if "parents" not in part:
        return True
    parents = part["parents"]
    return (
        isinstance(parents, list)
        and len(parents) == len(tokens)
        and all(type(p) is int and -1 <= p < node for node, p in enumerate(parents))
    )


def _review(part: Event) -> bool:
    if not (_draft(part) and _whole(part.get("token")) and _number(part.get("prob", 1))):
        return False
    tokens, sources, kept = part["tokens"], part.get("sources", 0), part.get("kept", 0)
    if not (_wholes(sources) and _wholes(kept) and len(sources) == len(tokens)):
        return False
    parents = part.get("parents", range(-1, len(tokens) - 1))
    above = -1
    for node in kept:
        if node >= len(tokens) or parents[node] != above:
            return False
        above = node
    return True


def lines_of(events: Iterable[Event]) -> bytes:
    """Events as the file holds them."""
    return b"".join(json.dumps(event, separators=(",", ":")).encode() + b"\n" for event in events)


TIMED: dict[str, Check] = {"t": _number}
PASS: dict[str, Check] = {**TIMED, "s": _number, "level": _whole}
FIELDS: dict[str, dict[str, Check]] = {
    "pieces": {"pieces": _pieces},
    "request": {
        **TIMED,
        "row": _whole,
        "request": _text,
        "index": _whole,
        "prompt": _wholes,
        "start": _whole,
        "text?": _text,
        "emitted?": _wholes,
        "settings?": lambda value: isinstance(value, dict),
    },
    "admit": {**TIMED, "row": _whole, "cached": _whole},
    "prefill": {**TIMED, "s": _number, "row": _whole, "begin": _whole, "end": _whole},
    "draft": {**PASS, "rows": _drafts},
    "review": {**PASS, "rows": _reviews},
    "emit": {
        **TIMED,
        "row": _whole,
        "tokens": _wholes,
        "levels": _wholes,
        "texts": _texts,
        "finish?": _text,
    },
    "retire": {**TIMED, "row": _whole, "level": _whole},
    "preempt": {**TIMED, "row": _whole},
    "drop": {**TIMED, "row": _whole},
    "step": {**TIMED, "s": _number},
}
"""Fields of each kind of event that a reader relies on; others may be there."""
