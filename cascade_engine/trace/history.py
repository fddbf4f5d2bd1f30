"""What a trace tells: rows, and for each the rounds that gave its tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cascade_engine.errors import TraceError
from cascade_engine.trace.format import Event, read_events

ROOT = -1
"""Parent of drafted tokens that follow the row directly."""


@dataclass
class Action:
    """One row's part in a pass: tokens drafted or reviewed behind its leading `at` tokens."""

    kind: str
    """"draft", "review", or "retire" (the level failed on the row and is not asked again)."""
    level: int
    number: int
    """Of the pass, in `History.passes`."""
    at: int = 0
    tokens: list[int] = field(default_factory=list)
    parents: Sequence[int] = ()
    """Of each token, the one that it follows, or ROOT."""
    probs: list[float] = field(default_factory=list)
    """What the level that drafted each token gave it behind its parent; 1 for copied text."""
    sources: list[int] = field(default_factory=list)
    """The level that drafted each token."""
    kept: list[int] = field(default_factory=list)
    """Of a review: the tokens that stay, each the parent of the next."""
    token: int | None = None
    """Of a review: the level's own token behind them, and what it gave it."""
    prob: float = 1.0

    def depths(self) -> list[int]:
        """Of each token, 0 behind `at`."""
        depths: list[int] = []
        for parent in self.parents:
            depths.append(0 if parent == ROOT else depths[parent] + 1)
        return depths


@dataclass
class Round:
    """What happened to a row from one target review to the next."""

    actions: list[Action] = field(default_factory=list)
    t: float = 0.0
    """When its tokens were emitted."""
    tokens: list[int] = field(default_factory=list)
    """Emitted; none if the row was preempted, dropped or the trace ends before."""
    levels: list[int] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    """The text that became final with each token."""


@dataclass
class TracedRow:
    """One sample of a request."""

    number: int
    request: str
    index: int
    prompt: list[int]
    text: str
    """The prompt's; empty where there was no tokenizer."""
    start: int
    """Leading tokens that were not generated."""
    emitted: list[int]
    """Tokens that it had when the trace, or its fork, began."""
    settings: Event
    asked: float
    begun: float | None = None
    ended: float | None = None
    finish: str | None = None
    """"stop", "length", "dropped", or None: it still ran when the trace ended."""
    rounds: list[Round] = field(default_factory=lambda: [Round()])


@dataclass
class Pass:
    """One pass of a level over one or more rows, in seconds from the trace's beginning; or those in
    which a model drafted by itself."""

    kind: str
    """"draft", "review" or "prefill"."""
    level: int
    t: float
    s: float
    rows: list[int]
    passes: int = 1
    row_passes: int = 1
    """Passes, each counted for every row in it."""


@dataclass
class History:
    header: Event
    levels: list[str]
    """Names, the target first, the statistical level last."""
    truncated: bool
    pieces: dict[int, str] = field(default_factory=dict)
    rows: list[TracedRow] = field(default_factory=list)
    passes: list[Pass] = field(default_factory=list)
    steps: list[tuple[float, float]] = field(default_factory=list)
    """Begin and seconds of each engine step."""
    cached: int = 0
    """Prompt tokens found in the cache."""
    preempted: int = 0

    def piece(self, token: int) -> str:
        """A token as the vocabulary spells it; its number where there is no vocabulary."""
        return self.pieces.get(token, f"#{token}")


def load(path: str | Path) -> History:
    """Reads a trace. Raises TraceError, OSError."""
    header, events, truncated = read_events(path)
    history = History(header, header["levels"], truncated)
    for event in events:
        try:
            _HANDLERS[event["event"]](history, event)
        except LookupError:
            text = f"{path}: {event['event']} at t={event.get('t')} does not fit what came before"
            raise TraceError(f"{text}: the file is damaged") from None
    for row in history.rows:
        if not row.rounds[-1].actions:
            row.rounds.pop()
    return history


def _pieces(history: History, event: Event) -> None:
    history.pieces.update((int(token), piece) for token, piece in event["pieces"].items())


def _request(history: History, event: Event) -> None:
    if event["row"] != len(history.rows):
        raise LookupError
    history.rows.append(
        TracedRow(
            event["row"],
            event["request"],
            event["index"],
            event["prompt"],
            event.get("text", ""),
            event["start"],
            event.get("emitted", []),
            event.get("settings", {}),
            event["t"],
        )
    )


def _admit(history: History, event: Event) -> None:
    row = history.rows[event["row"]]
    row.begun = event["t"] if row.begun is None else row.begun
    history.cached += event["cached"]


def _prefill(history: History, event: Event) -> None:
    row = history.rows[event["row"]].number
    history.passes.append(Pass("prefill", 0, event["t"], event["s"], [row]))


def _pass(history: History, event: Event) -> None:
    kind, level = event["event"], event["level"]
    if level >= len(history.levels):
        raise LookupError
    number = len(history.passes)
    rows = list(dict.fromkeys(part["row"] for part in event["rows"]))
    counts = 1, len(rows)
    if kind == "draft" and level < len(history.levels) - 1:
        lengths = [len(part["tokens"]) for part in event["rows"]]
        counts = max(lengths, default=0), sum(lengths)
    history.passes.append(Pass(kind, level, event["t"], event["s"], rows, *counts))
    for part in event["rows"]:
        tokens = part["tokens"]
        sources = part.get("sources", [level] * len(tokens))
        if max(sources, default=0) >= len(history.levels):
            raise LookupError
        action = Action(
            kind,
            level,
            number,
            part["at"],
            tokens,
            part.get("parents", range(ROOT, len(tokens) - 1)),
            part["probs"],
            sources,
            part.get("kept", []),
            part.get("token"),
            part.get("prob", 1.0),
        )
        history.rows[part["row"]].rounds[-1].actions.append(action)


def _retire(history: History, event: Event) -> None:
    action = Action("retire", event["level"], len(history.passes))
    if event["level"] >= len(history.levels):
        raise LookupError
    history.rows[event["row"]].rounds[-1].actions.append(action)


def _emit(history: History, event: Event) -> None:
    row = history.rows[event["row"]]
    this = row.rounds[-1]
    if not len(event["tokens"]) == len(event["levels"]) == len(event["texts"]):
        raise LookupError
    if max(event["levels"], default=0) >= len(history.levels):
        raise LookupError
    this.t, this.tokens = event["t"], event["tokens"]
    this.levels, this.texts = event["levels"], event["texts"]
    row.rounds.append(Round())
    if "finish" in event:
        row.finish, row.ended = event["finish"], event["t"]


def _preempt(history: History, event: Event) -> None:
    rounds = history.rows[event["row"]].rounds
    if rounds[-1].actions:
        rounds.append(Round())
    history.preempted += 1


def _drop(history: History, event: Event) -> None:
    row = history.rows[event["row"]]
    row.finish, row.ended = "dropped", event["t"]


def _step(history: History, event: Event) -> None:
    history.steps.append((event["t"], event["s"]))


_HANDLERS = {
    "pieces": _pieces,
    "request": _request,
    "admit": _admit,
    "prefill": _prefill,
    "draft": _pass,
    "review": _pass,
    "retire": _retire,
    "emit": _emit,
    "preempt": _preempt,
    "drop": _drop,
    "step": _step,
}
