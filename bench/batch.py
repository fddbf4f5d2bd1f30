"""Tokens per second of whole batches, and how long a row waits for its first token.

    python -m bench.batch --shape 110m --dtype bf16 --json FILE
    python -m bench.batch --target DIR [--draft DIR] --json FILE

For 1, 2, 4, ... rows of different prompt lengths: plain decoding and the cascade (Max-Gram, or the
drafts given) in ragged passes, the same as dense left-padded batches, and transformers' batched
generate. Cases of one row count run interleaved; medians are printed.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bench.measure import interleaved, machine_facts, paired_ratio, quantiles, write_json
from bench.shapes import DTYPES, SHAPES, write_shape
from cascade_engine import Engine, FixedCascade, PlainDecoding, SamplingParams
from cascade_engine.ops.cpu import default_threads
from cascade_engine.policy import Policy


def prompts_of(rows: int, vocab: int) -> list[list[int]]:
    """Random prompts of 8 to 64 tokens."""
    rng = random.Random(rows)
    return [[rng.randrange(3, vocab) for _ in range(rng.randint(8, 64))] for _ in range(rows)]


class Case:
    """One engine and how it is asked to decode."""

    def __init__(self, engine: Engine, policy: Policy, prompts: list[list[int]], new: int) -> None:
        self.engine = engine
        self.policy = policy
        self.prompts = prompts
        self.params = SamplingParams(max_tokens=new, ignore_eos=True)

    def __call__(self) -> list[list[int]]:
        self.engine.set_policy(self.policy)
        self.engine.clear_cache()
        return [result.token_ids for result in self.engine.generate(self.prompts, self.params)]

    def first_token_seconds(self) -> dict[str, float]:
        """From a request to its first token, alone and when it joins a batch that fills all other
        rows: the largest ratio over (up to four of) the prompts, and its two times."""
        self.engine.set_policy(self.policy)
        found = []
        for late in range(min(4, len(self.prompts))):
            alone = self._first_token(late, beside=[])
            others = [i for i in range(len(self.prompts)) if i != late]
            found.append((self._first_token(late, beside=others) / alone, alone))
        ratio, alone = max(found)
        return {"ratio": ratio, "alone": alone, "in_full_batch": ratio * alone}

    def _first_token(self, late: int, beside: list[int]) -> float:
        self.engine.clear_cache()
        for i in beside:
            self.engine.add_request(self.prompts[i], self.params, str(i))
        while beside and any(i not in self._started(beside) for i in beside):
            pass
        begin = time.perf_counter()
        self.engine.add_request(self.prompts[late], self.params, "late")
        while all(out.request_id != "late" for out in self.engine.step()):
            pass
        seconds = time.perf_counter() - begin
        for name in ("late", *map(str, beside)):
            self.engine.abort(name)
        return seconds

    def _started(self, rows: list[int]) -> set[int]:
        """One step; the rows that it gave a token."""
        given = {out.request_id for out in self.engine.step()}
        return {i for i in rows if str(i) in given}


def transformers_case(
    target: Path, dtype: torch.dtype, prompts: list[list[int]], new: int, threads: int
) -> Callable[[], object]:
    """Hugging Face's generate over a left-padded batch."""
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads)
    model = AutoModelForCausalLM.from_pretrained(target, dtype=dtype).eval()
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    options = {"max_new_tokens": new, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    return lambda: model.generate(ids, attention_mask=mask, **options)


def measure_rows(target: Path, rows: int, args: argparse.Namespace, threads: int) -> dict[str, Any]:
    dtype = str(DTYPES[args.dtype]).removeprefix("torch.")
    options: dict[str, Any] = {"dtype": dtype, "threads": threads, "max_rows": rows}
    options["max_context"] = 256
    ragged = Engine.load(target, args.draft, **options)
    padded = Engine.load(target, args.draft, padding="left", **options)
    vocab = ragged.neural[0].vocab_size
    prompts = prompts_of(rows, vocab)
    cascade = FixedCascade.default(len(args.draft) + 1)
    cases: dict[str, Callable[[], Any]] = {
        "plain, ragged": Case(ragged, PlainDecoding(), prompts, args.new_tokens),
        "cascade, ragged": Case(ragged, cascade, prompts, args.new_tokens),
        "plain, left-padded": Case(padded, PlainDecoding(), prompts, args.new_tokens),
        "cascade, left-padded": Case(padded, cascade, prompts, args.new_tokens),
    }
    expected = cases["plain, ragged"]()
    same = all(case() == expected for case in cases.values())
    if "hf" in args.peers.split(","):
        cases["transformers"] = transformers_case(
            target, DTYPES[args.dtype], prompts, args.new_tokens, threads
        )
    times = interleaved(cases, args.rounds, warmup=1)
    tokens = rows * args.new_tokens
    report: dict[str, Any] = {
        "tokens_per_second": {
            name: quantiles([tokens / t for t in samples]) for name, samples in times.items()
        },
        "same_tokens": same,
        "first_token_seconds": cases["plain, ragged"].first_token_seconds(),  # type: ignore[attr-defined]
    }
    if "transformers" in times:
        report["ragged_over_transformers"] = paired_ratio(
            times["transformers"], times["plain, ragged"]
        )
    return report


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--target", metavar="DIR", help="Hugging Face directory")
    what.add_argument("--shape", choices=SHAPES, help="random weights of this shape")
    parser.add_argument("--draft", metavar="DIR", action="append", default=[])
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    parser.add_argument("--rows", default="1,2,4,8,16,32")
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peers", default="hf", help="hf, or nothing")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    threads = args.threads or default_threads()
    report: dict[str, Any] = {
        "machine": machine_facts(threads),
        "model": args.target or f"{args.shape} shape, random weights",
        "drafts": args.draft,
        "dtype": args.dtype,
        "new_tokens": args.new_tokens,
        "rounds": args.rounds,
        "rows": {},
    }
    with tempfile.TemporaryDirectory() as scratch:
        target = Path(args.target) if args.target else None
        if target is None:
            target = write_shape(args.shape, args.dtype, Path(scratch))
        for rows in map(int, args.rows.split(",")):
            found = report["rows"][str(rows)] = measure_rows(target, rows, args, threads)
            rates = found["tokens_per_second"]
            line = "  ".join(f"{name} {rate['median']:.0f}" for name, rate in rates.items())
            first = found["first_token_seconds"]
            print(
                f"{rows:3d} rows, tokens/s: {line}; same tokens: {found['same_tokens']}; first "
                f"token {first['alone'] * 1e3:.0f} ms alone, x {first['ratio']:.2f} when the other "
                "rows are busy",
                flush=True,
            )
    write_json(args.json, report)


if __name__ == "__main__":
    main()
