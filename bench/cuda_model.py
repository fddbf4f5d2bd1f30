"""Plain decoding, reviews and cascade cycles of a LLaMA-2-7B shape with random weights, on the GPU.

    python -m bench.cuda_model [--dependent-launch [--against FILE]] [--peers none] --json FILE

Times of whole reviews, host work included, beside reading the weights once at the bandwidth of a
device-to-device copy, beside transformers where it is installed, and the share of a cycle (drafts,
review, acceptance, what the host does) that is not the model's pass.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench.bars import MODEL_BARS, judge, show_bars
from bench.cuda_peers import transformers_decode
from bench.devices import CEILING, CudaDevice
from bench.measure import quantiles, write_json
from bench.shapes import SHAPES
from cascade_engine.errors import RequestError
from cascade_engine.levels import (
    NeuralLevel,
    Proposal,
    ReviewItem,
    Speculated,
    Speculation,
    StatisticalLevel,
    TokenRows,
)
from cascade_engine.models.config import LlamaConfig, RopeConfig, inv_freq
from cascade_engine.models.llama import LlamaLayer, LlamaWeights
from cascade_engine.ops import CudaBackend, LinearWeight, Sampler
from cascade_engine.ops.cuda import DEPENDENT_LAUNCH

VOCABULARY, CONTEXT, LENGTH = 32000, 2048, 512
PERIOD = 7
"""Of the text that cycles draft for: every draft is as long as was asked for."""


def random_weights(
    backend: CudaBackend, shape: dict[str, int], vocab: int, context: int
) -> LlamaWeights:
    """Filled on the device: no checkpoint, no copy on the host."""
    heads = shape["num_attention_heads"]
    kv_heads = shape.get("num_key_value_heads", heads)
    hidden, inner = shape["hidden_size"], shape["intermediate_size"]
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=inner,
        num_layers=shape["num_hidden_layers"],
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=hidden // heads,
        max_positions=context,
        tie_word_embeddings=False,
        rms_norm_eps=1e-5,
        rope=RopeConfig(),
        attention_bias=False,
        mlp_bias=False,
        bos_id=None,
        eos_ids=(),
        dtype=torch.bfloat16,
    )

    def linear(n: int, k: int) -> LinearWeight:
        weight = backend.empty_linear(n, k, torch.bfloat16)
        weight.memory.normal_(0, 0.02)
        return weight

    ones = torch.ones(hidden)
    layers = tuple(
        LlamaLayer(
            ones,
            linear(hidden + 2 * kv_heads * config.head_dim, hidden),
            linear(hidden, hidden),
            ones,
            linear(2 * inner, hidden),
            linear(hidden, inner),
        )
        for _ in range(config.num_layers)
    )
    table = torch.randn(vocab, hidden, device=backend.device).to(torch.bfloat16)
    head = linear(vocab, hidden)
    return LlamaWeights(config, torch.bfloat16, table, layers, ones, head, inv_freq(config))


def measure_model(
    copy_bandwidth: float,
    backend: CudaBackend | None = None,
    shape: dict[str, int] = SHAPES["7b"],
    repeats: int = 60,
    found: Callable[[list[dict[str, Any]]], object] = len,
) -> list[dict[str, Any]]:
    """Microseconds of one review with nothing drafted (a step of plain decoding) and with 16
    drafted tokens, host work included, and how they stand to reading the weights once; then of
    cycles. `found` gets what there is so far."""
    backend = backend or CudaBackend()
    weights = random_weights(backend, shape, VOCABULARY, CONTEXT)
    rows = TokenRows(1, CONTEXT)
    level = NeuralLevel("7b", weights, backend, rows, CONTEXT, CONTEXT, VOCABULARY)
    read = sum(
        w.memory.numel() * 2
        for layer in weights.layers
        for w in (layer.qkv, layer.output, layer.gate_up, layer.down)
    )
    read += weights.head.memory.numel() * 2
    floor = read / (copy_bandwidth / 1e6)
    length, greedy = LENGTH, Sampler(temperature=0.0)
    rows.write(0, torch.randint(0, VOCABULARY, (length + 16,)).tolist())
    level.prefill(0, length - 1)
    times: dict[int, list[float]] = {0: [], 16: []}
    for _ in range(repeats):
        for drafted, samples in times.items():
            begin = time.perf_counter()
            level.review([ReviewItem(0, length, length + drafted, greedy)], 1.0)
            samples.append((time.perf_counter() - begin) * 1e6)
            level.truncate(0, length - 1)
    results: list[dict[str, Any]] = []
    warm = repeats // 10
    decode = quantiles(times[0][warm:])
    for drafted, samples in times.items():
        us = quantiles(samples[warm:])
        ratio = us["median"] / decode["median"]
        share = floor / us["median"]
        print(
            f"review of {drafted:2} drafted: {us['median']:9.1f} us, {ratio:.2f} x decode, ", end=""
        )
        print(f"{share:.1%} of the bandwidth floor", flush=True)
        results.append(
            {
                "op": "model",
                "case": f"7B shape, {drafted} drafted",
                "us": us,
                "vs_decode": ratio,
                "of_floor": share,
            }
        )
    found(results)
    results += measure_cycles(level, greedy, repeats)
    found(results)
    return results


def measure_cycles(level: NeuralLevel, greedy: Sampler, repeats: int) -> list[dict[str, Any]]:
    """Microseconds of drafting for one row and reviewing that as one action, with what the level
    does on the host, and of the pass in it, launched and waited for alone."""
    statistical = StatisticalLevel(level.backend, level.rows)
    speculation = Speculation.of(level, statistical)
    assert speculation is not None
    run, program = level.backend.launcher, level._program
    periodic = [1 + i % PERIOD for i in range(LENGTH)]
    level.rows.write(0, periodic)
    level.truncate(0, 0)
    level.prefill(0, LENGTH - 1)
    results = []
    for name, trees, count in (("chain", False, 10), ("tree", True, 16)):
        cycles, passes, work = [], [], None
        for _ in range(repeats):
            begin = time.perf_counter()
            asked = [Speculated(Proposal(0, LENGTH, count), count, greedy)]
            [(item, _)] = speculation.review(asked, trees, 1)
            level.truncate(0, LENGTH - 1)
            cycles.append((time.perf_counter() - begin) * 1e6)
            work = work or run.capture(partial(program.launch, *program.launched()))
            begin = time.perf_counter()
            work()
            run.wait()
            passes.append((time.perf_counter() - begin) * 1e6)
        warm = repeats // 10
        outside = 1 - quantiles(passes[warm:])["median"] / quantiles(cycles[warm:])["median"]
        print(f"cycle with a {name} of {item.drafted}: {outside:.1%} outside the pass", flush=True)
        us = quantiles(cycles[warm:])
        results.append({"op": "cycle", "case": name, "us": us, "outside_pass": outside})
    return results


def figures(results: list[dict[str, Any]], theirs: list[float] | None) -> dict[str, Any]:
    """What the bars are about."""
    plain, sixteen, chain, tree = results
    found = {
        "of_floor": plain["of_floor"],
        "review_over_decode": sixteen["vs_decode"],
        "outside_pass": chain["outside_pass"],
        "outside_pass_tree": tree["outside_pass"],
    }
    if theirs is not None:
        us = quantiles([seconds * 1e6 for seconds in theirs[len(theirs) // 5 :]])
        found["transformers_us"] = us
        found["transformers_over_ours"] = us["median"] / plain["us"]["median"]
    return found


def show_decision(results: list[dict[str, Any]], against: str) -> dict[str, float]:
    """How reviews and cycles stand to those of an earlier run without dependent launches."""
    earlier = {
        r["case"]: r["us"]["median"] for r in json.loads(Path(against).read_text())["results"]
    }
    ratios = {r["case"]: r["us"]["median"] / earlier[r["case"]] for r in results}
    for case, ratio in ratios.items():
        print(f"{case}: {ratio:.3f} x the time without dependent launches")
    faster = max(ratios.values()) < 1.0
    print("dependent launches pay here:", f"set {DEPENDENT_LAUNCH}=1" if faster else "no")
    return ratios


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.cuda_model", description=__doc__)
    parser.add_argument(
        "--dependent-launch",
        action="store_true",
        help="kernels start while the one before them ends (compute capability 9.0)",
    )
    parser.add_argument("--against", metavar="FILE", help="a run without that, to decide by")
    parser.add_argument("--peers", choices=["all", "none"], default="all")
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args(argv)
    try:
        device = CudaDevice(threads=1, graph=True, cold_l2=True)
        backend = CudaBackend()
        backend.launcher.set_dependent(args.dependent_launch)
    except RequestError as error:
        raise SystemExit(f"bench.cuda_model: {error}") from error
    bandwidth = device.ceiling_bytes / quantiles(device.times({}, 30)[CEILING])["median"]
    print(f"{device.title}: copies at {bandwidth / 1e9:.0f} GB/s")
    device.facts["dependent_launch"] = args.dependent_launch
    device.facts["kernels"] = backend.launcher.choices
    report: dict[str, Any] = {"machine": device.facts}

    def found(results: list[dict[str, Any]]) -> None:
        """What comes later may fail, or be too late."""
        report["results"] = results
        write_json(args.json, report)

    results = measure_model(bandwidth, backend, found=found)
    judge_model(report, None)
    write_json(args.json, report)
    if args.against:
        report["over_independent"] = show_decision(results, args.against)
    if args.peers == "all":
        gc.collect()
        torch.cuda.empty_cache()
        judge_model(report, transformers_decode(SHAPES["7b"], VOCABULARY, CONTEXT, LENGTH, 60))
    show_bars(report["bars"])
    write_json(args.json, report)


def judge_model(report: dict[str, Any], theirs: list[float] | None) -> None:
    report["figures"] = figures(report["results"], theirs)
    report["bars"] = judge(MODEL_BARS, report["figures"], "7b", "bf16")


if __name__ == "__main__":
    main()
