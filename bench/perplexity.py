"""Perplexity of texts under each dtype of the weights: what int8 or bfloat16 costs a real model.

    python -m bench.perplexity --model DIR --text FILE --json FILE
    python -m bench.perplexity --model DIR --model DIR --text FILE --dtypes bfloat16,int8

Each text is read in windows spread evenly over it, each of 1 + --window tokens (a begin token first
where the model's tokenizer adds one); each but the first is predicted from those before it. The
logits are those of the engine's own level. Perplexity is exp(mean negative log-probability); "same
best" is the share of positions at which the most likely token is that of the first dtype.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import torch

from bench.measure import machine_facts, write_json
from cascade_engine import Engine, PlainDecoding
from cascade_engine.engine.options import DTYPES
from cascade_engine.errors import CascadeError, RequestError
from cascade_engine.ops.cpu import default_threads
from cascade_engine.tokenizer import Tokenizer

CHARACTERS_PER_TOKEN = 12
"""Text taken for a window, more than its tokens stand for."""


def windows_of(text: str, tokenizer: Tokenizer, length: int, count: int) -> list[list[int]]:
    """`count` windows `[1 + length]` of token ids; fewer where the text is short."""
    taken = CHARACTERS_PER_TOKEN * length
    count = min(count, max(1, len(text) // taken))
    found = []
    for i in range(count):
        start = i * len(text) // count
        ids = tokenizer.encode(text[start : start + taken])[: 1 + length]
        if len(ids) > 1:
            found.append(ids)
    return found


class Scores:
    """Sums over the tokens that one dtype has predicted."""

    def __init__(self) -> None:
        self.nats: list[torch.Tensor] = []
        self.best: list[torch.Tensor] = []

    def add(self, logits: torch.Tensor, next_ids: list[int]) -> None:
        """`logits` `[tokens, vocab]` of the positions before `next_ids`."""
        logprobs = logits.double().log_softmax(-1)
        self.nats.append(-logprobs.gather(1, torch.tensor(next_ids)[:, None])[:, 0])
        self.best.append(logits.argmax(-1))

    def report(self, first: Scores) -> dict[str, float]:
        nats, other = torch.cat(self.nats), torch.cat(first.nats)
        same = torch.cat(self.best) == torch.cat(first.best)
        return {
            "perplexity": math.exp(nats.mean()),
            "over_first": math.exp(nats.mean() - other.mean()),
            "same_best": same.double().mean().item(),
        }


def score(model: Path, dtype: str, windows: list[list[int]], threads: int) -> Scores:
    """One pass over each window."""
    engine = Engine.load(model, dtype=dtype, threads=threads, policy=PlainDecoding(), max_rows=1)
    level, scores = engine.neural[0], Scores()
    longest = max(map(len, windows))
    if longest > level.context:
        raise RequestError(f"--window must be < the context of {model.name}, {level.context}")
    for ids in windows:
        level.truncate(0, 0)
        level.rows.write(0, ids)
        fed = len(ids) - 1
        scores.add(level.score(0, fed, fed)[:, : level.vocab_size], ids[1:])
    return scores


def measure(model: Path, text: Path, args: argparse.Namespace, threads: int) -> dict[str, Any]:
    """All dtypes over one text."""
    tokenizer = Tokenizer.load(model)
    if tokenizer is None:
        raise SystemExit(f"bench.perplexity: {model} has no tokenizer")
    windows = windows_of(text.read_text("utf-8"), tokenizer, args.window, args.windows)
    scores = {dtype: score(model, dtype, windows, threads) for dtype in args.dtypes}
    first = scores[args.dtypes[0]]
    return {
        "model": model.name,
        "text": text.name,
        "tokens": sum(len(ids) - 1 for ids in windows),
        "windows": len(windows),
        "dtypes": {dtype: one.report(first) for dtype, one in scores.items()},
    }


def show(result: dict[str, Any]) -> None:
    for dtype, figures in result["dtypes"].items():
        print(
            f"{result['model']:14s} {result['text']:14s} {result['tokens']:7d} {dtype:9s} "
            f"{figures['perplexity']:12.4f} {figures['over_first'] - 1:+9.3%} "
            f"{figures['same_best']:10.2%}",
            flush=True,
        )


def dtype_names(text: str) -> list[str]:
    """Comma-separated dtypes of `Engine.load`."""
    names = text.split(",")
    for name in names:
        if name not in DTYPES:
            raise argparse.ArgumentTypeError(f"must be among {', '.join(DTYPES)}, got {name!r}")
    return names


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.perplexity",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", type=Path, action="append", required=True, metavar="DIR")
    parser.add_argument("--text", type=Path, action="append", required=True, metavar="FILE")
    parser.add_argument("--dtypes", type=dtype_names, default=list(DTYPES), metavar="NAME,...")
    parser.add_argument("--window", type=int, default=256, metavar="TOKENS")
    parser.add_argument("--windows", type=int, default=64, metavar="N", help="of each text")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args(argv)
    for name in ("window", "windows"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} must be >= 1, got {getattr(args, name)}")
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    threads = args.threads or default_threads()
    print("model          text            tokens dtype       perplexity    change  same best")
    results = []
    try:
        for model in args.model:
            for text in args.text:
                results.append(measure(model, text, args, threads))
                show(results[-1])
    except (CascadeError, OSError, UnicodeDecodeError) as error:
        raise SystemExit(f"bench.perplexity: {error}") from error
    facts = machine_facts(threads)
    write_json(args.json, {"machine": facts, "window": args.window, "results": results})


if __name__ == "__main__":
    main()
