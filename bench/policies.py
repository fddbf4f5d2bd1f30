"""Policies side by side: plain decoding, twelve fixed settings and the automatic one.

    python -m bench.policies --json FILE

On the embedded LLaMA family: questions of its test split, and prompts of random tokens, where no
draft is of much use; at 1, 4 and 16 rows. Every policy answers the same prompts in turn, one batch
after the other, in one engine, so that a busy moment of the machine hits all alike. The automatic
policy begins without anything learnt in the first case and keeps what it learnt for the next ones;
its whole run counts. Rates are tokens over all seconds; the
ratio to plain decoding is of these, with the median and the 10th and 90th percentile by batch.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Sequence
from typing import Any

from bench.measure import machine_facts, paired_ratio, write_json
from cascade_engine import AutoCascade, Engine, FixedCascade, PlainDecoding, SamplingParams
from cascade_engine.demo.corpus import distinct_documents
from cascade_engine.demo.evaluate import TASKS
from cascade_engine.demo.family import llama_family
from cascade_engine.ops.cpu import default_threads
from cascade_engine.policy import Policy

RANDOM_TOKENS = (8, 64)
"""Shortest and longest prompt of random tokens."""


def fixed_settings() -> dict[str, FixedCascade]:
    """Every kind of cascade with one draft and the table, in sensible lengths."""
    return {
        "table 4": FixedCascade([[0, 4], [0, 4]]),
        "table 10": FixedCascade([[0, 10], [0, 10]]),
        "tree 16": FixedCascade([[0, 0], [0, 0]], tree=16),
        "tree 32": FixedCascade([[0, 0], [0, 0]], tree=32),
        "draft 3": FixedCascade([[3, 0], [0, 0]]),
        "draft 6": FixedCascade([[6, 0], [0, 0]]),
        "draft 4, table 4": FixedCascade([[4, 0], [0, 4]]),
        "draft 6, table 8": FixedCascade([[6, 0], [0, 8]]),
        "draft 10, table 8": FixedCascade([[10, 0], [0, 8]]),
        "draft 5, table 8, then table 8": FixedCascade([[5, 8], [0, 8]]),
        "draft 4, table 4, tree 16": FixedCascade([[4, 0], [0, 4]], tree=16, siblings=2),
        "draft 6, table 8, tree 32": FixedCascade([[6, 0], [0, 8]], tree=32, siblings=2),
    }


def policies() -> dict[str, Policy]:
    return {"plain": PlainDecoding(), **fixed_settings(), "auto": AutoCascade(cache=None)}


def natural_prompts(engine: Engine, count: int) -> list[list[int]]:
    """Questions of the test split, the tasks in turn."""
    assert engine.tokenizer is not None
    each = -(-count // len(TASKS))
    found = [distinct_documents("test", task, each) for task in TASKS]  # type: ignore[arg-type]
    mixed = [document for group in zip(*found, strict=True) for document in group]
    return [engine.tokenizer.encode(document.prompt) for document in mixed[:count]]


def random_prompts(engine: Engine, count: int) -> list[list[int]]:
    rng, vocab = random.Random(7), engine.neural[0].vocab_size
    lengths = [rng.randint(*RANDOM_TOKENS) for _ in range(count)]
    return [[rng.randrange(3, vocab) for _ in range(length)] for length in lengths]


def measure(
    engine: Engine, prompts: Sequence[list[int]], rows: int, params: SamplingParams, rounds: int
) -> dict[str, Any]:
    """`rounds` batches of `rows` prompts, each answered by every policy; in the second half in the
    opposite order."""
    cases = policies()
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    tokens: dict[str, list[int]] = {name: [] for name in cases}
    calls = dict.fromkeys(cases, 0)
    same = True
    batches = [[prompts[(i * rows + j) % len(prompts)] for j in range(rows)] for i in range(rounds)]
    engine.set_policy(PlainDecoding())
    engine.generate(batches[0], params)
    for i, batch in enumerate(batches):
        answers = {}
        for name in cases if i < rounds // 2 else reversed(cases):
            engine.set_policy(cases[name])
            begin = time.perf_counter()
            results = engine.generate(batch, params)
            seconds[name].append(time.perf_counter() - begin)
            answers[name] = [result.token_ids for result in results]
            tokens[name].append(sum(len(result.token_ids) for result in results))
            calls[name] += sum(result.stats.target_calls for result in results)
        same = same and all(answer == answers["plain"] for answer in answers.values())
    return _report(seconds, tokens, calls, same)


def _report(
    seconds: dict[str, list[float]], tokens: dict[str, list[int]], calls: dict[str, int], same: bool
) -> dict[str, Any]:
    rates = {name: sum(tokens[name]) / sum(seconds[name]) for name in seconds}
    best = max((name for name in rates if name not in ("plain", "auto")), key=lambda n: rates[n])
    return {
        "tokens": sum(tokens["plain"]),
        "batches": len(seconds["plain"]),
        "same_tokens": same,
        "best_fixed": best,
        "auto_over_plain": rates["auto"] / rates["plain"],
        "auto_over_best_fixed": rates["auto"] / rates[best],
        "policies": {
            name: {
                "tokens_per_second": rates[name],
                "over_plain": rates[name] / rates["plain"],
                "over_plain_by_batch": paired_ratio(seconds["plain"], seconds[name]),
                "tokens_per_target_call": sum(tokens[name]) / calls[name],
            }
            for name in rates
        },
    }


def show(title: str, found: dict[str, Any]) -> None:
    print(f"{title}: {found['tokens']} tokens, same tokens {found['same_tokens']}")
    for name, each in found["policies"].items():
        print(
            f"  {name:34s} {each['tokens_per_second']:7.0f} tokens/s  {each['over_plain']:5.2f}x "
            f"plain  {each['tokens_per_target_call']:5.2f} tokens per target call"
        )
    print(
        f"  auto: {found['auto_over_plain']:.2f}x plain, {found['auto_over_best_fixed']:.3f} of "
        f"the best fixed setting ({found['best_fixed']})",
        flush=True,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", default="1,4,16")
    parser.add_argument("--prompts", default="natural,random")
    parser.add_argument("--tokens", type=int, default=4000, help="of each case, about")
    parser.add_argument("--max-tokens", type=int, default=160, help="of an answer")
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--acceptance", choices=("exact", "rejection"), default="exact")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args(arguments)
    threads = args.threads or default_threads()
    family = llama_family()
    engine = Engine.load(
        family.target, family.drafts, family.table, threads=threads, reuse_cache=False, max_rows=16
    )
    makers = {"natural": natural_prompts, "random": random_prompts}
    report: dict[str, Any] = {
        "machine": machine_facts(threads),
        "temperature": args.temperature,
        "max_tokens": args.max_tokens,
        "cases": {},
    }
    for kind in args.prompts.split(","):
        params = SamplingParams(
            max_tokens=args.max_tokens,
            temperature=args.temperature,
            acceptance=args.acceptance,
            ignore_eos=kind == "random",
        )
        for rows in map(int, args.rows.split(",")):
            answer = args.max_tokens if kind == "random" else args.max_tokens // 2
            rounds = max(2, args.tokens // (rows * answer))
            prompts = makers[kind](engine, rows * rounds)
            found = measure(engine, prompts, rows, params, rounds)
            report["cases"][f"{kind}, {rows} rows"] = found
            show(f"{kind}, {rows} rows", found)
            write_json(args.json, report)


if __name__ == "__main__":
    main()
