"""Milliseconds per decoding step and per review, beside transformers on the same weights.

    python -m bench.decode --target DIR [--json FILE]
    python -m bench.decode --shape 110m --dtype bf16 --peers hf --json FILE

One row at a context of --context tokens. "1" is a plain decoding step; "k" is a review of k tokens:
one forward pass over them with logits for each. All cases run interleaved; medians are printed, and
ratios are medians of the ratio round by round.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bench.measure import (
    ReadCeiling,
    interleaved,
    machine_facts,
    paired_ratio,
    quantiles,
    write_json,
)
from bench.shapes import DTYPES, SHAPES, write_shape
from cascade_engine import Engine, PlainDecoding, SamplingParams
from cascade_engine.ops.cpu import default_threads

REVIEWS = (1, 2, 4, 8, 16, 32, 64)
PREFILL = 512


class Ours:
    """Forward passes of the engine's target level over one row."""

    def __init__(self, target: Path, dtype: str, threads: int, context: int) -> None:
        self.engine = Engine.load(
            target, dtype=dtype, threads=threads, policy=PlainDecoding(), max_rows=1
        )
        self.level = self.engine.neural[0]
        self.context = context
        vocab = self.level.vocab_size
        tokens = torch.randint(0, vocab, (self.level.rows.capacity,)).tolist()
        self.level.rows.write(0, tokens)
        self.level.prefill(0, context)

    def step(self, tokens: int) -> None:
        """One pass over `tokens` tokens behind the context, with logits for each."""
        self.level.truncate(0, self.context)
        self.level._feed([0], [self.context + tokens], [tokens])

    def prefill(self) -> None:
        self.level.truncate(0, 0)
        self.level._feed([0], [PREFILL], [1])
        self.level.truncate(0, 0)

    def bytes_per_step(self) -> int:
        """Weights, and keys and values of the context: what one decoding step must read."""
        config = self.level.weights.config
        cache = 2 * config.num_layers * config.num_kv_heads * config.head_dim
        itemsize = self.level.weights.dtype.itemsize
        return self.level.weights.num_bytes() + cache * self.context * itemsize

    def outside_native(self, tokens: int) -> dict[str, float]:
        """Share of plain decoding's wall time not spent in the forward pass and in sampling."""
        native = [0.0]
        backend, program = self.level._backend, self.level._program

        def timed(function: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any, **kwargs: Any) -> Any:
                begin = time.perf_counter()
                result = function(*args, **kwargs)
                native[0] += time.perf_counter() - begin
                return result

            return call

        class Timed:
            run = staticmethod(timed(program.run))

            def __getattr__(self, name: str) -> Any:
                return getattr(program, name)

        self.engine.clear_cache()
        self.level.truncate(0, 0)
        params = SamplingParams(max_tokens=tokens, ignore_eos=True)
        accept = backend.accept
        try:
            self.level._program = Timed()
            backend.accept = timed(accept)  # type: ignore[method-assign]
            stats = self.engine.generate([list(range(3, 19))], params)[0].stats
        finally:
            self.level._program = program
            backend.accept = accept  # type: ignore[method-assign]
        return {"share": 1 - native[0] / stats.seconds, "seconds_per_token": stats.seconds / tokens}


class Transformers:
    """The same passes through Hugging Face transformers with its dynamic cache."""

    def __init__(self, target: Path, dtype: torch.dtype, threads: int, context: int) -> None:
        from transformers import AutoModelForCausalLM, DynamicCache

        torch.set_num_threads(threads)
        self.model = AutoModelForCausalLM.from_pretrained(target, dtype=dtype).eval()
        self.context = context
        self.vocab = self.model.config.vocab_size
        self.cache = DynamicCache(config=self.model.config)
        with torch.inference_mode():
            self.model(self._ids(context), past_key_values=self.cache, use_cache=True)

    def _ids(self, count: int) -> torch.Tensor:
        return torch.randint(0, self.vocab, (1, count))

    def step(self, tokens: int) -> None:
        with torch.inference_mode():
            self.model(self._ids(tokens), past_key_values=self.cache, use_cache=True)
            self.cache.crop(-tokens)

    def prefill(self) -> None:
        with torch.inference_mode():
            self.model(self._ids(PREFILL), use_cache=True, logits_to_keep=1)


