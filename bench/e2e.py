"""Whole generations side by side in one run: ours under several settings, transformers, llama.cpp.

    python -m bench.e2e --peers hf,hf-assisted,llamacpp --rows 1,4,16 --json FILE
    python -m bench.e2e --target DIR --draft DIR --prompts FILE --setting "6,0;0,8 tree=16"
    python -m bench.e2e --random-prompts --peers none
    python -m bench.e2e --replay 110m --rows 1,4

For each number of rows every case answers every group of so many prompts in turn (greedy, up to
--max-new-tokens), round after round; ratios are of tokens per second. Defaults: the embedded LLaMA
models and questions of their test split. "Same" counts answers that are, token for token, those of
our plain decoding; in brackets those of the peer's own plain generation. Ours must all be the same.
Peers' need not be in bfloat16, where another order of sums ends in another token now and then.

--setting names one of ours: fixed (the default matrix), auto (the automatic policy), a policy file,
or a matrix, with options behind it such as "6,0;0,8 tree=16 siblings=2 lenience=2". --grid adds
twelve fixed ones. Plain decoding always takes part.

--replay SHAPE: passes of a target of that shape with random weights, decisions from Vicuna-7B's
recorded answers (bench.replay_level); figures of it are labelled "replayed".
"""

from __future__ import annotations

import argparse
import random
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bench.bars import E2E_BARS, E2E_RANDOM_BARS, judge, show_bars
from bench.e2e_cases import PEERS, Models, Setting, open_ours, open_peers, settings_of
from bench.generation import Ours, Prompts, figures, ratio, run_groups, same_answers
from bench.measure import machine_facts, write_json
from bench.replay_level import LABEL, Replayed, recorded
from bench.shapes import DTYPES, SHAPES
from cascade_engine.demo.corpus import sample_prompts
from cascade_engine.demo.family import llama_family
from cascade_engine.engine.results import Batching
from cascade_engine.errors import CascadeError
from cascade_engine.models.config import LlamaConfig
from cascade_engine.models.family import open_model
from cascade_engine.ops.cpu import default_threads
from cascade_engine.prompt_files import read_prompts
from cascade_engine.tokenizer import Tokenizer

EMBEDDED = "embedded"
RANDOM_PROMPT_TOKENS = (8, 64)
REPLAY_PROMPT = 1024
"""Tokens of a recorded prompt and of what its answer has beyond --max-new-tokens, at most."""


def models_of(args: argparse.Namespace) -> Models:
    """What is run; the embedded models where no target is named."""
    rows = max(args.rows)
    threads = args.threads or default_threads()
    if args.target is None:
        family = llama_family()
        target, drafts, table, matrix = (
            family.target, family.drafts, args.table or family.table, family.k_matrix,
        )  # fmt: skip
    else:
        target, drafts, table = Path(args.target), tuple(map(Path, args.draft)), args.table
        matrix = None
    config = open_model(target)[0]
    if not isinstance(config, LlamaConfig):
        raise CascadeError(f"{target} is no LLaMA model: bench.t5 is for encoder-decoders")
    stops = () if args.random_prompts else config.eos_ids
    return Models(
        target, drafts, table, matrix, args.dtype, threads, rows, args.max_new_tokens, stops
    )


def prompts_of(models: Models, args: argparse.Namespace) -> Prompts:
    """Token ids of as many prompts as the largest group needs at least; a short file's come
    again."""
    if args.random_prompts:
        vocab = open_model(models.target)[0].vocab_size
        rng = random.Random(0)
        count = max(args.questions, models.rows)
        lengths = [rng.randint(*RANDOM_PROMPT_TOKENS) for _ in range(count)]
        return [[rng.randrange(3, vocab) for _ in range(length)] for length in lengths]
    tokenizer = Tokenizer.load(models.target)
    if tokenizer is None:
        raise CascadeError(f"{models.target} has no tokenizer: use --random-prompts")
    if args.prompts is not None:
        texts = read_prompts(args.prompts)[: args.questions]
    else:
        texts = sample_prompts("test", args.questions)
    encoded = [tokenizer.encode(text) for text in texts]
    return [encoded[i % len(encoded)] for i in range(max(len(encoded), models.rows))]


