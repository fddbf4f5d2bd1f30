"""Find the cascade setting for a task.

    python -m cascade_engine.tune --target DIR --draft LARGE --draft SMALL --prompts FILE --out DIR
    python -m cascade_engine.generate --target DIR --draft SMALL --policy DIR/FILE.policy.json ...

The target answers the prompts once. Which drafts to use, draft lengths, lenience and tree sizes are
then searched by running the engine over the recorded answers without models, with pass times that
were measured here: hundreds of settings a minute. The best few are run for real. For each file of
prompts --out gets a policy file, for `Engine.load(policy=FILE)` and `--policy FILE`, a picture of
the frontier and a report. Greedy decoding. Needs the extra `tune`.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cascade_engine.console import say
from cascade_engine.demo.family import llama_family
from cascade_engine.engine import Engine
from cascade_engine.errors import CascadeError, RequestError
from cascade_engine.models.config import LlamaConfig
from cascade_engine.models.family import open_model
from cascade_engine.prompt_files import read_prompts
from cascade_engine.tune.report import require_pyplot
from cascade_engine.tune.run import Options, tune
from cascade_engine.tune.search import require_optuna

COUNTS = ("rows", "trials", "verify", "rounds", "max_new_tokens", "questions")


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m cascade_engine.tune",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("--target", type=Path, metavar="DIR", help="default: the embedded models")
    p.add_argument(
        "--draft", type=Path, action="append", default=[], metavar="DIR",
        help="repeatable, large to small: what may be used",
    )  # fmt: skip
    p.add_argument("--table", metavar="FILE", help="n-gram table, or none")
    p.add_argument(
        "--prompts", type=Path, action="append", required=True, metavar="FILE",
        help="repeatable, a task each: one prompt a line, or .jsonl",
    )  # fmt: skip
    p.add_argument("--out", type=Path, required=True, metavar="DIR")
    p.add_argument("--questions", type=int, default=32, metavar="N", help="of each file, at most")
    p.add_argument("--rows", type=int, default=1, metavar="N", help="decoded together")
    p.add_argument("--trials", type=int, default=400, metavar="N", help="settings simulated")
    p.add_argument("--verify", type=int, default=3, metavar="N", help="settings run for real")
    p.add_argument("--rounds", type=int, default=5, metavar="N", help="of running them")
    p.add_argument("--no-lenience", action="store_true", help="search without it")
    p.add_argument("--max-new-tokens", type=int, default=200, metavar="N")
    p.add_argument("--dtype", default="auto")
    p.add_argument("--threads", type=int)
    p.add_argument("--seed", type=int, default=0, help="of the search")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    p = parser()
    args = p.parse_args(argv)
    for name in COUNTS:
        if getattr(args, name) < 1:
            p.error(f"--{name.replace('_', '-')} must be >= 1, got {getattr(args, name)}")
    try:
        _run(args)
    except (CascadeError, OSError) as error:
        say(f"error: {error}")
        return 2
    return 0


def _run(args: argparse.Namespace) -> None:
    require_optuna()
    require_pyplot()
    tasks = {path.stem: read_prompts(path)[: args.questions] for path in args.prompts}
    if len(tasks) < len(args.prompts):
        raise RequestError("--prompts: two files have the same name, and so would their results")
    engine = _load(args)
    if engine.tokenizer is None:
        raise RequestError(f"{args.target} has no tokenizer: prompts need one")
    args.out.mkdir(parents=True, exist_ok=True)
    options = Options(
        args.trials, args.verify, args.rounds, args.seed, not args.no_lenience, args.max_new_tokens
    )
    for name, texts in tasks.items():
        source: dict[str, Any] = {
            "prompts": name,
            "date": time.strftime("%Y-%m-%d"),
            "models": list(engine.report.lines),
        }
        prompts = [engine.tokenizer.encode(text) for text in texts]
        report = tune(engine, prompts, args.out / name, source, options, say)
        drafts = " ".join(f"--draft {_path(args, name)}" for name in report["chosen"]["levels"][1:])
        print(
            f"{report['chosen']['setting']}\n  use: {drafts} --policy {args.out / name}.policy.json"
        )


def _load(args: argparse.Namespace) -> Engine:
    target, drafts, table = args.target, args.draft, args.table
    if target is None:
        if drafts:
            raise RequestError("--draft needs --target: the embedded models have their own")
        family = llama_family()
        middle = family.target.parent / "llama-middle"
        target, drafts, table = family.target, [middle, *family.drafts], table or family.table
        args.draft = drafts
    if not isinstance(open_model(target)[0], LlamaConfig):
        raise RequestError(f"{target} is no LLaMA model: settings are tuned for those")
    return Engine.load(
        target, drafts, table, dtype=args.dtype, threads=args.threads, max_rows=args.rows,
        reuse_cache=False,
    )  # fmt: skip


def _path(args: argparse.Namespace, name: str) -> Path:
    return next(path for path in args.draft if Path(path).resolve().name == name)


if __name__ == "__main__":
    sys.exit(main())
