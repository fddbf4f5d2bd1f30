"""The standardized walltime improvement (SWI) of CS Drafting, beside the papers' published rows.

    python -m bench.swi [--json FILE]
    python -m bench.swi --target DIR --draft DIR ... --preset flan-t5-model-size

SWI is calls times price, plain decoding's over the cascade's: by model size ("MS"), by the relative
times that previous work gives ("PW"), and by prices measured in the same run. "x plain" is the
clock's. Without --target: the embedded LLaMA and T5 families on their own test questions, and
drafters without a network on recorded answers of Vicuna-7B and LLaMA-2-7B-chat. With it: any LLaMA
or T5 checkpoints on GSM8K and MMLU, right answers counted.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.cascades import Models, Setting, Tally, run
from bench.drafters import make_drafter
from bench.measure import machine_facts, write_json
from bench.questions import OWN, PUBLIC, data_folder, questions
from bench.replay import Turn, read_turns, replay
from bench.swi_papers import COMPARABLE, PAPER, previous_work_costs, size_costs, swi
from cascade_engine import AutoCascade, FixedCascade, PlainDecoding
from cascade_engine.demo import family as demo
from cascade_engine.engine.loading import LoadOptions
from cascade_engine.errors import CascadeError
from cascade_engine.ops.cpu import default_threads
from cascade_engine.policy import PUBLISHED, published
from cascade_engine.tables import load_table, prebuilt_for
from cascade_engine.tokenizer import Tokenizer

MATRICES = {1: "5,8;0,8", 2: "6,4,4;0,3,0;0,0,8"}
"""Full cascades where none is given, by number of drafts."""
DRAFTERS = ("max-gram", "max-gram+bigram", "chain:10", "tree:32", "tree:64")
TRANSCRIPTS = ("spec_bench_vicuna7b_dev.jsonl", "alpaca_llama2_7b_chat_dev.jsonl")
SHARES = {"spec_bench_vicuna7b_dev.jsonl": {"GSM8K": "math_reasoning"}}
"""Parts of transcripts that are one of the papers' data sets: name and category."""


def embedded(name: str) -> tuple[Path, tuple[Path, ...], Path | None]:
    """An embedded target, all drafts that there are for it, and its table."""
    found = demo.family(name)
    drafts = {"llama": ("llama-middle", "llama-small"), "t5": ("t5-draft",)}[name]
    return found.target, tuple(found.target.parent / draft for draft in drafts), found.table


def modes(full: FixedCascade, names: Sequence[str], k: int) -> list[Setting]:
    """Plain decoding, speculative decoding by each draft (k tokens), the cascades of `full` alone
    and together, and what the engine finds by itself. `names`: of the neural levels."""
    rows, n = full.k_matrix, len(full.k_matrix)
    vertical = [[k_ij if i == j else 0 for j, k_ij in enumerate(row)] for i, row in enumerate(rows)]
    neural = rows[0][:-1]
    copied = max(1, rows[-1][-1] - sum(neural))  # without a last row a table's draft is that wide
    settings = [Setting("plain", PlainDecoding())]
    for i, name in enumerate(names[1:]):
        settings.append(Setting(f"speculative, {name}", FixedCascade(_only(n, [0] * i + [k]))))
    settings += [
        Setting("vertical only", FixedCascade(vertical, full.lenience)),
        Setting("horizontal only", FixedCascade(_only(n, [*neural, copied]), full.lenience)),
        Setting("full cascade", full),
        Setting("automatic", AutoCascade(cache=None)),
    ]
    return settings


def _only(n: int, first: Sequence[int]) -> list[list[int]]:
    """A matrix with nothing but a first row: drafts that write on their own."""
    return [[*first, *[0] * (n - len(first))], *([0] * n for _ in range(n - 1))]


