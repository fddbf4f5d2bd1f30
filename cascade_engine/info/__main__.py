"""`python -m cascade_engine.info`: what models hold, what they cost here, what a draft can gain."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from cascade_engine.console import say
from cascade_engine.errors import CascadeError
from cascade_engine.info.collect import collect
from cascade_engine.info.text import as_text

EXIT_ERROR = 2
EXIT_INTERRUPTED = 130

EPILOG = """\
examples:
  python -m cascade_engine.info DIR
  python -m cascade_engine.info TARGET DRAFT --dtype bfloat16 --json

No weight is read. exit codes: 0 done; 2 an error, explained in one line; 130 interrupted.
"""


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m cascade_engine.info",
        description="What models hold, what they cost on this machine, what a draft can gain.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    p.add_argument("directories", metavar="DIR", nargs="+", help="the target, then its drafts")
    p.add_argument("--dtype", default="auto", help="auto, float32, bfloat16, int8")
    p.add_argument("--threads", type=int, help="default: CASCADE_THREADS or all cores")
    p.add_argument("--cached", type=int, metavar="N", help="tokens in the cache (default: 512)")
    p.add_argument("--json", action="store_true", help="the same as JSON")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    args = parser().parse_args(argv)
    try:
        report = collect(args.directories, args.dtype, args.threads, args.cached)
    except (CascadeError, OSError) as error:
        say(f"error: {error}")
        return EXIT_ERROR
    except KeyboardInterrupt:
        say("interrupted")
        return EXIT_INTERRUPTED
    print(json.dumps(report, indent=2) if args.json else as_text(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
