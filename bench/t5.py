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
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from bench.measure import SETTLE_SECONDS, machine_facts, quantiles, write_json
from bench.shapes import DTYPES
from cascade_engine import Engine, FixedCascade, PlainDecoding, SamplingParams
from cascade_engine.demo.corpus import distinct_documents
from cascade_engine.demo.family import t5_family
from cascade_engine.ops.cpu import default_threads
from cascade_engine.policy import Policy

TASKS = ("arithmetic", "fact", "advice", "skeleton")
BATCH = 8
Answer = Callable[[list[list[int]]], list[list[int]]]


class Transformers:
    """Greedy generation by transformers."""

    def __init__(self, target: Path, draft: Path, dtype: torch.dtype, limit: int) -> None:
        from transformers import AutoModelForSeq2SeqLM

        self.model, self.assistant = (
            AutoModelForSeq2SeqLM.from_pretrained(path, dtype=dtype).eval()
            for path in (target, draft)
        )
        self.limit = limit

    def plain(self, prompts: list[list[int]]) -> list[list[int]]:
        return self._generate(prompts)

    def assisted(self, prompts: list[list[int]]) -> list[list[int]]:
        return self._generate(prompts, assistant_model=self.assistant)

    @torch.inference_mode()
    def _generate(self, prompts: list[list[int]], **options: Any) -> list[list[int]]:
        sources = [torch.tensor(prompt) for prompt in prompts]
        ids = torch.nn.utils.rnn.pad_sequence(sources, batch_first=True)
        mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(s) for s in sources], True)
        out = self.model.generate(
            ids, attention_mask=mask, max_new_tokens=self.limit, do_sample=False, **options
        )
        eos = self.model.config.eos_token_id
        rows = [row[1:] for row in out.tolist()]
        return [row[: row.index(eos) + 1] if eos in row else row for row in rows]


class Ours:
    """Greedy generation by the engine."""

    def __init__(self, engine: Engine, policy: Policy, limit: int) -> None:
        self.engine, self.policy = engine, policy
        self.params = SamplingParams(max_tokens=limit)

    def __call__(self, prompts: list[list[int]]) -> list[list[int]]:
        self.engine.set_policy(self.policy)
        results = self.engine.generate(prompts, self.params)
        return [result.token_ids for result in results]


def measure(cases: dict[str, Answer], groups: Sequence[list[list[int]]]) -> dict[str, Any]:
    """Tokens per second of each case over groups of prompts that are answered together."""
    rates: dict[str, list[float]] = {name: [] for name in cases}
    tokens, seconds = dict.fromkeys(cases, 0), dict.fromkeys(cases, 0.0)
    answers: dict[str, list[list[int]]] = {name: [] for name in cases}
    for case in cases.values():
        case(groups[0])
    for group in groups:
        for name, case in cases.items():
            time.sleep(SETTLE_SECONDS)
            begin = time.perf_counter()
            found = case(group)
            elapsed = time.perf_counter() - begin
            count = sum(map(len, found))
            answers[name] += found
            tokens[name] += count
            seconds[name] += elapsed
            rates[name].append(count / elapsed)
    first = next(iter(cases))
    return {
        name: {
            "tokens": tokens[name],
            "tokens_per_second": tokens[name] / seconds[name],
            "by_group": quantiles(rates[name]),
            "answers_as_the_first_case": sum(
                a == b for a, b in zip(answers[name], answers[first], strict=True)
            ),
            "answers": len(answers[name]),
        }
        for name in cases
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
    prompts = [engine.tokenizer.encode(text) for text in _texts(args)]
    theirs = Transformers(target, draft, dtype, args.max_new_tokens)
    plain = Ours(engine, PlainDecoding(), args.max_new_tokens)
    cascade = Ours(engine, FixedCascade(family.k_matrix), args.max_new_tokens)
    tree = Ours(engine, FixedCascade(family.k_matrix, tree=16), args.max_new_tokens)
    ours: dict[str, Answer] = {"plain": plain, "cascade": cascade, "cascade, tree": tree}
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


def _texts(args: argparse.Namespace) -> list[str]:
    if args.prompts:
        return Path(args.prompts).read_text(encoding="utf-8").splitlines()
    per_task = -(-args.questions // len(TASKS))
    documents = [distinct_documents("test", task, per_task) for task in TASKS]  # type: ignore[arg-type]
    return [d.prompt for group in zip(*documents, strict=True) for d in group]


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
