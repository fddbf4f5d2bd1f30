"""python -m cascade_engine.tables build|info: makes and describes n-gram tables.

    python -m cascade_engine.tables build --corpus a.txt b.txt --tokenizer DIR --order 4 \\
        --max-bytes 4000000 --out table.safetensors
    python -m cascade_engine.tables info table.safetensors
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from cascade_engine.errors import CascadeError, RequestError
from cascade_engine.tables.build import BuildOptions, build_table
from cascade_engine.tables.calibrate import calibrated_doubts
from cascade_engine.tables.files import read_info, save_table
from cascade_engine.tokenizer import Tokenizer

BLOCK_CHARACTERS = 1 << 14
"""Text is tokenized in blocks of about this size that end with a line."""
HELD_OUT = 100
"""With --calibrate every so many blocks one is not counted."""


def main(arguments: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(arguments)
    try:
        return _build(args) if args.command == "build" else _info(args.file)
    except (CascadeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m cascade_engine.tables",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    build = commands.add_parser("build", help="count the n-grams of texts into a table")
    build.add_argument("--corpus", nargs="+", required=True, type=Path, metavar="FILE")
    build.add_argument("--tokenizer", required=True, type=Path, metavar="DIR")
    build.add_argument("--order", type=int, default=3, help="longest context (default 3)")
    build.add_argument("--out", required=True, type=Path, metavar="FILE")
    build.add_argument("--max-bytes", type=int, help="drop rare n-grams until the table fits")
    build.add_argument("--max-successors", type=int, default=16, help="of a context (default 16)")
    build.add_argument(
        "--calibrate",
        action="store_true",
        help=f"leave every {HELD_OUT}th block out and set the drafter's doubts by them",
    )
    build.add_argument("--quiet", action="store_true", help="no progress, no summary")
    info = commands.add_parser("info", help="describe a table")
    info.add_argument("file", type=Path)
    return parser


class _Progress:
    """One line on standard error that fills; silent where that is not a terminal."""

    def __init__(self, quiet: bool) -> None:
        self._active = sys.stderr.isatty() and not quiet

    def __call__(self, what: str, done: int, total: int) -> None:
        if self._active:
            bar = "#" * (24 * done // max(total, 1))
            print(
                f"\r\x1b[K{what} [{bar:.<24}] {done}/{total}", end="", file=sys.stderr, flush=True
            )

    def close(self) -> None:
        if self._active:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def _build(args: argparse.Namespace) -> int:
    started = time.monotonic()
    options = BuildOptions(args.order, args.max_bytes, args.max_successors).checked()
    tokenizer = Tokenizer.load(args.tokenizer)
    if tokenizer is None:
        raise RequestError(f"{args.tokenizer} has no tokenizer.model and no tokenizer.json")
    progress = _Progress(args.quiet)
    try:
        blocks = [block for path in args.corpus for block in _blocks(path)]
        documents = []
        for i, block in enumerate(blocks):
            if i % 16 == 0:
                progress("tokenizing blocks", i, len(blocks))
            documents.append(tokenizer.encode(block, add_bos=False, add_eos=False))
        held_out = documents[HELD_OUT - 1 :: HELD_OUT] if args.calibrate else []
        if held_out:
            del documents[HELD_OUT - 1 :: HELD_OUT]
        table = build_table(documents, tokenizer.vocab_size, options, progress)
        doubts = calibrated_doubts(table.native(), held_out, progress) if args.calibrate else ()
        names = ", ".join(path.name for path in args.corpus)
        command = _command(args)
        save_table(args.out, table, tokenizer.fingerprint(), names, command, doubts)
    finally:
        progress.close()
    if not args.quiet:
        _info(args.out)
        print(f"built in {time.monotonic() - started:.1f} s")
    return 0


def _command(args: argparse.Namespace) -> str:
    """What to type to build the same table; paths by their last part."""
    parts = ["python -m cascade_engine.tables build --corpus"]
    parts += [path.name for path in args.corpus]
    parts += ["--tokenizer", args.tokenizer.name, "--order", str(args.order)]
    if args.max_bytes is not None:
        parts += ["--max-bytes", str(args.max_bytes)]
    parts += ["--max-successors", str(args.max_successors), "--out", args.out.name]
    return " ".join(parts + ["--calibrate"] * args.calibrate)


def _blocks(path: Path) -> Iterator[str]:
    """The file's text in pieces of BLOCK_CHARACTERS or somewhat more, each ending with a line."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    except UnicodeDecodeError as error:
        raise RequestError(f"{path} must be UTF-8 text; byte {error.start} is not") from None
    block: list[str] = []
    size = 0
    for line in lines:
        block.append(line)
        size += len(line)
        if size >= BLOCK_CHARACTERS:
            yield "".join(block)
            block, size = [], 0
    if block:
        yield "".join(block)


def _info(path: Path) -> int:
    info = read_info(path)
    print(f"{path}: {info.nbytes / 1e6:.2f} MB, order {info.order}, {info.tokens} tokens counted")
    print(f"tokenizer: {info.vocab_size} pieces, fingerprint {info.fingerprint}")
    if info.corpus:
        print(f"corpus: {info.corpus}")
    if info.command:
        print(f"command: {info.command}")
    if info.doubts:
        print(f"doubts: {' '.join(f'{doubt:g}' for doubt in info.doubts)}")
    print("order   contexts  successors  min count")
    for n in range(info.order):
        print(f"{n + 1:5}  {info.contexts[n]:9}  {info.successors[n]:10}  {info.min_counts[n]:9}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
