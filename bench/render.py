"""Tables in README.md and docs/ from the newest results: never edited by hand.

    python -m bench.render            # after a benchmark wrote bench/results/DATE-NAME.json
    python -m bench.render --check    # exit status 1 if a page is not what the results say

A page names its tables: what stands between `<!-- results: decode -->` and `<!-- end -->` is
rendered, the rest is left alone. Of each result the file with the latest date in its name counts.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from bench import tables

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
PAGES = ("README.md", "docs/benchmarks.md")
_DATED = re.compile(r"(\d{4}-\d\d-\d\d)-(.+)\.json")
_BLOCK = re.compile(r"(<!-- results: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
TABLES: dict[str, Callable[[tables.Results], str]] = {
    "headline": tables.headline,
    "decode": tables.decode,
    "sample": tables.sample,
    "swi": tables.swi,
    "replayed": tables.replayed,
    "ablations": tables.ablations,
}


def newest(folder: Path) -> tables.Results:
    """The newest report of each name: DATE-NAME.json. Raises ValueError for a damaged one."""
    found: dict[str, Path] = {}
    for path in sorted(folder.glob("*.json")):
        if match := _DATED.fullmatch(path.name):
            found[match[2]] = path  # dates sort as text
    reports: tables.Results = {}
    for name, path in found.items():
        try:
            reports[name] = json.loads(path.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}: {error}; remove it or measure again") from error
    return reports


def rendered(page: str, results: tables.Results) -> str:
    """A page with its tables. Raises ValueError for one that there is not, or without an end."""

    def block(match: re.Match[str]) -> str:
        if match[2] not in TABLES:
            raise ValueError(f"no table {match[2]!r}: there are {', '.join(TABLES)}")
        if "<!-- results:" in match[0][len(match[1]) :]:
            raise ValueError(f"table {match[2]!r} has no <!-- end -->")
        return f"{match[1]}{TABLES[match[2]](results).strip()}\n{match[3]}"

    filled = _BLOCK.sub(block, page)
    begun, ended = filled.count("<!-- results:"), len(_BLOCK.findall(filled))
    if begun != ended:
        raise ValueError(f"{begun} tables begin and {ended} end: <!-- end --> closes one")
    return filled


def stale(root: Path = ROOT, results: Path = RESULTS) -> list[Path]:
    """Pages that are not what the newest results render."""
    found = newest(results)
    paths = [root / page for page in PAGES]
    return [p for p in paths if rendered(p.read_text("utf-8"), found) != p.read_text("utf-8")]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.render",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--check", action="store_true", help="change nothing")
    args = parser.parse_args(argv)
    pages = stale()
    results = newest(RESULTS)
    for path in pages:
        if args.check:
            print(f"{path.relative_to(ROOT)} is stale: run `python -m bench.render`")
        else:
            path.write_text(rendered(path.read_text("utf-8"), results), encoding="utf-8")
            print(f"rendered {path.relative_to(ROOT)}")
    return 1 if args.check and pages else 0


if __name__ == "__main__":
    raise SystemExit(main())
