"""Train a draft for a LLaMA target on the target's own answers.

    python -m cascade_engine.distill --target DIR --prompts FILE --size 15m --out DRAFT
    python -m cascade_engine.generate --target DIR --draft DRAFT "Once upon a time"

The engine writes the target's answers to the prompts down (greedy, or drawn with --temperature),
with its --top most likely tokens beside each; a small LLaMA with the target's tokenizer learns them
(cross entropy, and the divergence from the target's distribution over those tokens). OUT gets the
draft, which `Engine.load(drafts=[OUT])` takes, and report.json: how often the draft's choice is the
target's on prompts kept apart, and tokens for each pass of the target. A run that was stopped goes
on with --resume. Needs the extra `train`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from cascade_engine.console import say
from cascade_engine.distill.run import DTYPES, Options, distill
from cascade_engine.errors import CascadeError
from cascade_engine.prompt_files import read_prompts

AT_LEAST_ONE = ("max_new_tokens", "samples", "steps", "batch_tokens", "rows")
AT_LEAST_ZERO = ("held_out", "top", "context")


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m cascade_engine.distill",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("--target", type=Path, required=True, metavar="DIR")
    p.add_argument("--prompts", type=Path, required=True, metavar="FILE", help="a line, or .jsonl")
    p.add_argument(
        "--size",
        required=True,
        help="15m, 42m, 110m; hidden=288,layers=2; or a fraction of the target: 0.05",
    )
    p.add_argument("--out", type=Path, required=True, metavar="DIR")
    p.add_argument("--resume", action="store_true", help="go on where a run in --out stopped")
    p.add_argument(
        "--draft", type=Path, action="append", default=[], metavar="DIR",
        help="of the target, to get its answers sooner",
    )  # fmt: skip
    p.add_argument("--held-out", type=int, default=0, metavar="N", help="default: a tenth, <= 64")
    p.add_argument("--max-new-tokens", type=int, default=256, metavar="N")
    p.add_argument("--temperature", type=float, default=0.0, metavar="T")
    p.add_argument("--samples", type=int, default=1, metavar="N", help="answers to each prompt")
    p.add_argument("--top", type=int, default=8, metavar="K", help="0: cross entropy alone")
    p.add_argument("--steps", type=int, default=2000, metavar="N")
    p.add_argument("--batch-tokens", type=int, default=4096, metavar="N")
    p.add_argument(
        "--context", type=int, default=0, metavar="N", help="default: the longest answer"
    )
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--dtype", choices=DTYPES, default="bfloat16", help="of the draft's weights")
    p.add_argument("--rows", type=int, default=16, metavar="N", help="prompts answered together")
    p.add_argument("--threads", type=int)
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    p = parser()
    args = p.parse_args(argv)
    for name in (*AT_LEAST_ONE, *AT_LEAST_ZERO):
        least = 1 if name in AT_LEAST_ONE else 0
        if getattr(args, name) < least:
            option = name.replace("_", "-")
            p.error(f"--{option} must be >= {least}, got {getattr(args, name)}")
    resume = args.resume
    values = {k: v for k, v in vars(args).items() if k not in ("resume", "draft", "prompts")}
    try:
        options = Options(prompts=read_prompts(args.prompts), drafts=tuple(args.draft), **values)
        report = distill(options, resume, say)
    except (CascadeError, ImportError, OSError) as error:
        say(f"error: {error}")
        return 2
    except KeyboardInterrupt:
        say("interrupted; go on with --resume")
        return 130
    print(f"{args.out}: {report['parameters']:,} parameters; agreement {report['agreement']:.3f}")
    for name, found in report["cascade"]["settings"].items():
        print(
            f"  {name:24s} {found['tokens_per_target_call']:.2f} tokens per target pass, "
            f"{found['identical']} of {report['cascade']['answers']} answers identical"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
