"""Milliseconds of single operations, beside torch on the same numbers.

    python -m bench.ops --device cpu --json FILE
    python -m bench.ops --op linear --dtype bf16 --tokens 1,8,16 --shape 110m
    python -m bench.ops --op attention --dtype f32 --rows 1,16 --tokens 1 --context 8192

--rows are sequences, --tokens the new tokens of each, --context the tokens that attention sees of
each. `linear` multiplies by every weight matrix of a decoding step of the shape, `attention` goes
over as many layers as fill 256 MB, `rms_norm` and `swiglu` run once for each layer. Weights and
caches are random. A row of the table is one call of all of them; GB/s counts weights, keys and
values, and is compared with the measured read bandwidth round by round (beyond 1 where they fit the
caches). The error is the largest difference from float32 torch over the largest value.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from typing import Any

import torch

from bench.bars import OPS_BARS, judge, show_bars
from bench.measure import (
    ReadCeiling,
    interleaved,
    machine_facts,
    paired_ratio,
    quantiles,
    write_json,
)
from bench.op_cases import OPS, Case, Size, cases_of
from bench.shapes import DTYPES, SHAPES
from cascade_engine import build_info
from cascade_engine.errors import RequestError
from cascade_engine.ops.cpu import CpuBackend, default_threads

TOKENS = (1, 2, 4, 8, 16, 32, 64, 512)
CONTEXTS = (512, 8192)
SIZES: tuple[Size, ...] = (*((1, tokens) for tokens in TOKENS), (16, 1))
"""Where neither --rows nor --tokens is given."""


def sizes_wanted(rows: list[int] | None, tokens: list[int] | None) -> list[Size]:
    if rows is None and tokens is None:
        return list(SIZES)
    return [(m, t) for m in rows or [1] for t in tokens or TOKENS]


def measure(case: Case, ceiling: ReadCeiling, rounds: int, baseline: str) -> dict[str, Any]:
    runs: dict[str, Callable[[], object]] = {"ours": case.ours, "read ceiling": ceiling}
    if baseline == "torch":
        runs["torch"] = case.torch
    with torch.inference_mode():
        times = interleaved(runs, rounds)
        error = case.error()
    ours = quantiles(times["ours"])
    result: dict[str, Any] = {
        "op": case.op,
        "name": case.name,
        "rows": case.rows,
        "tokens": case.tokens,
        "context": case.context,
        "milliseconds": {q: t * 1e3 for q, t in ours.items()},
        "gflop_per_second": case.flops / ours["median"] / 1e9,
        "max_error": error,
    }
    if "torch" in times:
        result["torch_milliseconds"] = {q: t * 1e3 for q, t in quantiles(times["torch"]).items()}
        result["torch_over_ours"] = paired_ratio(times["torch"], times["ours"])
    if case.read_bytes:
        rate = [case.read_bytes / t for t in times["ours"]]
        ceilings = [ceiling.num_bytes / t for t in times["read ceiling"]]
        result["bytes"] = case.read_bytes
        result["gb_per_second"] = case.read_bytes / ours["median"] / 1e9
        result["fraction_of_read_bandwidth"] = paired_ratio(rate, ceilings)
    return result


HEADER = (
    "op        dtype rows tokens context       ms      p10      p90    GB/s of read GFLOP/s"
    "    error torch ms torch/ours"
)


def show(result: Mapping[str, Any], dtype: str) -> None:
    ms = result["milliseconds"]
    line = f"{result['op']:9s} {dtype:5s} {result['rows']:4d} {result['tokens']:6d} "
    line += f"{result['context'] or '-':>7} "
    line += f"{ms['median']:8.3f} {ms['p10']:8.3f} {ms['p90']:8.3f} "
    if "bytes" in result:
        fraction = result["fraction_of_read_bandwidth"]["median"]
        line += f"{result['gb_per_second']:7.1f} {fraction:7.2f} "
    else:
        line += f"{'-':>7s} {'-':>7s} "
    line += f"{result['gflop_per_second']:7.0f} {result['max_error']:8.1e} "
    if "torch_over_ours" in result:
        torch_ms = result["torch_milliseconds"]["median"]
        line += f"{torch_ms:8.3f} {result['torch_over_ours']['median']:10.2f}"
    print(line, flush=True)


def verdicts(results: list[dict[str, Any]], shape: str) -> list[dict[str, Any]]:
    """The bars of each dtype that was measured."""
    found = []
    for dtype in dict.fromkeys(result["dtype"] for result in results):
        figures = {
            key: {r["name"]: r[key] for r in results if r["dtype"] == dtype and key in r}
            for key in ("fraction_of_read_bandwidth", "torch_over_ours")
        }
        for verdict in judge(OPS_BARS, figures, shape, dtype):
            found.append(verdict | {"dtype": dtype, "name": f"{dtype} {verdict['name']}"})
    return found


def numbers(text: str) -> list[int]:
    """Comma-separated positive integers."""
    try:
        values = [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be integers like 1,8,16, got {text!r}") from None
    if min(values) < 1:
        raise argparse.ArgumentTypeError(f"must be >= 1, got {min(values)}")
    return values


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.ops",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--op", choices=OPS, action="append", help="repeatable; default: all")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=DTYPES, action="append", help="default: all")
    parser.add_argument("--shape", choices=SHAPES, default="110m")
    parser.add_argument("--rows", type=numbers, metavar="1,16,...")
    parser.add_argument("--tokens", type=numbers, metavar="1,8,...")
    parser.add_argument("--context", type=numbers, default=list(CONTEXTS), metavar="512,...")
    parser.add_argument("--baseline", choices=["torch", "none"], default="torch")
    parser.add_argument("--isa", default="", help="instruction set; default: the best")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args(argv)
    if args.rounds < 1:
        parser.error(f"--rounds must be >= 1, got {args.rounds}")
    return args


def open_backend(device: str, threads: int, isa: str) -> CpuBackend:
    """Raises RequestError where there is no such backend."""
    if device != "cpu":
        info = build_info()
        raise RequestError(
            f"--device {device}: there is no GPU backend to measure (CUDA compiled in: "
            f"{info['cuda_compiled']}, devices: {len(info['cuda_devices'])}); use --device cpu"
        )
    return CpuBackend(threads, isa)


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    threads = args.threads or default_threads()
    torch.set_num_threads(threads)
    try:
        backend = open_backend(args.device, threads, args.isa)
    except (RequestError, ValueError) as error:
        raise SystemExit(f"bench.ops: {error}") from error
    ceiling = ReadCeiling(threads)
    facts = machine_facts(threads) | {"instruction_set": backend.isa}
    print(f"{args.shape} shape, random numbers, {threads} threads, {backend.isa}\n{HEADER}")
    results = []
    sizes = sizes_wanted(args.rows, args.tokens)
    for op in args.op or OPS:
        for dtype in args.dtype or DTYPES:
            for case in cases_of(op, backend, args.shape, DTYPES[dtype], sizes, args.context):
                result = measure(case, ceiling, args.rounds, args.baseline)
                show(result, dtype)
                results.append(result | {"dtype": dtype})
    report = {"machine": facts, "shape": args.shape, "rounds": args.rounds, "results": results}
    report["bars"] = verdicts(results, args.shape)
    show_bars(report["bars"])
    write_json(args.json, report)


if __name__ == "__main__":
    main()
