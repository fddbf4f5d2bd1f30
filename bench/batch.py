"""Tokens per second of whole batches, and how long a row waits for its first token.

    python -m bench.batch --shape 110m --dtype bf16 --json FILE
    python -m bench.batch --target DIR [--draft DIR] --json FILE

For 1, 2, 4, ... rows of different prompt lengths: plain decoding and the cascade (Max-Gram, or the
drafts given) in ragged passes, the same as dense left-padded batches, and transformers' batched
generate. Cases of one row count run interleaved; medians are printed. Each row count takes about
`--seconds`: where that is too little for all rounds there are fewer, and then fewer tokens (but a
round of 4 tokens is made in any case). The JSON says how many there were.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from bench.measure import interleaved, machine_facts, paired_ratio, quantiles, write_json
from bench.shapes import DTYPES, SHAPES, write_shape
from cascade_engine import Engine, FixedCascade, PlainDecoding, SamplingParams
from cascade_engine.ops.cpu import default_threads
from cascade_engine.policy import Policy

PROMPT_TOKENS = (8, 64)
"""Shortest and longest prompt."""
FEWEST_TOKENS = 4
FIRST_TOKEN_SHARE = 0.25
"""Of the budget, for the times to the first token."""
RUNS_BEFORE = 1
"""Runs of a case, beside two for each round: the one that warms it up and shows its tokens."""


def prompts_of(rows: int, vocab: int) -> list[list[int]]:
    """Random prompts of different lengths."""
    rng = random.Random(rows)
    lengths = [rng.randint(*PROMPT_TOKENS) for _ in range(rows)]
    return [[rng.randrange(3, vocab) for _ in range(length)] for length in lengths]


class Case:
    """One engine and how it is asked to decode; `run(n)` decodes n tokens of every prompt."""

    def __init__(self, engine: Engine, policy: Policy, prompts: list[list[int]]) -> None:
        self.engine = engine
        self.policy = policy
        self.prompts = prompts

    def run(self, new: int) -> list[list[int]]:
        self.engine.set_policy(self.policy)
        self.engine.clear_cache()
        params = SamplingParams(max_tokens=new, ignore_eos=True)
        return [result.token_ids for result in self.engine.generate(self.prompts, params)]

    def first_token_seconds(self, seconds: float) -> dict[str, float]:
        """From a request to its first token, alone and when it joins a batch that fills all other
        rows: the larger ratio of medians of a prompt of 8 and one of 64 tokens, and its two times.

        Pairs are taken in turns, nine of each length or as many as `seconds` allow, at least one.
        The other rows' prompts stay cached from one to the next, the new row's are always new.
        """
        self.engine.set_policy(self.policy)
        alone: dict[int, list[float]] = {length: [] for length in PROMPT_TOKENS}
        among: dict[int, list[float]] = {length: [] for length in PROMPT_TOKENS}
        rng = random.Random(0)
        begin = time.perf_counter()
        count = 0
        while count < 1 or (count < 9 and time.perf_counter() - begin < seconds):
            for length in PROMPT_TOKENS:
                for times, others in ((alone, 0), (among, len(self.prompts) - 1)):
                    prompt = [rng.randrange(3, 500) for _ in range(length)]
                    times[length].append(self._first_token(prompt, others))
            count += 1
        pairs = [(statistics.median(among[i]), statistics.median(alone[i])) for i in PROMPT_TOKENS]
        in_full_batch, lone = max(pairs, key=lambda pair: pair[0] / pair[1])
        return {"ratio": in_full_batch / lone, "alone": lone, "in_full_batch": in_full_batch}

    def _first_token(self, prompt: list[int], others: int) -> float:
        params = SamplingParams(max_tokens=64, ignore_eos=True)
        names = [str(i) for i in range(others)]
        for name, other in zip(names, self.prompts, strict=False):
            self.engine.add_request(other, params, name)
        unstarted = set(names)
        while unstarted:
            unstarted -= {out.request_id for out in self.engine.step()}
        begin = time.perf_counter()
        self.engine.add_request(prompt, params, "late")
        while all(out.request_id != "late" for out in self.engine.step()):
            pass
        seconds = time.perf_counter() - begin
        for name in ("late", *names):
            self.engine.abort(name)
        return seconds


def transformers_case(
    target: Path, dtype: torch.dtype, prompts: list[list[int]], threads: int
) -> Callable[[int], object]:
    """Hugging Face's generate over a left-padded batch."""
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads)
    model = AutoModelForCausalLM.from_pretrained(target, dtype=dtype).eval()
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    options = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    return lambda new: model.generate(ids, attention_mask=mask, max_new_tokens=new, **options)


