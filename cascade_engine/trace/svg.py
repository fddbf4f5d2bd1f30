"""A picture of how some tokens came about: a line for each draft and review of a round."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources

from cascade_engine.errors import TraceError
from cascade_engine.trace.history import Action, History, TracedRow

CHARACTER = 7.25
"""Width of one, in pixels, of the picture's 12 px monospace font."""
LINE = 26
LEFT = 178
CONTEXT = 60
"""Characters of the text before a round."""


@dataclass
class _Cell:
    position: int
    text: str
    level: int
    look: str
    """"kept", "gone", "own" or "draft"."""


@dataclass
class _Line:
    label: str
    level: int
    cells: list[_Cell]


def picture(history: History, row: int, rounds: Sequence[int]) -> str:
    """Rounds of a row (both from 1, as the page numbers them) as SVG.

    Raises TraceError where there is no such row or round."""
    if not 1 <= row <= len(history.rows):
        raise TraceError(f"--row must be in 1..{len(history.rows)}, got {row}")
    traced = history.rows[row - 1]
    for number in rounds:
        if not 1 <= number <= len(traced.rounds):
            raise TraceError(f"--rounds must be within 1..{len(traced.rounds)}, got {number}")
    body, y, width = [], 12.0, 0.0
    for number in rounds:
        panel, height, right = _panel(history, traced, number)
        body.append(f'<g transform="translate(0 {y:.0f})">{panel}</g>')
        y, width = y + height + 14, max(width, right)
    legend, right = _legend(history)
    body.append(f'<g transform="translate(0 {y:.0f})">{legend}</g>')
    width, y = max(width, right) + 12, y + 30
    style = resources.files(__package__).joinpath("page", "picture.css").read_text("utf-8")
    size = f'width="{width:.0f}" height="{y:.0f}"'
    box = f'viewBox="0 0 {width:.0f} {y:.0f}"'
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {box} {size} role="img">',
        "<title>How a cascade drafted and reviewed tokens</title>",
        f"<style>{style}</style>",
        f'<rect class="paper" {size}/>',
        *body,
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def _panel(history: History, row: TracedRow, number: int) -> tuple[str, float, float]:
    """A round's drawing, its height and its width."""
    this = row.rounds[number - 1]
    lines = [line for action in this.actions for line in _lines(history, action)]
    columns = _columns(lines)
    before = row.text + "".join("".join(each.texts) for each in row.rounds[: number - 1])
    before = before[-CONTEXT:].replace("\n", "⏎")
    gave = "1 token" if len(this.tokens) == 1 else f"{len(this.tokens)} tokens"
    told = f"round {number}: {gave} for one pass of the target, behind “…{before}”"
    parts = [f'<text class="head" x="10" y="13">{_escaped(told)}</text>']
    y = 24.0
    for line in lines:
        if line.label:
            shown = _escaped(line.label)
            parts.append(f'<text class="label" x="10" y="{y + 16:.0f}">{shown}</text>')
        parts += [_drawn(cell, columns, y, len(history.levels)) for cell in line.cells]
        y += LINE
    right = max((x + w for x, w in columns.values()), default=0.0)
    return "".join(parts), y, max(right, 10 + len(told) * CHARACTER * 0.95)


def _lines(history: History, action: Action) -> Iterable[_Line]:
    """A draft is a line; a review one, with its own token on a second where it replaced others."""
    name = history.levels[action.level]
    depths, kept = action.depths(), set(action.kept)
    if action.kind == "retire":
        yield _Line(f"{name} fails", action.level, [])
        return
    drawn: dict[int, _Cell] = {}
    for node, token in enumerate(action.tokens):
        look = "draft" if action.kind == "draft" else "kept" if node in kept else "gone"
        position = action.at + depths[node]
        if position not in drawn or node in kept:  # of a tree: the kept path, else the first
            text = history.piece(token)
            drawn[position] = _Cell(position, text, action.sources[node], look)
    cells = list(drawn.values())
    if action.kind == "draft":
        yield _Line(f"{name} drafts", action.level, cells)
        return
    assert action.token is not None
    place = action.at + len(action.kept)
    own = _Cell(place, history.piece(action.token), action.level, "own")
    if place in drawn:
        yield _Line(f"{name} reviews", action.level, cells)
        yield _Line("", action.level, [own])
    else:
        yield _Line(f"{name} reviews", action.level, [*cells, own])


def _columns(lines: Iterable[_Line]) -> dict[int, tuple[float, float]]:
    """Left edge and width of each position."""
    widths: dict[int, float] = {}
    for cell in (cell for line in lines for cell in line.cells):
        width = max(18.0, len(_shown(cell.text)) * CHARACTER + 9)
        widths[cell.position] = max(width, widths.get(cell.position, 0.0))
    columns, x = {}, float(LEFT)
    for position in sorted(widths):
        columns[position] = (x, widths[position])
        x += widths[position] + 3
    return columns


def _drawn(cell: _Cell, columns: dict[int, tuple[float, float]], y: float, num_levels: int) -> str:
    x, width = columns[cell.position]
    look = f"{cell.look} {_class_of(cell.level, num_levels)}"
    middle = x + width / 2
    place = f'x="{x:.1f}" y="{y + 1:.0f}" width="{width:.1f}" height="21" rx="4"'
    box = f'<rect class="{look}" {place}/>'
    text = _escaped(_shown(cell.text))
    return f'{box}<text class="token {cell.look}" x="{middle:.1f}" y="{y + 16:.0f}">{text}</text>'


def _legend(history: History) -> tuple[str, float]:
    parts, x = [], 10.0
    entries = [(_class_of(i, len(history.levels)), name) for i, name in enumerate(history.levels)]
    entries += [("draft", "drafted"), ("gone", "rejected"), ("own", "written by the reviewer")]
    for look, name in entries:
        parts.append(f'<rect class="{look}" x="{x:.0f}" y="2" width="16" height="14" rx="3"/>')
        if look == "gone":
            parts.append(f'<text class="gone" x="{x + 4:.0f}" y="13">x</text>')
        parts.append(f'<text class="label" x="{x + 22:.0f}" y="14">{_escaped(name)}</text>')
        x += 46 + len(name) * 6.9
    return "".join(parts), x


def _class_of(level: int, num_levels: int) -> str:
    if level == 0:
        return "target"
    return "table" if level == num_levels - 1 else f"draft{1 + (level - 1) % 5}"


def _shown(text: str) -> str:
    """A token's text with its white space to be seen."""
    return text.replace(" ", "·").replace("\n", "⏎").replace("\t", "⇥")


def _escaped(text: str) -> str:
    """Text for XML: no markup, no character that XML cannot hold."""
    return escape("".join(c if c.isprintable() else "\ufffd" for c in text))
