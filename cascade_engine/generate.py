"""`python -m cascade_engine.generate`: decode a prompt with a cascade, and show what it saved."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from cascade_engine.console import LoadProgress, colour_of, paint, say, summary
from cascade_engine.engine import Engine, Generation
from cascade_engine.errors import CascadeError, RequestError
from cascade_engine.params import SamplingParams
from cascade_engine.policy import FixedCascade, PlainDecoding, Policy

EXIT_ERROR = 2
EXIT_DIFFERENT = 3
EXIT_INTERRUPTED = 130

EXAMPLES = """\
examples:
  python -m cascade_engine.generate --target DIR "Once upon a time"
  python -m cascade_engine.generate --target DIR --draft SMALLER --k-matrix "13,10;0,10" --compare
  echo "Once upon a time" | python -m cascade_engine.generate --target DIR --quiet

exit codes: 0 done; 2 an error, explained in one line; 3 --compare found a difference;
130 interrupted (what was produced is printed).
"""


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m cascade_engine.generate",
        description="Decode a prompt with a cascade of drafts; the text is that of plain decoding.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("prompt", nargs="?", help="the prompt; read from standard input if not given")
    models = p.add_argument_group("models")
    models.add_argument("--target", metavar="DIR", required=True, help="Hugging Face directory")
    models.add_argument(
        "--draft", metavar="DIR", action="append", default=[], help="repeatable, large to small"
    )
    models.add_argument("--table", metavar="FILE", help="n-gram table that fills up drafts")
    models.add_argument("--dtype", default="auto", help="auto, float32 or bfloat16")
    models.add_argument("--threads", type=int, help="default: CASCADE_THREADS or all cores")
    sampling = p.add_argument_group("sampling")
    sampling.add_argument("--max-new-tokens", type=int, default=256, metavar="N")
    sampling.add_argument("--temperature", type=float, default=0.0, metavar="T")
    sampling.add_argument("--top-k", type=int, default=0, metavar="K")
    sampling.add_argument("--top-p", type=float, default=1.0, metavar="P")
    sampling.add_argument("--seed", type=int)
    sampling.add_argument("--ignore-eos", action="store_true")
    cascade = p.add_argument_group("cascade")
    cascade.add_argument(
        "--k-matrix",
        metavar="K",
        help='draft lengths, a row per reviewing level, such as "13,10;0,10" (increments)',
    )
    cascade.add_argument(
        "--lenience", type=float, default=1.0, help="between drafting levels, >= 1"
    )
    cascade.add_argument("--plain", action="store_true", help="no speculation")
    cascade.add_argument(
        "--compare", action="store_true", help="also decode plainly; report identity and speed"
    )
    output = p.add_argument_group("output")
    output.add_argument("--stats-json", metavar="FILE", help="write counts and times")
    output.add_argument("--quiet", action="store_true", help="the text alone")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    args = parser().parse_args(argv)
    try:
        return _run(args)
    except (CascadeError, OSError) as error:
        say(f"error: {error}")
        return EXIT_ERROR
    except KeyboardInterrupt:
        say("interrupted")
        return EXIT_INTERRUPTED


def _policy(args: argparse.Namespace, drafting_levels: int) -> Policy:
    if args.plain:
        if args.k_matrix is not None:
            raise RequestError("--plain and --k-matrix exclude each other")
        return PlainDecoding()
    if args.k_matrix is not None:
        return FixedCascade.parse(args.k_matrix, args.lenience)
    return FixedCascade(FixedCascade.default(drafting_levels).k_matrix, args.lenience)


def _run(args: argparse.Namespace) -> int:
    params = SamplingParams(
        max_tokens=args.max_new_tokens,
        temperature=args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        seed=args.seed,
        ignore_eos=args.ignore_eos,
    )
    policy = _policy(args, len(args.draft) + 1)
    prompt = args.prompt if args.prompt is not None else _read_prompt()
    engine = _load(args, policy)
    result = _decode(engine, prompt, params)
    if args.stats_json:
        Path(args.stats_json).write_text(json.dumps(result.stats_dict(), indent=2) + "\n")
    if not args.quiet:
        seed = result.seed if params.temperature > 0 else None
        say(summary(result.stats, result.finish_reason, seed, sys.stderr.isatty()))
    if result.finish_reason == "abort":
        return EXIT_INTERRUPTED
    return _compare(engine, prompt, params, result) if args.compare else 0


def _read_prompt() -> str:
    if sys.stdin.isatty():
        raise RequestError("no prompt: give one as an argument or on standard input")
    return sys.stdin.read().rstrip("\n")


def _load(args: argparse.Namespace, policy: Policy) -> Engine:
    progress = LoadProgress(sys.stderr)
    try:
        engine = Engine.load(
            args.target,
            args.draft,
            args.table,
            dtype=args.dtype,
            policy=policy,
            threads=args.threads,
            max_rows=1,
            progress=None if args.quiet else progress,
        )
    finally:
        if not args.quiet:
            progress.close()
    if not args.quiet:
        for line in engine.report.lines:
            say(line)
    return engine


def _decode(engine: Engine, prompt: str, params: SamplingParams) -> Generation:
    """Streams the text to standard output; on Ctrl-C ends with what was produced."""
    coloured = sys.stdout.isatty()
    levels = len(engine.level_names)
    stream = engine.stream(prompt, params)
    try:
        for piece in stream:
            colour = colour_of(piece.level, levels) if coloured else None
            sys.stdout.write(paint(piece.text, colour))
            sys.stdout.flush()
    except KeyboardInterrupt:
        stream.close()
    sys.stdout.write("\n")
    sys.stdout.flush()
    return stream.result()


def _compare(engine: Engine, prompt: str, params: SamplingParams, result: Generation) -> int:
    """Decodes again without speculation, same seed; reports identity and the speed ratio."""
    engine.set_policy(PlainDecoding())
    plain = engine.generate(prompt, replace(params, seed=result.seed))[0]
    if plain.token_ids != result.token_ids:
        pairs = zip(plain.token_ids, result.token_ids, strict=False)
        at = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
        at = min(len(plain.token_ids), len(result.token_ids)) if at is None else at
        say(
            f"compare: DIFFERENT from token {at}: {plain.token_ids[at : at + 4]} plain, "
            f"{result.token_ids[at : at + 4]} with the cascade"
        )
        return EXIT_DIFFERENT
    ratio = plain.stats.seconds / result.stats.seconds
    say(
        f"compare: identical ({len(plain.token_ids)} tokens); plain decoding took "
        f"{plain.stats.seconds:.3f} s and {plain.stats.target_calls} target passes: "
        f"the cascade is {ratio:.2f}x as fast"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