def grouped(prompts: Prompts, rows: int) -> list[Prompts]:
    """Groups of exactly `rows` prompts; a rest is left out."""
    return [prompts[i : i + rows] for i in range(0, len(prompts) - rows + 1, rows)]


def measure_rows(
    rows: int, ours: dict[str, Any], peers: dict[str, Any], prompts: Prompts, seconds: float
) -> dict[str, Any]:
    """The figures of each case at one number of rows."""
    groups = grouped(prompts, rows)
    tallies = run_groups({**ours, **peers}, groups, seconds)
    plain = tallies["plain"]
    cases: dict[str, Any] = {}
    for name, tally in tallies.items():
        own = tallies.get(name.partition("-")[0]) if name in peers else None
        cases[name] = {
            **figures(tally),
            "same_as_plain": same_answers(tally, plain),
            "same_as_own_plain": None if own is None else same_answers(tally, own),
            "over_plain": ratio(tally, plain),
        }
        if name in ours:
            cases[name]["over"] = {peer: ratio(tally, tallies[peer]) for peer in peers}
    found = {"groups": len(groups), "rounds": len(plain.seconds) // len(groups), "cases": cases}
    fixed = [tallies[name].rate for name in ours if name not in ("plain", "auto")]
    if "auto" in tallies and fixed:
        found["auto_over_best_fixed"] = tallies["auto"].rate / max(fixed)
    return found


def run(args: argparse.Namespace) -> dict[str, Any]:
    """The report. Raises CascadeError where a model, a prompt or a setting cannot be used."""
    models = models_of(args)
    settings: list[Setting] = settings_of(args.setting, args.grid, models)
    prompts = prompts_of(models, args)
    report: dict[str, Any] = {
        "machine": machine_facts(models.threads),
        "model": [path.resolve().name for path in (models.target, *models.drafts)],
        "dtype": DTYPES[args.dtype].__str__().removeprefix("torch."),
        "prompts": "random tokens" if args.random_prompts else args.prompts or "embedded test set",
        "questions": len(prompts),
        "max_new_tokens": args.max_new_tokens,
        "settings": {setting.name: repr(setting.policy) for setting in settings},
        "rows": {},
    }
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        ours = open_ours(models, settings)
        peers, report["peers"], report["skipped"] = open_peers(args.peers, models, scratch, stack)
        for rows in args.rows:
            report["rows"][str(rows)] = measure_rows(rows, ours, peers, prompts, args.seconds)
            show_rows(report, rows)
    bars = E2E_RANDOM_BARS if args.random_prompts else E2E_BARS
    report["bars"] = judge(bars, report, None if args.target else EMBEDDED, args.dtype)
    return report


def run_replayed(args: argparse.Namespace) -> dict[str, Any]:
    """The report of our settings on recorded answers, without draft models and peers. Raises
    CascadeError where there are no answers."""
    threads, rows = args.threads or default_threads(), max(args.rows)
    context = REPLAY_PROMPT + args.max_new_tokens
    name = f"{args.replay} shape, {LABEL}"
    limit = args.max_new_tokens
    models = Models(Path(name), (), None, None, args.dtype, threads, rows, limit, ())
    settings = settings_of(args.setting, args.grid, models)
    source, tokenizer, turns = recorded(None, None, max(args.questions, rows), context)
    dtype = str(DTYPES[args.dtype]).removeprefix("torch.")
    replayed = Replayed(args.replay, dtype, tokenizer, threads, context, rows)
    replayed.target.decisions.turns = turns
    replayed.engine.set_batching(Batching(reuse_cache=False))
    ours = {each.name: Ours(replayed.engine, each.policy, limit) for each in settings}
    prompts = [turns[i % len(turns)].prompt for i in range(max(len(turns), rows))]
    report: dict[str, Any] = {
        "machine": machine_facts(threads),
        "label": LABEL,
        "model": [name],
        "dtype": f"{dtype}, {LABEL}",
        "prompts": source,
        "questions": len(prompts),
        "max_new_tokens": limit,
        "settings": {setting.name: repr(setting.policy) for setting in settings},
        "rows": {},
        "peers": {},
        "skipped": {},
        "bars": [],
    }
    for count in args.rows:
        report["rows"][str(count)] = measure_rows(count, ours, {}, prompts, args.seconds)
        show_rows(report, count)
    return report


def show_rows(report: dict[str, Any], rows: int) -> None:
    """The table of one number of rows, for people."""
    found = report["rows"][str(rows)]
    print(
        f"{rows} rows, {report['dtype']}, {found['rounds']} rounds of {found['groups']} groups\n"
        f"{'':34s} tokens/s   x plain  (p10-p90)    tokens/call   same"
    )
    for name, case in found["cases"].items():
        over, own = case["over_plain"], case["same_as_own_plain"]
        same = f"{case['same_as_plain']}/{case['answers']}"
        print(
            f"  {name:32s} {case['tokens_per_second']:8.0f} {over['total']:9.2f}  "
            f"({over['p10']:.2f}-{over['p90']:.2f}) {case['tokens_per_target_call']:12.2f}   "
            f"{same}{'' if own is None else f' ({own})'}"
        )
    for name, reason in report["skipped"].items():
        print(f"  {name:32s} skipped: {reason}")
    print(flush=True)


def peer_names(text: str) -> tuple[str, ...]:
    """Comma-separated names of PEERS, or `none`."""
    names = tuple(name for name in text.split(",") if name != "none")
    for name in names:
        if name not in PEERS:
            known = ", ".join(PEERS)
            raise argparse.ArgumentTypeError(f"unknown peer {name!r}: some of {known}, or none")
    return names


def row_counts(text: str) -> list[int]:
    try:
        counts = [int(part) for part in text.split(",")]
    except ValueError:
        counts = [0]
    if min(counts) < 1:
        raise argparse.ArgumentTypeError(f"--rows must be numbers >= 1 such as 1,4,16, got {text}")
    return counts


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.e2e",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--target", metavar="DIR", help="default: the embedded models")
    parser.add_argument("--draft", metavar="DIR", action="append", default=[])
    parser.add_argument("--table", metavar="FILE", help="n-gram table, or none")
    parser.add_argument("--prompts", metavar="FILE", help="one a line, or .jsonl")
    parser.add_argument("--random-prompts", action="store_true", help="of random tokens; no stop")
    parser.add_argument("--replay", choices=SHAPES, metavar="SHAPE", help=", ".join(SHAPES))
    parser.add_argument("--questions", type=int, default=32, metavar="N")
    parser.add_argument("--peers", type=peer_names, default=(), metavar="NAMES")
    parser.add_argument("--rows", type=row_counts, default=[1, 4, 16], metavar="1,4,16")
    parser.add_argument("--setting", action="append", default=[], metavar="SETTING")
    parser.add_argument("--grid", action="store_true", help="twelve fixed settings beside")
    parser.add_argument("--max-new-tokens", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=20.0, help="for each number of rows")
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args(argv)
    for name in ("questions", "max_new_tokens", "threads"):
        value = getattr(args, name)
        if value is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')} must be >= 1, got {value}")
    if args.target and not (args.prompts or args.random_prompts):
        parser.error("--target needs --prompts FILE or --random-prompts")
    if args.draft and not args.target:
        parser.error("--draft needs --target: the embedded models have their own")
    if args.replay and (args.target or args.prompts or args.random_prompts or args.peers):
        parser.error("--replay is of recorded answers: leave target, prompts and peers out")
    if args.random_prompts and args.prompts:
        parser.error("--random-prompts makes prompts of its own: leave --prompts out")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    try:
        report = run_replayed(args) if args.replay else run(args)
    except (CascadeError, OSError) as error:
        raise SystemExit(f"bench.e2e: {error}") from error
    show_bars(report["bars"])
    write_json(args.json, report)


if __name__ == "__main__":
    main()