def figures(tallies: Mapping[str, Tally], costs: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """JSON-ready, by setting; the first one is plain decoding."""
    plain = next(iter(tallies.values()))
    return {
        name: {
            "calls": tally.calls,
            "tokens": tally.tokens,
            "tokens_per_target_call": tally.tokens / tally.calls[0],
            "swi": {table: swi(plain.calls[0], tally.calls, c) for table, c in costs.items()},
            "times_plain": plain.seconds / tally.seconds,
            "identical": tally.identical,
            "correct": tally.correct,
        }
        for name, tally in tallies.items()
    }


def measured_costs(plain: Sequence[Tally], every: Sequence[Tally]) -> list[float]:
    """Seconds of a call of each level over those of a plain step; 0 for a level never called."""
    step = sum(t.level_seconds[0] for t in plain) / sum(t.calls[0] for t in plain)
    costs = [1.0]
    for level in range(1, len(plain[0].calls)):
        calls = sum(t.calls[level] for t in every)
        seconds = sum(t.level_seconds[level] for t in every)
        costs.append(seconds / calls / step if calls else 0.0)
    return costs


def measure_family(
    models: Models, full: FixedCascade, data: Sequence[str], args: argparse.Namespace
) -> dict[str, Any]:
    """All modes on all data sets. Raises CascadeError where the matrix does not fit the drafts."""
    settings = modes(full, models.names, args.k)
    tallies = {
        name: run(models, settings, questions(name, args.questions), args.max_new_tokens, args.chat)
        for name in data
    }
    every = [tally for by_setting in tallies.values() for tally in by_setting.values()]
    plain = [by_setting[settings[0].name] for by_setting in tallies.values()]
    costs = {
        "model size": size_costs(models.parameters()),
        "previous work": previous_work_costs(models.names),
        "measured": measured_costs(plain, every),
    }
    return {
        "models": models.names,
        "parameters": models.parameters(),
        "k_matrix": full.k_matrix,
        "lenience": full.lenience,
        "costs": costs,
        "data": {
            name: {"questions": args.questions, "settings": figures(found, costs)}
            for name, found in tallies.items()
        },
    }


def measure_transcripts(tokenizer: Tokenizer, limit: int | None) -> dict[str, Any]:
    """Tokens per target call, which is the SWI of drafters that cost nothing, on recorded answers;
    files that are not there are left out."""
    found: dict[str, Any] = {}
    path = prebuilt_for(tokenizer)
    table = load_table(path, tokenizer, tokenizer.vocab_size) if path else None
    for file in TRANSCRIPTS:
        source = data_folder() / "transcripts" / file
        if not source.exists():
            continue
        turns = read_turns(source, tokenizer)
        parts: dict[str, list[Turn]] = {"all": turns[: limit or len(turns)]}
        for name, category in SHARES.get(file, {}).items():
            parts[name] = [turn for turn in turns if turn.category == category][:limit]
        for part, chosen in parts.items():
            longest = max(len(turn.prompt) + len(turn.output) for turn in chosen)
            found[f"{source.stem}, {part}"] = {
                "turns": len(chosen),
                "drafters": {
                    name: replay(chosen, make_drafter(name, table, longest)).report()
                    for name in DRAFTERS
                },
            }
    return found


def show(report: Mapping[str, Any]) -> None:
    """The tables for people, then the papers' rows and what may be compared."""
    for family in report["families"]:
        prices = "; ".join(
            f"{table} " + ", ".join(f"{cost:.3f}" for cost in costs)
            for table, costs in family["costs"].items()
        )
        print(f"\n{' <- '.join(family['models'])}, K {family['k_matrix']}: prices by {prices}")
        for name, found in family["data"].items():
            _show_data(name, found)
    for name, found in report["transcripts"].items():
        print(f"\n{name}, recorded answers ({found['turns']} turns): SWI = tokens per target call")
        for drafter, figure in found["drafters"].items():
            print(f"  {drafter:36s} {figure['tokens_per_target_call']:6.2f}")
    print("\nPublished (Chen et al., arXiv 2312.11462), SWI by model size")
    for row in PAPER:
        note = f" ({row.note})" if row.note else ""
        print(
            f"  {row.target:12s} {row.data:6s} cascade {row.cascade:.2f}, "
            f"speculative decoding {row.speculative:.2f}{note}"
        )
    print("\n" + "\n".join(COMPARABLE))


def _show_data(name: str, found: Mapping[str, Any]) -> None:
    heads = "".join(f"{head:>10s}" for head in ("SWI MS", "PW", "measured", "x plain"))
    print(f"{name}, {found['questions']} questions{'':14s}{heads}  identical  correct  calls")
    for setting, figure in found["settings"].items():
        numbers = [*figure["swi"].values(), figure["times_plain"]]
        shown = "".join(f"{number:10.2f}" for number in numbers)
        print(
            f"  {setting:30s}{shown} {figure['identical']:10d} {figure['correct']:8d}  "
            f"{figure['calls']}"
        )


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.swi",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--target", type=Path, metavar="DIR", help="default: embedded families")
    parser.add_argument("--draft", type=Path, action="append", default=[], metavar="DIR")
    parser.add_argument("--table", metavar="FILE", help="default: the tokenizer's prebuilt one")
    setting = parser.add_mutually_exclusive_group()
    setting.add_argument("--preset", choices=PUBLISHED, help="a published K and lenience")
    setting.add_argument("--k-matrix", metavar="K", help='the full cascade, as in "5,10;0,10"')
    parser.add_argument("--lenience", type=float, default=1.0, help="with --k-matrix")
    parser.add_argument("--k", type=int, default=5, help="tokens of plain speculative decoding")
    parser.add_argument("--data", nargs="+", choices=PUBLIC, help="with --target; default: both")
    parser.add_argument("--chat", action="store_true", help="ask in the target's chat template")
    parser.add_argument("--questions", type=int, default=30, help="of each data set")
    parser.add_argument("--turns", type=int, help="of each transcript; default: all")
    parser.add_argument("--max-new-tokens", type=int, default=200)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args(argv)
    if args.target and not args.draft:
        parser.error("--target needs a --draft for each neural level")
    if not args.target:
        for name in ("draft", "data", "preset", "k_matrix", "table", "chat"):
            if getattr(args, name):
                parser.error(f"--{name.replace('_', '-')} goes with --target")
    for name in ("questions", "turns", "k", "max_new_tokens", "threads"):
        value = getattr(args, name)
        if value is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')} must be >= 1, got {value}")
    return args