def measure(target: Path, args: argparse.Namespace, dtype: torch.dtype) -> dict[str, Any]:
    threads = args.threads or default_threads()
    context = args.context
    ours = Ours(target, str(dtype).removeprefix("torch."), threads, context)
    ceiling = ReadCeiling(threads)
    cases: dict[str, Callable[[], object]] = {"read ceiling": ceiling}
    for k in REVIEWS:
        cases[f"ours {k}"] = lambda k=k: ours.step(k)  # type: ignore[misc]
    if args.peers == "hf":
        theirs = Transformers(target, dtype, threads, context)
        for k in REVIEWS:
            cases[f"hf {k}"] = lambda k=k: theirs.step(k)  # type: ignore[misc]
    times = interleaved(cases, args.rounds)
    report: dict[str, Any] = {
        "machine": machine_facts(threads),
        "dtype": str(dtype).removeprefix("torch."),
        "context": context,
        "rounds": args.rounds,
        "milliseconds": {
            k: {q: v * 1e3 for q, v in quantiles(t).items()} for k, t in times.items()
        },
        "bytes_per_step": ours.bytes_per_step(),
    }
    read_rate = [ceiling.num_bytes / t for t in times["read ceiling"]]
    step_rate = [ours.bytes_per_step() / t for t in times["ours 1"]]
    report["read_gb_per_second"] = {k: v / 1e9 for k, v in quantiles(read_rate).items()}
    report["fraction_of_read_bandwidth"] = paired_ratio(step_rate, read_rate)
    report["review_over_decode"] = {
        str(k): paired_ratio(times[f"ours {k}"], times["ours 1"]) for k in REVIEWS
    }
    if args.peers == "hf":
        report["ours_over_hf"] = {
            str(k): paired_ratio(times[f"ours {k}"], times[f"hf {k}"]) for k in REVIEWS
        }
        prefill = interleaved(
            {"ours": ours.prefill, "hf": theirs.prefill}, max(3, args.rounds // 4)
        )
        report["prefill_512_milliseconds"] = {
            k: {q: v * 1e3 for q, v in quantiles(t).items()} for k, t in prefill.items()
        }
        report["prefill_hf_over_ours"] = paired_ratio(prefill["hf"], prefill["ours"])
    report["outside_native"] = ours.outside_native(64)
    return report


def show(report: dict[str, Any]) -> None:
    """The table for people."""
    times = report["milliseconds"]
    has_hf = "ours_over_hf" in report
    print(
        f"{report['dtype']}, context {report['context']}, {report['machine']['threads']} threads, "
        f"{report['machine']['instruction_set']}, {report['rounds']} rounds"
    )
    print("tokens    ours ms   review/decode" + ("      hf ms   ours/hf" if has_hf else ""))
    for k in REVIEWS:
        line = f"{k:6d} {times[f'ours {k}']['median']:10.3f} "
        line += f"{report['review_over_decode'][str(k)]['median']:15.2f}"
        if has_hf:
            line += f" {times[f'hf {k}']['median']:10.3f}"
            line += f" {report['ours_over_hf'][str(k)]['median']:9.2f}"
        print(line)
    rate = report["read_gb_per_second"]["median"]
    fraction = report["fraction_of_read_bandwidth"]["median"]
    print(f"plain decoding reads at {fraction:.2f} of the measured {rate:.1f} GB/s")
    if has_hf:
        prefill = report["prefill_512_milliseconds"]
        print(
            f"prefill of {PREFILL}: {prefill['ours']['median']:.1f} ms, transformers "
            f"{prefill['hf']['median']:.1f} ms: {report['prefill_hf_over_ours']['median']:.2f}x"
        )
    outside = report["outside_native"]
    print(f"outside native code: {outside['share']:.1%} of a decoding step")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--target", metavar="DIR", help="Hugging Face directory")
    what.add_argument("--shape", choices=SHAPES, help="random weights of this shape")
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    parser.add_argument("--peers", choices=["hf", "none"], default="hf", help="default: hf")
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        target = Path(args.target) if args.target else None
        if target is None:
            target = write_shape(args.shape, args.dtype, Path(scratch))
        report = measure(target, args, DTYPES[args.dtype])
    report["model"] = args.target or f"{args.shape} shape, random weights"
    show(report)
    write_json(args.json, report)


if __name__ == "__main__":
    main()
