"""Milliseconds of single operations, beside torch on the same numbers.

    python -m bench.ops --json FILE
    python -m bench.ops --op linear --dtype bf16 --rows 1,8,16 --shape 110m
    python -m bench.ops --op attention --dtype f32 --rows 1,16 --context 8192

`linear` multiplies by every weight matrix of a decoding step of the shape, `attention` goes over as
many layers as fill 256 MB, `rms_norm` and `swiglu` run once for each layer. Weights and caches are
random. A row of the table is one call of all of them; GB/s counts weights, keys and values, and is
compared with the measured read bandwidth round by round, where they exceed the caches.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from bench.measure import (
    ReadCeiling,
    interleaved,
    machine_facts,
    paired_ratio,
    quantiles,
    write_json,
)
from bench.shapes import DTYPES, SHAPES
from cascade_engine import _C
from cascade_engine.errors import RequestError
from cascade_engine.ops.cpu import CpuBackend, Recorder, default_threads

OPS = ("linear", "attention", "rms_norm", "swiglu")
VOCABULARY = 32000
CACHE_BYTES = 256 << 20
ROWS = (1, 2, 4, 8, 16, 32, 64, 512)
CONTEXTS = (512, 8192)


@dataclass
class Case:
    """One operation at one size. `read_bytes` 0: what it reads fits the caches."""

    op: str
    rows: int
    context: int
    ours: Callable[[], object]
    torch: Callable[[], object]
    read_bytes: int
    flops: int


class Pass:
    """A recorded pass over `rows` tokens whose activations come from one random embedding row."""

    def __init__(self, backend: CpuBackend, rows: int, context: int = 0) -> None:
        self.rows, self.start = rows, max(context - rows, 0)
        self.recorder: Recorder = backend.recorder()
        positions = self.start + rows
        pages = -(-positions // _C.PAGE_TOKENS)
        self.tokens = torch.zeros(1, positions, dtype=torch.int32)
        self.pages = torch.arange(pages, dtype=torch.int32).view(1, pages)
        program = self.recorder.program
        program.bind_rows(self.tokens.data_ptr(), positions, 1)
        program.bind_block_tables(self.pages.data_ptr(), pages, pages)

    def activation(self, cols: int) -> int:
        """float32 `[rows, cols]`."""
        return self.recorder.embedding(torch.randn(1, cols))

    def __call__(self) -> None:
        self.recorder.program.run([0], [self.start], [self.rows], [0])


def sizes_of(shape: str) -> tuple[int, int, int, int]:
    """Hidden size, inner size, layers, heads."""
    s = SHAPES[shape]
    return (
        s["hidden_size"],
        s["intermediate_size"],
        s["num_hidden_layers"],
        s["num_attention_heads"],
    )


def linear_cases(
    backend: CpuBackend, shape: str, dtype: torch.dtype, rows: list[int]
) -> Iterator[Case]:
    hidden, inner, layers, _ = sizes_of(shape)
    layer = [(3 * hidden, hidden), (hidden, hidden), (2 * inner, hidden), (hidden, inner)]
    dense = [
        torch.randn(n, k).mul_(0.02).to(dtype) for n, k in [*layer * layers, (VOCABULARY, hidden)]
    ]
    packed = [backend.pack_linear(w, dtype) for w in dense]
    count = sum(w.numel() for w in dense)
    for m in rows:
        ours = Pass(backend, m)
        x = {
            k: ours.recorder.rms_norm(ours.activation(k), torch.ones(k), 1e-5, dtype)
            for k in (hidden, inner)
        }
        for w in packed:
            ours.recorder.linear(x[w.shape[1]], w)
        dense_x = {k: torch.randn(m, k).to(dtype) for k in (hidden, inner)}

        def theirs(dense_x: dict[int, torch.Tensor] = dense_x) -> None:
            for w in dense:
                functional.linear(dense_x[w.shape[1]], w)

        yield Case("linear", m, 0, ours, theirs, count * dtype.itemsize, 2 * count * m)


def attention_cases(
    backend: CpuBackend, shape: str, dtype: torch.dtype, rows: list[int], contexts: list[int]
) -> Iterator[Case]:
    hidden, _, _, heads = sizes_of(shape)
    dim = hidden // heads
    for context in contexts:
        pages = -(-context // _C.PAGE_TOKENS)
        page = hidden * _C.PAGE_TOKENS
        layers = max(1, CACHE_BYTES // (2 * pages * page * dtype.itemsize))
        cache = torch.randn(layers, 2, pages, page).to(dtype)
        keys, values = torch.randn(2, layers, 1, heads, context, dim).to(dtype)
        for m in rows:
            if m > context:
                continue
            ours = Pass(backend, m, context)
            qkv = ours.activation(3 * hidden)
            for native in ours.recorder.cache_layers(cache, heads, dim):
                ours.recorder.attention(qkv, heads, 1 / math.sqrt(dim), native, dtype)
            queries = torch.randn(1, heads, m, dim).to(dtype)
            mask = torch.ones(m, context, dtype=torch.bool).tril(context - m) if m > 1 else None

            def theirs(
                queries: torch.Tensor = queries,
                keys: torch.Tensor = keys,
                values: torch.Tensor = values,
                mask: torch.Tensor | None = mask,
            ) -> None:
                for k, v in zip(keys, values, strict=True):
                    functional.scaled_dot_product_attention(queries, k, v, mask)

            seen = m * (context - m) + m * (m + 1) // 2
            read = layers * 2 * context * hidden * dtype.itemsize
            yield Case("attention", m, context, ours, theirs, read, layers * 4 * seen * hidden)


def small_cases(
    backend: CpuBackend, op: str, shape: str, dtype: torch.dtype, rows: list[int]
) -> Iterator[Case]:
    hidden, inner, layers, _ = sizes_of(shape)
    weight = torch.ones(hidden)
    for m in rows:
        ours = Pass(backend, m)
        if op == "rms_norm":
            x = ours.activation(hidden)
            for _ in range(layers):
                ours.recorder.rms_norm(x, weight, 1e-5, dtype)
            dense = torch.randn(m, hidden)

            def theirs(dense: torch.Tensor = dense) -> None:
                for _ in range(layers):
                    functional.rms_norm(dense, (hidden,), weight, 1e-5).to(dtype)

            yield Case(op, m, 0, ours, theirs, 0, 4 * layers * m * hidden)
            continue
        x = ours.activation(2 * inner)
        for _ in range(layers):
            ours.recorder.swiglu(x, dtype)
        gate, up = torch.randn(2, m, inner)

        def theirs_swiglu(gate: torch.Tensor = gate, up: torch.Tensor = up) -> None:
            for _ in range(layers):
                functional.silu(gate).mul_(up).to(dtype)

        yield Case(op, m, 0, ours, theirs_swiglu, 0, 5 * layers * m * inner)


def cases_of(
    op: str, backend: CpuBackend, dtype: torch.dtype, args: argparse.Namespace
) -> Iterator[Case]:
    if op == "linear":
        return linear_cases(backend, args.shape, dtype, args.rows)
    if op == "attention":
        return attention_cases(backend, args.shape, dtype, args.rows, args.context)
    return small_cases(backend, op, args.shape, dtype, args.rows)


def measure(case: Case, ceiling: ReadCeiling, rounds: int) -> dict[str, Any]:
    with torch.inference_mode():
        times = interleaved(
            {"ours": case.ours, "torch": case.torch, "read ceiling": ceiling}, rounds
        )
    ours = quantiles(times["ours"])
    result: dict[str, Any] = {
        "op": case.op,
        "rows": case.rows,
        "context": case.context,
        "milliseconds": {q: t * 1e3 for q, t in ours.items()},
        "torch_milliseconds": {q: t * 1e3 for q, t in quantiles(times["torch"]).items()},
        "gflop_per_second": case.flops / ours["median"] / 1e9,
        "torch_over_ours": paired_ratio(times["torch"], times["ours"]),
    }
    if case.read_bytes:
        rate = [case.read_bytes / t for t in times["ours"]]
        ceilings = [ceiling.num_bytes / t for t in times["read ceiling"]]
        result["bytes"] = case.read_bytes
        result["gb_per_second"] = case.read_bytes / ours["median"] / 1e9
        result["fraction_of_read_bandwidth"] = paired_ratio(rate, ceilings)
    return result


HEADER = (
    "op         dtype  rows context       ms      p10      p90    GB/s  of read  GFLOP/s "
    " torch ms  torch/ours"
)


def show(result: dict[str, Any], dtype: str) -> None:
    ms = result["milliseconds"]
    line = f"{result['op']:10s} {dtype:5s} {result['rows']:5d} {result['context'] or '-':>7} "
    line += f"{ms['median']:8.3f} {ms['p10']:8.3f} {ms['p90']:8.3f} "
    if "bytes" in result:
        fraction = result["fraction_of_read_bandwidth"]["median"]
        line += f"{result['gb_per_second']:7.1f} {fraction:8.2f} "
    else:
        line += f"{'-':>7s} {'-':>8s} "
    line += f"{result['gflop_per_second']:8.0f} {result['torch_milliseconds']['median']:9.3f} "
    print(line + f"{result['torch_over_ours']['median']:11.2f}", flush=True)


def numbers(text: str) -> list[int]:
    """Comma-separated positive integers."""
    values = [int(part) for part in text.split(",")]
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
    parser.add_argument("--device", choices=["cpu"], default="cpu")
    parser.add_argument("--dtype", choices=DTYPES, action="append", help="default: both")
    parser.add_argument("--shape", choices=SHAPES, default="110m")
    parser.add_argument("--rows", type=numbers, default=list(ROWS), metavar="1,8,...")
    parser.add_argument("--context", type=numbers, default=list(CONTEXTS), metavar="512,...")
    parser.add_argument("--isa", default="", help="instruction set; default: the best")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", metavar="FILE")
    return parser.parse_args(argv)


def main() -> None:
    args = parse()
    threads = args.threads or default_threads()
    torch.set_num_threads(threads)
    try:
        backend = CpuBackend(threads, args.isa)
    except (RequestError, ValueError) as error:
        raise SystemExit(f"bench.ops: {error}") from error
    ceiling = ReadCeiling(threads)
    facts = machine_facts(threads) | {"instruction_set": backend.isa}
    print(f"{args.shape} shape, random numbers, {threads} threads, {backend.isa}\n{HEADER}")
    results = []
    for op in args.op or OPS:
        for dtype in args.dtype or DTYPES:
            for case in cases_of(op, backend, DTYPES[dtype], args):
                result = measure(case, ceiling, args.rounds)
                show(result, dtype)
                results.append(result | {"dtype": dtype})
    write_json(args.json, {"machine": facts, "shape": args.shape, "results": results})


if __name__ == "__main__":
    main()