def families(args: argparse.Namespace) -> list[dict[str, Any]]:
    threads = args.threads or default_threads()
    options = LoadOptions(dtype=args.dtype, threads=threads, max_rows=1)
    if args.target:
        models = Models(args.target, args.draft, args.table, options)
        if args.preset:
            full = published(args.preset)
        else:
            matrix = args.k_matrix or MATRICES.get(len(args.draft), MATRICES[2])
            full = FixedCascade.parse(matrix, args.lenience)
        return [measure_family(models, full, args.data or PUBLIC, args)]
    found = []
    for name in ("llama", "t5"):
        target, drafts, table = embedded(name)
        full = FixedCascade.parse(MATRICES[len(drafts)])
        found.append(measure_family(Models(target, drafts, table, options), full, OWN, args))
    return found


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    report: dict[str, Any] = {"machine": machine_facts(args.threads or default_threads())}
    try:
        report["families"] = families(args)
        tokenizer = Tokenizer.load(data_folder() / "tokenizers" / "llama")
        report["transcripts"] = {}
        if tokenizer is not None and not args.target:
            report["transcripts"] = measure_transcripts(tokenizer, args.turns)
    except (CascadeError, FileNotFoundError) as error:
        raise SystemExit(f"bench.swi: {error}") from error
    report["published"] = [row._asdict() for row in PAPER]
    report["comparable"] = COMPARABLE
    show(report)
    write_json(args.json, report)


if __name__ == "__main__":
    main()
