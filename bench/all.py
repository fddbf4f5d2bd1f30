"""The whole suite: every benchmark, its results under bench/results/, the pages' tables.

    python -m bench.all --quick             # at most ten minutes on two cores
    python -m bench.all                     # more rounds, more shapes: about an hour
    python -m bench.all --only swi sample

Each benchmark runs in a process of its own and leaves bench/results/DATE-NAME.json; then README.md
and docs/ are rendered from the newest results (bench.render). What cannot run here is named and
left out; exit status 1 if something failed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from bench import render
from bench.suite import JOBS, Job


def run(job: Job, quick: bool, folder: Path) -> bool:
    """Whether it worked; results appear complete or not at all."""
    final = folder / f"{time.strftime('%Y-%m-%d')}-{job.name}.json"
    partial = final.with_suffix(".partial")
    begin = time.perf_counter()
    command = [sys.executable, *job.command(quick), "--json", str(partial)]
    try:
        worked = subprocess.run(command, check=False).returncode == 0 and partial.exists()
        if worked:
            os.replace(partial, final)
    finally:
        partial.unlink(missing_ok=True)
    verdict = f"wrote {final.name}" if worked else "FAILED"
    print(f"-- {job.name}: {verdict} after {time.perf_counter() - begin:.0f} s\n", flush=True)
    return worked


def chosen(quick: bool, only: Sequence[str] | None) -> list[Job]:
    """Jobs by name, else all of a run."""
    if only:
        return [job for job in JOBS if job.name in only]
    return [job for job in JOBS if job.quick is not None or not quick]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.all",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="fewer benchmarks and rounds")
    names = [job.name for job in JOBS]
    parser.add_argument("--only", nargs="+", choices=names, metavar="NAME", help=", ".join(names))
    args = parser.parse_args(argv)
    failed = []
    for job in chosen(args.quick, args.only):
        if reason := job.missing():
            print(f"-- {job.name}: left out: {reason}\n", flush=True)
        elif not run(job, args.quick, render.RESULTS):
            failed.append(job.name)
    render.main([])
    if failed:
        print(f"failed: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
