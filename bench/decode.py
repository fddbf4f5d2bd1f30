"""Milliseconds per decoding step and per review, beside transformers and llama.cpp on the same
weights.

    python -m bench.decode --target DIR [--json FILE]
    python -m bench.decode --shape 110m --dtype bf16 --peers hf,llamacpp --json FILE

One row at a context of --context tokens. "1" is a plain decoding step; "k" is a review of k tokens:
one forward pass over them with logits for each; "tree k" of as many nodes of a tree, two children
to a node. All cases run interleaved; medians are printed, and ratios are medians of the ratio round
by round. A peer is timed only if its logits agree with ours.
With --dtype bf16 the engine also runs with its weights in the other form, compressed or not. With
--dtype int8 it also runs in bfloat16, in both forms, transformers runs in bfloat16, and llama.cpp
with Q8_0 weights.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.bars import DECODE_BARS, judge, show_bars
from bench.llamacpp import LlamaCpp, require_extra, write_gguf
from bench.measure import (
    ReadCeiling,
    interleaved,
    machine_facts,
    paired_ratio,
    quantiles,
    write_json,
)
from bench.memory import measure_memory
from bench.peers import DTYPE_NAMES, PREFILL, TOLERANCE, Ours, Transformers, check_agreement
from bench.shapes import DTYPES, SHAPES, write_shape
from cascade_engine.errors import CascadeError
from cascade_engine.ops.cpu import default_threads

REVIEWS = (1, 2, 4, 8, 16, 32, 64)
TREES = (16, 32, 64)
PEERS = ("hf", "llamacpp")
OUTSIDE_TOKENS, OUTSIDE_REPEATS = 64, 5


def open_forms(target: Path, ours: Ours, args: argparse.Namespace, threads: int) -> dict[str, Ours]:
    """Our own bfloat16 in the form that `ours` is not; with int8 weights in both, "bf16" being the
    one without compression."""
    forms = {"bf16": False, "compressed": True} if args.dtype == "int8" else {}
    if args.dtype == "bf16":
        forms = {"uncompressed": False} if ours.compressed else {"compressed": True}
    return {
        name: Ours(target, "bfloat16", threads, args.context, compress)
        for name, compress in forms.items()
    }


def open_peers(
    target: Path, scratch: Path, args: argparse.Namespace, threads: int
) -> dict[str, Any]:
    """The peers by name."""
    peers: dict[str, Any] = {}
    floats = DTYPES["bf16" if args.dtype == "int8" else args.dtype]
    if "hf" in args.peers:
        peers["hf"] = Transformers(target, floats, threads, args.context)
    if "llamacpp" in args.peers:
        path = scratch / "model.gguf"
        write_gguf(target, path, args.dtype)
        peers["llamacpp"] = LlamaCpp(path, args.dtype, threads, args.context)
    return peers


def milliseconds(times: Mapping[str, Sequence[float]]) -> dict[str, dict[str, float]]:
    return {name: {q: t * 1e3 for q, t in quantiles(s).items()} for name, s in times.items()}


def measure(target: Path, scratch: Path, args: argparse.Namespace) -> dict[str, Any]:
    """The report. Raises CascadeError where a peer cannot run or computes another model."""
    threads = args.threads or default_threads()
    ours = Ours(target, DTYPE_NAMES[args.dtype], threads, args.context)
    forms = open_forms(target, ours, args, threads)
    peers = {**forms, **open_peers(target, scratch, args, threads)}
    report: dict[str, Any] = {
        "machine": machine_facts(threads),
        "dtype": DTYPE_NAMES[args.dtype],
        "compressed": ours.compressed,
        "context": args.context,
        "rounds": args.rounds,
        "peers": {name: getattr(peer, "facts", {}) for name, peer in peers.items()},
    }
    for name, peer in peers.items():
        # Compression changes no bit.
        tolerance = 0.0 if name in forms and args.dtype == "bf16" else TOLERANCE[args.dtype]
        difference = check_agreement(ours, peer, name, ours.vocab, tolerance)
        report["peers"][name]["logits_difference"] = difference
    report |= measure_steps(ours, peers, args.rounds, threads)
    report |= measure_prefill(ours, peers, args.rounds)
    report["outside_native"] = ours.outside_native(OUTSIDE_TOKENS, OUTSIDE_REPEATS)
    report["memory"] = measure_memory(target, DTYPE_NAMES[args.dtype], threads, args.context)
    return report


def measure_steps(
    ours: Ours, peers: Mapping[str, Any], rounds: int, threads: int
) -> dict[str, Any]:
    """Times of steps and reviews, their ratios to one step and to the peers'."""
    ceiling = ReadCeiling(threads)
    cases: dict[str, Callable[[], object]] = {"read ceiling": ceiling}
    for name, runner in {"ours": ours, **peers}.items():
        for k in REVIEWS:
            cases[f"{name} {k}"] = lambda runner=runner, k=k: runner.step(k)  # type: ignore[misc]
    for k in TREES:
        cases[f"tree {k}"] = lambda k=k: ours.tree(k)  # type: ignore[misc]
    times = interleaved(cases, rounds)
    read_rate = [ceiling.num_bytes / t for t in times["read ceiling"]]
    found: dict[str, Any] = {
        "milliseconds": milliseconds(times),
        "read_gb_per_second": {k: v / 1e9 for k, v in quantiles(read_rate).items()},
        **by_own_step("ours", ours, times, read_rate),
        "forms": {
            name: by_own_step(name, runner, times, read_rate)
            for name, runner in peers.items()
            if isinstance(runner, Ours)
        },
    }
    found["tree_over_decode"] = {
        str(k): paired_ratio(times[f"tree {k}"], times["ours 1"]) for k in TREES
    }
    for name in peers:
        both = {k: (times[f"ours {k}"], times[f"{name} {k}"]) for k in REVIEWS}
        if name == "bf16":
            found["bf16_over_ours"] = {str(k): paired_ratio(b, a) for k, (a, b) in both.items()}
        else:
            found[f"ours_over_{name}"] = {str(k): paired_ratio(a, b) for k, (a, b) in both.items()}
    return found


