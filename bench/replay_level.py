"""Walltime of large targets without their weights: real passes, recorded decisions.

    python -m bench.replay_level [--shape 110m] [--dtype bf16] [--json FILE]
    python -m bench.replay_level --shape 7b --dtype int8 --turns 2 --max-new-tokens 48

A target of the shape with random weights makes every forward pass that decoding takes, and so costs
what such a model costs; what it accepts, and the token that it writes itself, are those of a
recorded answer (greedy ones of Vicuna-7B, say). The drafters without a network see the real text,
so that their acceptance is real. Plain decoding, chains, trees and the automatic policy answer each
turn in turn. Every figure is labelled "replayed": no such model was run.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bench.measure import SETTLE_SECONDS, machine_facts, quantiles, write_json
from bench.peers import DTYPE_NAMES
from bench.questions import data_folder
from bench.replay import Turn, agreeing_path, read_turns
from bench.shapes import SHAPES, RandomWeights, write_config
from cascade_engine import (
    AutoCascade,
    Engine,
    FixedCascade,
    Generation,
    PlainDecoding,
    SamplingParams,
)
from cascade_engine.engine.loading import Loaded, LoadReport
from cascade_engine.engine.options import DTYPES
from cascade_engine.errors import CascadeError, RequestError
from cascade_engine.levels import NeuralLevel, StatisticalLevel, TokenRows
from cascade_engine.models.family import load_weights
from cascade_engine.models.llama import LlamaWeights
from cascade_engine.ops import CpuBackend
from cascade_engine.ops.cpu import default_threads
from cascade_engine.policy import Policy
from cascade_engine.tables import load_table, prebuilt_for
from cascade_engine.tokenizer import Tokenizer

LABEL = "replayed"
TRANSCRIPTS = "spec_bench_vicuna7b_dev.jsonl"
POLICIES: dict[str, Policy] = {
    "plain": PlainDecoding(),
    "chain 10": FixedCascade([[10]]),
    "tree 16": FixedCascade([[0]], tree=16),
    "tree 32": FixedCascade([[0]], tree=32),
    "automatic": AutoCascade(cache=None),
}
"""The first one is what the others are compared with."""


class RecordedDecisions:
    """A backend whose `accept` does its work on the logits, then decides as recorded answers do.

    `turns` are those in flight; a row goes by the one with the longest prompt that it begins with.
    """

    def __init__(self, backend: CpuBackend, rows: TokenRows) -> None:
        self.turns: Sequence[Turn] = ()
        self._backend = backend
        self._rows = rows

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def accept(self, **arguments: Any) -> list[tuple[int, int, list[int]]]:
        """As `CpuBackend.accept`. Raises LookupError for a row that is none of `turns`, or that
        has gone on to the end of its answer."""
        slots, begins, ends = (arguments[name] for name in ("rows", "frontiers", "lengths"))
        trees = arguments["trees"] or [None] * len(slots)
        drafts = []
        for slot, begin, end, tree in zip(slots, begins, ends, trees, strict=True):
            if tree is not None and tree[0]:
                drafts.append((tree[0], tree[1]))
            else:
                drafts.append((self._rows.read(slot, begin, end), range(-1, end - begin - 1)))
        self._backend.accept(**arguments)
        verdicts = []
        for slot, begin, (tokens, parents) in zip(slots, begins, drafts, strict=True):
            truth = self._truth(slot, begin)
            path = agreeing_path(tokens, parents, truth[:-1])
            kept = truth[: len(path) + 1]
            self._rows.tokens[slot, begin : begin + len(kept)] = torch.tensor(kept).int()
            is_tree = isinstance(parents, list)
            verdicts.append((len(path), kept[-1], path if is_tree else []))
        return verdicts

    def _truth(self, slot: int, begin: int) -> list[int]:
        """What the recorded answer says from position `begin` on."""
        row = self._rows.read(slot, 0, begin)
        turns = [turn for turn in self.turns if row[: len(turn.prompt)] == turn.prompt]
        turn = max(turns, key=lambda turn: len(turn.prompt), default=None)
        truth = [] if turn is None else turn.output[begin - len(turn.prompt) :]
        if not truth:
            raise LookupError(f"row {slot} has no recorded answer from token {begin} on")
        return truth


class ReplayLevel(NeuralLevel):
    """A level that takes every pass of a model of random weights, and decides as `turns` say."""

    def __init__(self, name: str, weights: LlamaWeights, *rest: Any) -> None:
        super().__init__(name, weights, *rest)
        assert isinstance(self.backend, CpuBackend)
        self.decisions = RecordedDecisions(self.backend, self.rows)
        self.backend = self.decisions  # type: ignore[assignment]


class Replayed:
    """An engine over a target of a named shape, for up to `rows` rows of `context` tokens."""

    def __init__(
        self,
        shape: str,
        dtype: str,
        tokenizer: Tokenizer,
        threads: int,
        context: int,
        rows: int = 1,
    ) -> None:
        backend, memory = CpuBackend(threads), TokenRows(rows, context)
        with tempfile.TemporaryDirectory() as scratch:
            config = write_config(shape, "bf16", Path(scratch))
        weights = load_weights(RandomWeights(config), config, backend, DTYPES[dtype])
        assert isinstance(weights, LlamaWeights)
        sizes = context, context * rows, config.vocab_size
        self.target = ReplayLevel(f"{shape} {dtype}, {LABEL}", weights, backend, memory, *sizes)
        table = prebuilt_for(tokenizer, config.vocab_size)
        ngrams = load_table(table, tokenizer, config.vocab_size) if table else None
        loaded = Loaded(
            [self.target],
            StatisticalLevel(backend, memory, ngrams),
            memory,
            tokenizer,
            config.eos_ids,
            LoadReport((), weights.num_bytes(), 0),
            Path(),
            None,
        )
        self.engine = Engine(loaded, PlainDecoding(), True, 512)

    def answer(self, turn: Turn, policy: Policy, tokens: int) -> Generation:
        """The first `tokens` tokens of the recorded answer, or as many as it has."""
        self.target.decisions.turns = (turn,)
        self.engine.set_policy(policy)
        params = SamplingParams(max_tokens=min(tokens, len(turn.output)))
        (result,) = self.engine.generate(turn.prompt, params)
        assert result.token_ids == turn.output[: len(result.token_ids)], "not the recorded answer"
        return result


def measure(replayed: Replayed, turns: Sequence[Turn], tokens: int) -> dict[str, Any]:
    """By policy: times over plain decoding, tokens per target call, milliseconds of a call."""
    seconds: dict[str, list[float]] = {name: [] for name in POLICIES}
    written, calls = dict.fromkeys(POLICIES, 0), dict.fromkeys(POLICIES, 0)
    for turn in turns:
        replayed.answer(turn, POLICIES["plain"], 1)  # the prompt is cached, for all alike
        for name, policy in POLICIES.items():
            time.sleep(SETTLE_SECONDS)
            begin = time.perf_counter()
            result = replayed.answer(turn, policy, tokens)
            seconds[name].append(time.perf_counter() - begin)
            written[name] += len(result.token_ids)
            calls[name] += result.stats.levels[0].calls
    plain = seconds["plain"]
    return {
        f"{name}, {LABEL}": {
            "tokens": written[name],
            "tokens_per_second": written[name] / sum(spent),
            "tokens_per_target_call": written[name] / calls[name],
            "milliseconds_per_target_call": 1e3 * sum(spent) / calls[name],
            "times_plain": sum(plain) / sum(spent),
            "times_plain_by_turn": quantiles([a / b for a, b in zip(plain, spent, strict=True)]),
        }
        for name, spent in seconds.items()
    }


def spread(turns: Sequence[Turn], count: int | None, context: int) -> list[Turn]:
    """`count` turns from all over the file, of those that fit the context."""
    fitting = [turn for turn in turns if len(turn.prompt) + len(turn.output) < context]
    step = max(1, len(fitting) // count) if count else 1
    return fitting[::step][:count]


def recorded(
    transcripts: Path | None, tokenizer: Path | None, count: int | None, context: int
) -> tuple[str, Tokenizer, list[Turn]]:
    """A file of recorded answers, its tokenizer, and turns of it; None: Spec-Bench, LLaMA's, all.
    Raises RequestError, with the way out, where there are none."""
    source = transcripts or data_folder() / "transcripts" / TRANSCRIPTS
    found = Tokenizer.load(tokenizer or data_folder() / "tokenizers" / "llama")
    if found is None or not source.exists():
        raise RequestError(
            f"no transcripts at {source}, or no tokenizer for them: give --transcripts and "
            "--tokenizer, or set CASCADE_DATA"
        )
    turns = spread(read_turns(source, found), count, context)
    if not turns:
        raise RequestError(f"no turn of {source.name} fits a context of {context}: raise it")
    return source.name, found, turns


def show(report: dict[str, Any]) -> None:
    """The table for people."""
    print(
        f"{report['shape']} shape, {report['dtype']}, {report['turns']} turns of "
        f"{report['transcripts']}, {report['machine']['threads']} threads"
    )
    print(f"{'':24s}  tokens/s  x plain  tokens/call  ms/call")
    for name, found in report["policies"].items():
        print(
            f"{name:24s} {found['tokens_per_second']:9.1f} {found['times_plain']:8.2f} "
            f"{found['tokens_per_target_call']:12.2f} {found['milliseconds_per_target_call']:8.1f}"
        )


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.replay_level",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--shape", choices=SHAPES, default="110m")
    parser.add_argument("--dtype", choices=DTYPE_NAMES, default="bf16")
    parser.add_argument("--transcripts", type=Path, metavar="FILE", help="default: Spec-Bench")
    parser.add_argument("--tokenizer", type=Path, metavar="DIR", help="default: LLaMA's")
    parser.add_argument("--turns", type=int, help="how many; default: all that fit the context")
    parser.add_argument("--max-new-tokens", type=int, default=128, help="of each turn")
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args(argv)
    for name in ("turns", "max_new_tokens", "context", "threads"):
        value = getattr(args, name)
        if value is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')} must be >= 1, got {value}")
    threads = args.threads or default_threads()
    try:
        source, tokenizer, turns = recorded(
            args.transcripts, args.tokenizer, args.turns, args.context
        )
    except CascadeError as error:
        raise SystemExit(f"bench.replay_level: {error}") from error
    dtype = DTYPE_NAMES[args.dtype]
    replayed = Replayed(args.shape, dtype, tokenizer, threads, args.context)
    report = {
        "machine": machine_facts(threads),
        "label": LABEL,
        "shape": args.shape,
        "dtype": dtype,
        "transcripts": source,
        "turns": len(turns),
        "weight_bytes": replayed.engine.report.weight_bytes,
        "policies": measure(replayed, turns, args.max_new_tokens),
    }
    show(report)
    write_json(args.json, report)


if __name__ == "__main__":
    main()
