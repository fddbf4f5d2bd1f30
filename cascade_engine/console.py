"""What the command line shows: progress, coloured tokens, the closing table."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TextIO

from cascade_engine.engine.results import RunStats

# ANSI foreground colours of drafting levels 1, 2, ...; the target's own tokens stay plain.
LEVEL_COLOURS = (36, 35, 33, 34, 32, 31)
STATISTICAL_COLOUR = 32


def colour_of(level: int, num_levels: int) -> int | None:
    """ANSI colour of a level; None for the target."""
    if level == 0:
        return None
    if level == num_levels - 1:
        return STATISTICAL_COLOUR
    return LEVEL_COLOURS[(level - 1) % len(LEVEL_COLOURS)]


def coloured(stream: TextIO) -> bool:
    """Whether it is a terminal, and nobody asked for plain text (https://no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR")


def paint(text: str, colour: int | None) -> str:
    return text if colour is None or not text else f"\x1b[{colour}m{text}\x1b[0m"


class LoadProgress:
    """One line on `stream` that fills while layers are loaded; silent if not a terminal."""

    def __init__(self, stream: TextIO, width: int = 24) -> None:
        self._stream = stream
        self._width = width
        self._active = stream.isatty()

    def __call__(self, model: str, done: int, total: int) -> None:
        if not self._active:
            return
        filled = self._width * done // total
        bar = "#" * filled + "." * (self._width - filled)
        self._stream.write(f"\r\x1b[Kloading {model} [{bar}] {done}/{total} layers")
        self._stream.flush()

    def close(self) -> None:
        if self._active:
            self._stream.write("\r\x1b[K")
            self._stream.flush()


def table(rows: Sequence[Sequence[str]]) -> str:
    """Columns aligned: the first to the left, the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def summary(stats: RunStats, finish_reason: str, seed: int | None, colours: bool) -> str:
    """The closing table: totals, then a line per level."""
    head = (
        f"{stats.new_tokens} tokens in {stats.seconds:.3f} s, "
        f"{stats.tokens_per_second:.1f} tokens/s; {stats.target_calls} target passes, "
        f"{stats.tokens_per_target_call:.2f} tokens per pass "
        f"({stats.new_tokens - stats.target_calls} passes saved); finish: {finish_reason}"
    )
    if seed is not None:
        head += f"; seed {seed}"
    rows = [["level", "calls", "drafted", "accepted", "share of text", "ms"]]
    for level in stats.levels:
        share = level.accepted / stats.new_tokens if stats.new_tokens else 0.0
        rows.append(
            [
                level.name,
                str(level.calls),
                str(level.drafted),
                str(level.accepted),
                f"{share:.0%}",
                f"{level.seconds * 1e3:.1f}",
            ]
        )
    lines = table(rows).split("\n")
    if colours:
        for i in range(len(stats.levels)):
            lines[i + 1] = paint(lines[i + 1], colour_of(i, len(stats.levels)))
    return "\n".join([head, *lines])


def say(message: str) -> None:
    """A note for people: to standard error, so that piped output is the text alone."""
    print(message, file=sys.stderr, flush=True)