def by_own_step(
    name: str, runner: Ours, times: Mapping[str, Sequence[float]], read_rate: Sequence[float]
) -> dict[str, Any]:
    """What a step reads, how fast that is, and what reviews cost in steps of the same weights."""
    one = times[f"{name} 1"]
    return {
        "bytes_per_step": runner.bytes_per_step(),
        "fraction_of_read_bandwidth": paired_ratio(
            [runner.bytes_per_step() / t for t in one], read_rate
        ),
        "review_over_decode": {str(k): paired_ratio(times[f"{name} {k}"], one) for k in REVIEWS},
    }


def measure_prefill(ours: Ours, peers: Mapping[str, Any], rounds: int) -> dict[str, Any]:
    runners = {"ours": ours, **peers}
    times = interleaved({name: runner.prefill for name, runner in runners.items()}, rounds, 1)
    return {
        f"prefill_{PREFILL}_milliseconds": milliseconds(times),
        "prefill_over_ours": {name: paired_ratio(times[name], times["ours"]) for name in peers},
    }


def show(report: Mapping[str, Any]) -> None:
    """The table for people."""
    times, machine = report["milliseconds"], report["machine"]
    peers = list(report["peers"])
    print(
        f"{'compressed ' * report['compressed']}{report['dtype']}, context {report['context']}, "
        f"{machine['threads']} threads, "
        f"{machine['instruction_set']}, {report['rounds']} rounds"
    )
    for name, facts in report["peers"].items():
        described = "".join(
            f"{key} {facts[key]}, " for key in ("version", "weights", "cache") if key in facts
        )
        print(f"{name}: {described}logits differ by {facts['logits_difference']:.2g} of their norm")
    heads = "".join(f"{name + ' ms':>13s} {'ours/' + name:>13s}" for name in peers)
    print("tokens    ours ms   review/decode" + heads)
    for k in REVIEWS:
        own = times[f"ours {k}"]["median"]
        line = f"{k:6d} {own:10.3f} {report['review_over_decode'][str(k)]['median']:15.2f}"
        for name in peers:
            ratio = (
                1 / report["bf16_over_ours"][str(k)]["median"]
                if name == "bf16"
                else report[f"ours_over_{name}"][str(k)]["median"]
            )
            line += f" {times[f'{name} {k}']['median']:12.3f} {ratio:13.2f}"
        print(line)
    for k in TREES:
        own = times[f"tree {k}"]["median"]
        print(f"tree {k} {own:9.3f} {report['tree_over_decode'][str(k)]['median']:15.2f}")
    prefill = report[f"prefill_{PREFILL}_milliseconds"]
    line = f"prefill of {PREFILL}: {prefill['ours']['median']:.1f} ms"
    for name in peers:
        ratio = report["prefill_over_ours"][name]["median"]
        line += f"; {name} {prefill[name]['median']:.1f} ms, {ratio:.2f}x"
    print(line)
    rate = report["read_gb_per_second"]["median"]
    fraction = report["fraction_of_read_bandwidth"]["median"]
    print(f"plain decoding reads at {fraction:.2f} of the measured {rate:.1f} GB/s")
    print(f"outside native code: {report['outside_native']['share']:.1%} of a decoding step")
    if report["memory"] is not None:
        memory = report["memory"]
        print(
            f"memory: {memory['resident_bytes'] / 1e6:.1f} MB, "
            f"{memory['over_weights_and_cache']:.2f} of weights and cache; "
            f"{memory['peak_over_weights_and_cache']:.2f} at its peak"
        )
    show_bars(report["bars"])


def peer_names(text: str) -> tuple[str, ...]:
    """Comma-separated names of PEERS, or `none`."""
    names = tuple(name for name in text.split(",") if name != "none")
    unknown = [name for name in names if name not in PEERS]
    if unknown:
        known = ", ".join(PEERS)
        raise argparse.ArgumentTypeError(
            f"unknown peer {unknown[0]!r}: name some of {known}, with commas between, or none"
        )
    return names


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.decode",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--target", metavar="DIR", help="Hugging Face directory")
    what.add_argument("--shape", choices=SHAPES, help="random weights of this shape")
    parser.add_argument("--dtype", choices=DTYPE_NAMES, default="bf16")
    parser.add_argument(
        "--peers", type=peer_names, default=("hf",), metavar="hf,llamacpp", help="default: hf"
    )
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args(argv)
    for name in ("context", "rounds", "threads"):
        value = getattr(args, name)
        if value is not None and value < 1:
            parser.error(f"--{name} must be >= 1, got {value}")
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    try:
        if "llamacpp" in args.peers:
            require_extra()
        with tempfile.TemporaryDirectory() as scratch:
            target = Path(args.target) if args.target else None
            if target is None:
                stored = "f32" if args.dtype == "f32" else "bf16"
                target = write_shape(args.shape, stored, Path(scratch))
            report = measure(target, Path(scratch), args)
    except CascadeError as error:
        raise SystemExit(f"bench.decode: {error}") from error
    report["model"] = args.target or f"{args.shape} shape, random weights"
    report["bars"] = judge(DECODE_BARS, report, args.shape, args.dtype)
    show(report)
    write_json(args.json, report)


if __name__ == "__main__":
    main()
