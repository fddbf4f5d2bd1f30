"""Milliseconds of single operations, beside torch on the same numbers.

    python -m bench.ops --device cpu --json FILE
    python -m bench.ops --op linear --dtype bf16 --tokens 1,8,16 --shape 110m
    python -m bench.ops --op attention --dtype f32 --rows 1,16 --tokens 1 --context 8192
    python -m bench.ops --device cuda --graph --cold-l2 --json FILE

--rows are sequences, --tokens the new tokens of each, --context the tokens that attention sees of
each, or that drafting searches; --tree makes attention's new tokens nodes of a tree. On a CPU
`linear` multiplies by every weight matrix of a decoding step of the shape, `attention` goes over as
many layers as fill 256 MB, `rms_norm` and `swiglu` run once for each layer; on a GPU a case is one
call. Weights and caches are random. GB/s counts weights, keys and values (tokens, logits) and is
compared round by round with the ceiling, which is measured at the start as well: read bandwidth, on
a GPU that of a copy (beyond 1 where they fit the caches). The error is the largest difference from
float32 torch over the largest value; for operations on tokens the share of rows that are wrong.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from bench.bars import CUDA_OPS_BARS, OPS_BARS, Bar, judge, show_bars
from bench.devices import CEILING, CpuDevice, CudaDevice, Device, open_device
from bench.measure import paired_ratio, quantiles, write_json
from bench.op_case import Case, Size
from bench.shapes import SHAPES
from cascade_engine.errors import RequestError
from cascade_engine.ops import MAX_TREE_NODES
from cascade_engine.ops.cpu import default_threads


def sizes_wanted(
    rows: list[int] | None, tokens: list[int] | None, default: Sequence[Size]
) -> list[Size]:
    """What is not asked for is as in the default sizes."""
    if rows is None and tokens is None:
        return list(default)
    default_tokens = [t for m, t in default if m == default[0][0]]
    return [(m, t) for m in rows or [default[0][0]] for t in tokens or default_tokens]


def read_tree(path: str) -> list[int]:
    """Parents of a tree's nodes in topological order, -1: the token before the tree. Raises
    RequestError for a file without a JSON list of them."""
    try:
        parents = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise RequestError(f"--tree {path}: {error}") from None
    if not isinstance(parents, list) or not 0 < len(parents) <= MAX_TREE_NODES:
        raise RequestError(
            f"--tree {path}: must be a list of 1..{MAX_TREE_NODES} parents like [-1, 0, 0, 1]"
        )
    for node, parent in enumerate(parents):
        if type(parent) is not int or not -1 <= parent < node:
            raise RequestError(
                f"--tree {path}: parents[{node}] must be in -1..{node - 1}, got {parent!r}"
            )
    return parents


def measure(case: Case, device: Device, rounds: int, baseline: str) -> dict[str, Any]:
    runs: dict[str, Callable[[], object]] = {"ours": case.ours}
    if baseline == "torch" and case.torch is not None:
        runs["torch"] = case.torch
    if baseline != "none":
        runs |= case.peers
    with torch.inference_mode():
        times = device.times(runs, rounds)
        error = case.error()
    ours = quantiles(times["ours"])
    result: dict[str, Any] = {
        "op": case.op,
        "name": case.name,
        "rows": case.rows,
        "tokens": case.tokens,
        "context": case.context,
        "detail": case.detail,
        "milliseconds": {q: t * 1e3 for q, t in ours.items()},
        "gflop_per_second": case.flops / ours["median"] / 1e9,
        "max_error": error,
    }
    if "torch" in times:
        result["torch_milliseconds"] = {q: t * 1e3 for q, t in quantiles(times["torch"]).items()}
        result["torch_over_ours"] = paired_ratio(times["torch"], times["ours"])
    for peer in case.peers.keys() & times.keys():
        result[f"{peer}_over_ours"] = paired_ratio(times[peer], times["ours"])
    if case.read_bytes:
        rate = [case.read_bytes / t for t in times["ours"]]
        ceilings = [device.ceiling_bytes / t for t in times[CEILING]]
        result["bytes"] = case.read_bytes
        result["gb_per_second"] = case.read_bytes / ours["median"] / 1e9
        result["fraction_of_ceiling"] = paired_ratio(rate, ceilings)
    return result


HEADER = (
    "op        dtype rows tokens context       ms      p10      p90    GB/s of {:4s} GFLOP/s"
    "    error torch ms torch/ours"
)


def show(result: Mapping[str, Any], dtype: str) -> None:
    ms = result["milliseconds"]
    line = f"{result['op']:9s} {dtype:5s} {result['rows']:4d} {result['tokens']:6d} "
    line += f"{result['context'] or '-':>7} "
    line += f"{ms['median']:8.4f} {ms['p10']:8.4f} {ms['p90']:8.4f} "
    if "bytes" in result:
        fraction = result["fraction_of_ceiling"]["median"]
        line += f"{result['gb_per_second']:7.1f} {fraction:7.2f} "
    else:
        line += f"{'-':>7s} {'-':>7s} "
    line += f"{result['gflop_per_second']:7.0f} {result['max_error']:8.1e} "
    if "torch_over_ours" in result:
        torch_ms = result["torch_milliseconds"]["median"]
        line += f"{torch_ms:8.4f} {result['torch_over_ours']['median']:10.2f}"
    else:
        line += f"{'-':>8s} {'-':>10s}"
    peers = [key for key in result if key.endswith("_over_ours") and key != "torch_over_ours"]
    notes = [f"{key.replace('_', ' ')} {result[key]['median']:.2f}" for key in peers]
    print(line, result["detail"], *notes, flush=True)


FIGURES = ("fraction_of_ceiling", "torch_over_ours", "flashinfer_over_ours", "milliseconds")


def verdicts(
    bars: Iterable[Bar], results: list[dict[str, Any]], shape: str
) -> list[dict[str, Any]]:
    """The bars of each dtype that was measured."""
    found = []
    for dtype in dict.fromkeys(result["dtype"] for result in results):
        figures = {
            key: {r["name"]: r[key] for r in results if r["dtype"] == dtype and key in r}
            for key in FIGURES
        }
        for verdict in judge(bars, figures, shape, dtype):
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
    ops = list(dict.fromkeys([*CpuDevice.ops, *CudaDevice.ops]))
    dtypes = CpuDevice.dtypes | CudaDevice.dtypes
    parser.add_argument("--op", choices=ops, action="append", help="repeatable; default: all")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=dtypes, action="append", help="repeatable; default: all")
    parser.add_argument("--shape", choices=SHAPES, help="default: 110m, on a GPU 7b")
    parser.add_argument("--rows", type=numbers, metavar="1,16,...")
    parser.add_argument("--tokens", type=numbers, metavar="1,8,...")
    parser.add_argument("--context", type=numbers, metavar="512,...")
    parser.add_argument("--tree", metavar="FILE", help="attention: JSON list of parents")
    parser.add_argument("--graph", action="store_true", help="cuda: replay captured graphs")
    parser.add_argument("--cold-l2", action="store_true", help="cuda: nothing lies in the L2 cache")
    parser.add_argument("--baseline", choices=["torch", "none"], default="torch")
    parser.add_argument("--isa", default="", help="cpu: instruction set; default: the best")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args(argv)
    if args.rounds < 1:
        parser.error(f"--rounds must be >= 1, got {args.rounds}")
    return args


def chosen(what: str, asked: list[str] | None, offered: Iterable[str], device: str) -> list[str]:
    """All that the device offers, or what was asked for. Raises RequestError."""
    offered = list(offered)
    for name in asked or []:
        if name not in offered:
            raise RequestError(
                f"--{what} {name}: --device {device} measures {', '.join(offered)}; choose one"
            )
    return asked or offered


def measure_all(args: argparse.Namespace, device: Device, report: dict[str, Any]) -> None:
    """Into the report, which is written behind every case: what comes later may fail, or be too
    late. An operation that cannot be measured leaves its error there."""
    ops = chosen("op", args.op, device.ops, args.device)
    dtypes = chosen("dtype", args.dtype, device.dtypes, args.device)
    parents = None if args.tree is None else read_tree(args.tree)
    print(f"{args.shape} shape, random numbers, {device.title}")
    ceiling = quantiles(device.times({}, args.rounds)[CEILING])["median"]
    gigabytes = device.ceiling_bytes / ceiling / 1e9
    device.facts["ceiling"] = {"of": device.ceiling_name, "gb_per_second": gigabytes}
    print(f"{device.ceiling_name} at {gigabytes:.1f} GB/s\n{HEADER.format(device.ceiling_name)}")
    for op, dtype in itertools.product(ops, dtypes):
        tree = parents if op == "attention" else None
        tokens = args.tokens if tree is None else [len(tree)]
        sizes = sizes_wanted(args.rows, tokens, device.sizes(op))
        contexts = args.context or device.contexts(op)
        try:
            for case in device.cases(op, args.shape, device.dtypes[dtype], sizes, contexts, tree):
                result = measure(case, device, args.rounds, args.baseline)
                show(result, dtype)
                report["results"].append(result | {"dtype": dtype})
                write_json(args.json, report)
        except RuntimeError as error:
            print(f"{op} {dtype}: {error}", flush=True)
            report["failed"].append({"op": op, "dtype": dtype, "error": str(error)})


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    threads = args.threads or default_threads()
    torch.set_num_threads(threads)
    report: dict[str, Any] = {"rounds": args.rounds, "results": [], "failed": []}
    try:
        device = open_device(args.device, threads, args.isa, args.graph, args.cold_l2)
        args.shape = args.shape or device.shape
        report |= {"machine": device.facts, "shape": args.shape}
        measure_all(args, device, report)
    except (RequestError, ValueError) as error:
        raise SystemExit(f"bench.ops: {error}") from error
    bars = CUDA_OPS_BARS if args.device == "cuda" else OPS_BARS
    report["bars"] = verdicts(bars, report["results"], args.shape)
    show_bars(report["bars"])
    write_json(args.json, report)
    if report["failed"]:
        raise SystemExit(f"bench.ops: {len(report['failed'])} operations could not be measured")


if __name__ == "__main__":
    main()
