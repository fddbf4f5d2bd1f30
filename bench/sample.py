"""What `make generate` prints, kept as a result: `python -m bench.sample --json FILE`."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence

from bench.measure import machine_facts, write_json
from cascade_engine.ops.cpu import default_threads


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.sample", description=__doc__)
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args(argv)
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}  # lines in the order of their writing
    command = [sys.executable, "-m", "cascade_engine.generate", "--compare"]
    # The second run: the first one reads the files, and measures the machine for later ones.
    for _ in range(2):
        shown = subprocess.check_output(
            command, stdin=subprocess.DEVNULL, stderr=subprocess.STDOUT, text=True, env=environment
        )
    print(shown)
    report = {"machine": machine_facts(default_threads()), "output": shown}
    write_json(args.json, report)


if __name__ == "__main__":
    main()
