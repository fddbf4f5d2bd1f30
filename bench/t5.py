"""Tokens per second of an encoder-decoder pair, beside transformers on the same weights.

    python -m bench.t5 [--dtype f32] [--json FILE]
    python -m bench.t5 --target DIR --draft DIR --prompts FILE

The embedded T5 pair answers questions of its test split: one at a time (transformers plain and with
the draft as its assistant, here plain and with the cascade), then eight at a time. All cases answer
each question, or batch of eight, in turn; ratios are of tokens per second over all of them, and
their spread is over questions. A peer's tokens are its own: counts differ where bfloat16 sums end
in another token.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from bench.generation import (
    Generator,
    Ours,
    Prompts,
    Transformers,
    figures,
    run_groups,
    same_answers,
)
from bench.measure import machine_facts, write_json
from bench.shapes import DTYPES
from cascade_engine import Engine, FixedCascade, PlainDecoding
from cascade_engine.demo.corpus import sample_prompts
from cascade_engine.demo.family import t5_family
from cascade_engine.models.family import open_model
from cascade_engine.ops.cpu import default_threads
from cascade_engine.prompt_files import read_prompts

BATCH = 8


def measure(cases: dict[str, Generator], groups: list[Prompts]) -> dict[str, Any]:
    """Tokens per second of each case over groups of prompts that are answered together."""
    tallies = run_groups(cases, groups, seconds=0)
    first = next(iter(tallies.values()))
    return {
        name: {**figures(tally), "answers_as_the_first_case": same_answers(tally, first)}
        for name, tally in tallies.items()
    }


def run(args: argparse.Namespace) -> dict[str, Any]:
    family = t5_family()
    target = Path(args.target) if args.target else family.target
    draft = Path(args.draft) if args.draft else family.drafts[0]
    table = None if args.target else family.table
    threads = args.threads or default_threads()
    torch.set_num_threads(threads)
    dtype = DTYPES[args.dtype]
    name = str(dtype).removeprefix("torch.")
    engine = Engine.load(target, [draft], table, dtype=name, threads=threads, max_rows=BATCH)
    assert engine.tokenizer is not None
    texts = read_prompts(args.prompts) if args.prompts else sample_prompts("test", args.questions)
    prompts = [engine.tokenizer.encode(text) for text in texts]
    eos = open_model(target)[0].eos_ids
    theirs = Transformers(target, draft, dtype, args.max_new_tokens, eos, encoder_decoder=True)
    plain = Ours(engine, PlainDecoding(), args.max_new_tokens)
    cascade = Ours(engine, FixedCascade(family.k_matrix), args.max_new_tokens)
    tree = Ours(engine, FixedCascade(family.k_matrix, tree=16), args.max_new_tokens)
    ours: dict[str, Generator] = {"plain": plain, "cascade": cascade, "cascade, tree": tree}
    singles = [[prompt] for prompt in prompts]
    batches = [prompts[i : i + BATCH] for i in range(0, len(prompts) - BATCH + 1, BATCH)]
    return {
        "machine": machine_facts(threads),
        "dtype": name,
        "model": [target.name, draft.name],
        "k_matrix": family.k_matrix,
        "questions": len(prompts),
        "batch 1": measure(
            {"transformers": theirs.plain, "transformers, assisted": theirs.assisted, **ours},
            singles,
        ),
        "batch 8": measure({"transformers": theirs.plain, **ours}, batches),
    }


def show(report: dict[str, Any]) -> None:
    """The table for people."""
    print(f"{report['model']}, {report['dtype']}, {report['questions']} questions")
    for batch in ("batch 1", "batch 8"):
        cases = report[batch]
        theirs = cases["transformers"]["tokens_per_second"]
        plain = cases["plain"]["tokens_per_second"]
        print(f"{batch:24s}  tokens/s  x transformers   x plain   same answers")
        for name, case in cases.items():
            rate = case["tokens_per_second"]
            same = f"{case['answers_as_the_first_case']} of {case['answers']}"
            print(f"  {name:22s} {rate:9.0f} {rate / theirs:15.2f} {rate / plain:9.2f}   {same}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--target", metavar="DIR", help="default: the embedded pair")
    parser.add_argument("--draft", metavar="DIR")
    parser.add_argument("--prompts", metavar="FILE", help="one a line")
    parser.add_argument("--questions", type=int, default=40, help="of the embedded test split")
    parser.add_argument("--max-new-tokens", type=int, default=200)
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    if (args.target is None) != (args.draft is None) or (args.target and not args.prompts):
        parser.error("--target, --draft and --prompts go together")
    report = run(args)
    show(report)
    write_json(args.json, report)


if __name__ == "__main__":
    main()
