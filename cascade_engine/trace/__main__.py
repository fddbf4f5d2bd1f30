"""`python -m cascade_engine.trace`: pages and pictures of a trace."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from cascade_engine.errors import CascadeError, TraceError
from cascade_engine.trace.chrome import chrome
from cascade_engine.trace.history import History, load
from cascade_engine.trace.html import page
from cascade_engine.trace.statistics import statistics
from cascade_engine.trace.svg import picture

EXIT_ERROR = 2
COMMANDS = {
    "html": (".html", "a page for a browser: text by level, rejected drafts, acceptance, times"),
    "chrome": (".json", "a file that Perfetto (ui.perfetto.dev) and chrome://tracing open"),
    "svg": (".svg", "a picture of some rounds of one sample"),
    "stats": ("", "what Engine.stats counted while the trace ran, as JSON"),
}


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m cascade_engine.trace",
        description="Shows a trace that `generate --trace FILE` or `Engine.trace` wrote.",
        epilog="exit codes: 0 done; 2 an error, explained in one line",
        allow_abbrev=False,
    )
    commands = p.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (ending, told) in COMMANDS.items():
        command = commands.add_parser(name, help=told, description=told, allow_abbrev=False)
        command.add_argument("file", metavar="FILE", help="the trace")
        default = f"FILE, ending in {ending}" if ending else "standard output"
        command.add_argument(
            "-o", "--out", metavar="OUT", help=f"- is standard output; default: {default}"
        )
        if name == "svg":
            command.add_argument("--row", type=int, default=1, metavar="N", help="default: 1")
            command.add_argument(
                "--rounds", default="1-3", metavar="LIST", help="such as 2,5-7; default: 1-3"
            )
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    args = parser().parse_args(argv)
    try:
        history = load(args.file)
        if history.truncated:
            print("the trace ends in the middle of a line: left out", file=sys.stderr)
        _write(args, _RENDER[args.command](history, args))
    except (CascadeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_ERROR
    return 0


def _write(args: argparse.Namespace, text: str) -> None:
    source, ending = Path(args.file), COMMANDS[args.command][0]
    out = args.out or (str(source.with_suffix(ending)) if ending else "-")
    if out == "-":
        sys.stdout.write(text)
    elif Path(out).exists() and Path(out).samefile(source):
        raise TraceError(f"{out} is the trace itself: give another -o")
    else:
        Path(out).write_text(text, "utf-8")
        print(f"{out}: {len(text.encode()) / 1e3:.0f} kB", file=sys.stderr)


def _html(history: History, args: argparse.Namespace) -> str:
    return page(history, Path(args.file).name)


def _chrome(history: History, args: argparse.Namespace) -> str:
    return json.dumps(chrome(history), separators=(",", ":")) + "\n"


def _svg(history: History, args: argparse.Namespace) -> str:
    return picture(history, args.row, _numbers(args.rounds))


def _numbers(text: str) -> list[int]:
    """Of a list such as 2,5-7."""
    numbers: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not first <= last <= first + 999:
            raise TraceError(f"--rounds must be numbers such as 2,5-7, got {text!r}")
        numbers += range(first, last + 1)
    return numbers


def _stats(history: History, args: argparse.Namespace) -> str:
    return json.dumps(statistics(history), indent=2) + "\n"


_RENDER: dict[str, Callable[[History, argparse.Namespace], str]] = {
    "html": _html,
    "chrome": _chrome,
    "svg": _svg,
    "stats": _stats,
}

if __name__ == "__main__":
    sys.exit(main())