def fitting_work(
    cases: dict[str, Callable[[int], object]], new: int, rounds: int, seconds: float
) -> tuple[int, int]:
    """Tokens and rounds that take about `seconds`, from the time of runs of 4 tokens.

    A token is taken to cost a quarter of such a run, its prompt included: never too little.
    """
    begin = time.perf_counter()
    for case in cases.values():
        case(FEWEST_TOKENS)
    token = (time.perf_counter() - begin) / FEWEST_TOKENS
    one_round = token * (RUNS_BEFORE + 2)
    new = min(new, max(FEWEST_TOKENS, int(seconds / one_round)))
    left = seconds - token * new * RUNS_BEFORE
    return new, min(rounds, max(1, int(left / (token * new * 2))))


def measure_rows(target: Path, rows: int, args: argparse.Namespace, threads: int) -> dict[str, Any]:
    dtype = str(DTYPES[args.dtype]).removeprefix("torch.")
    options: dict[str, Any] = {"dtype": dtype, "threads": threads, "max_rows": rows}
    options["max_context"] = 64 + max(64, args.new_tokens)
    ragged = Engine.load(target, args.draft, **options)
    padded = Engine.load(target, args.draft, padding="left", **options)
    prompts = prompts_of(rows, ragged.neural[0].vocab_size)
    cascade = FixedCascade.default(len(args.draft) + 1)
    ours = {
        "plain, ragged": Case(ragged, PlainDecoding(), prompts),
        "cascade, ragged": Case(ragged, cascade, prompts),
        "plain, left-padded": Case(padded, PlainDecoding(), prompts),
        "cascade, left-padded": Case(padded, cascade, prompts),
    }
    cases: dict[str, Callable[[int], Any]] = {name: case.run for name, case in ours.items()}
    if "hf" in args.peers.split(","):
        cases["transformers"] = transformers_case(target, DTYPES[args.dtype], prompts, threads)
    seconds = args.seconds * (1 - FIRST_TOKEN_SHARE)
    new, rounds = fitting_work(cases, args.new_tokens, args.rounds, seconds)
    first = {
        name: ours[name].first_token_seconds(args.seconds * FIRST_TOKEN_SHARE / 2)
        for name in ("plain, ragged", "cascade, ragged")
    }
    answers = {name: case(new) for name, case in cases.items()}
    times = interleaved(
        {name: lambda case=case: case(new) for name, case in cases.items()}, rounds, warmup=0
    )
    report: dict[str, Any] = {
        "new_tokens": new,
        "rounds": rounds,
        "tokens_per_second": {
            name: quantiles([rows * new / t for t in samples]) for name, samples in times.items()
        },
        "same_tokens": all(answers[name] == answers["plain, ragged"] for name in ours),
        "first_token_seconds": first,
    }
    if "transformers" in times:
        report["ragged_over_transformers"] = paired_ratio(
            times["transformers"], times["plain, ragged"]
        )
    return report


def line_of(rows: int, found: dict[str, Any]) -> str:
    """What is printed of one row count."""
    rates = found["tokens_per_second"]
    firsts = found["first_token_seconds"]
    return (
        f"{rows:3d} rows, tokens/s: "
        + "  ".join(f"{name} {rate['median']:.0f}" for name, rate in rates.items())
        + f" ({found['rounds']} rounds of {found['new_tokens']} tokens); same tokens: "
        + f"{found['same_tokens']}; first token beside busy rows: "
        + ", ".join(
            f"{name} x {first['ratio']:.2f} of {first['alone'] * 1e3:.0f} ms alone"
            for name, first in firsts.items()
        )
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--target", metavar="DIR", help="Hugging Face directory")
    what.add_argument("--shape", choices=SHAPES, help="random weights of this shape")
    parser.add_argument("--draft", metavar="DIR", action="append", default=[])
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    parser.add_argument("--rows", default="1,2,4,8,16,32")
    parser.add_argument("--new-tokens", type=int, default=32, help="at most")
    parser.add_argument("--rounds", type=int, default=5, help="at most")
    parser.add_argument("--seconds", type=float, default=30.0, help="for each row count, about")
    parser.add_argument("--peers", default="hf", help="hf, or nothing")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args(arguments)
    threads = args.threads or default_threads()
    report: dict[str, Any] = {
        "machine": machine_facts(threads),
        "model": args.target or f"{args.shape} shape, random weights",
        "drafts": args.draft,
        "dtype": args.dtype,
        "seconds": args.seconds,
        "rows": {},
    }
    with tempfile.TemporaryDirectory() as scratch:
        target = Path(args.target) if args.target else None
        if target is None:
            target = write_shape(args.shape, args.dtype, Path(scratch))
        for rows in map(int, args.rows.split(",")):
            report["rows"][str(rows)] = found = measure_rows(target, rows, args, threads)
            print(line_of(rows, found), flush=True)
            write_json(args.json, report)


if __name__ == "__main__":
    main()
