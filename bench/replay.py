"""Tokens per target call of drafters without a network, on recorded answers: no model needed.

    python -m bench.replay --drafter tree:32 chain:10 [--warm] [--json FILE]
    python -m bench.replay --transcripts FILE --tokenizer DIR [--table FILE|none] --drafter tree:32

With greedy decoding the target's answer is known beforehand, so each call is replayed: the drafter
sees the prompt and the answer so far, its draft is compared with what the target said next, and the
agreeing tokens and one more are taken. Drafters: prompt-lookup, max-gram, max-gram+bigram, chain:K,
tree:N (options follow after commas, as in tree:64,depth=16,least=0.01). With --warm the statistical
drafters learn from each finished answer. The table is the tokenizer's prebuilt one unless named.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.drafters import Drafter, make_drafter
from bench.measure import machine_facts, write_json
from bench.questions import data_folder
from cascade_engine import tables
from cascade_engine.tokenizer import Tokenizer

VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the user's questions."
)


@dataclass(frozen=True)
class Turn:
    """One answer: the tokens before it, and its own with the end token."""

    category: str
    prompt: list[int]
    output: list[int]


@dataclass
class Tally:
    tokens: int = 0
    calls: int = 0
    drafted: int = 0
    seconds: float = 0.0
    by_category: dict[str, list[int]] = field(default_factory=lambda: defaultdict(lambda: [0, 0]))

    def add(self, category: str, tokens: int, calls: int) -> None:
        self.tokens += tokens
        self.calls += calls
        self.by_category[category][0] += tokens
        self.by_category[category][1] += calls

    def report(self) -> dict[str, Any]:
        calls = max(self.calls, 1)
        return {
            "tokens_per_target_call": self.tokens / calls,
            "by_category": {name: t / max(c, 1) for name, (t, c) in self.by_category.items()},
            "drafted_per_call": self.drafted / calls,
            "microseconds_per_call": self.seconds / calls * 1e6,
        }


def read_turns(path: Path, tokenizer: Tokenizer, style: str = "auto") -> list[Turn]:
    """All turns of a transcript file. style: "vicuna" or "llama2", "auto" by the file's name."""
    if style == "auto":
        style = "llama2" if "llama2" in path.name else "vicuna"
    turns = []
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        for prompt, output in _conversation(row, style):
            tokens = tokenizer.encode(" " + output, add_bos=False, add_eos=True)
            turns.append(Turn(str(row["category"]), tokenizer.encode(prompt, True, False), tokens))
    return turns


def _conversation(row: dict[str, Any], style: str) -> Iterator[tuple[str, str]]:
    """(context, answer) of each turn, in the model's chat format."""
    context = VICUNA_SYSTEM if style == "vicuna" else ""
    for prompt, output in zip(row["prompts"], row["outputs"], strict=True):
        if style == "vicuna":
            context += f" USER: {prompt} ASSISTANT:"
        else:
            context += f"{' ' if context else ''}[INST] {prompt} [/INST]"
        yield context, output.strip()
        context += f" {output.strip()}" + ("</s>" if style == "vicuna" else "")


def replay(turns: Sequence[Turn], drafter: Drafter) -> Tally:
    """Replays all turns; the last token of an answer is never drafted for (it ends the request)."""
    tally = Tally()
    for turn in turns:
        begin = time.thread_time()
        drafter.begin(turn.prompt)
        tally.seconds += time.thread_time() - begin
        done, calls = 0, 0
        while done < len(turn.output):
            begin = time.thread_time()
            tokens, parents = drafter.propose()
            tally.seconds += time.thread_time() - begin
            accepted = agreeing(tokens, parents, turn.output[done:-1])
            step = turn.output[done : done + accepted + 1]
            done += len(step)
            calls += 1
            tally.drafted += len(tokens)
            begin = time.thread_time()
            drafter.extend(step)
            tally.seconds += time.thread_time() - begin
        drafter.finish()
        tally.add(turn.category, len(turn.output), calls)
    return tally


def agreeing_path(tokens: Sequence[int], parents: Sequence[int], truth: Sequence[int]) -> list[int]:
    """Nodes of the drafted tree on the path that spells the beginning of `truth`."""
    path: list[int] = []
    tip = -1
    for token in truth:
        for node in range(tip + 1, len(tokens)):
            if parents[node] == tip and tokens[node] == token:
                tip = node
                path.append(node)
                break
        else:
            break
    return path


def agreeing(tokens: Sequence[int], parents: Sequence[int], truth: Sequence[int]) -> int:
    """How many drafted tokens a review keeps that goes by `truth`."""
    return len(agreeing_path(tokens, parents, truth))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.replay",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    data = data_folder()
    source = data / "transcripts" / "spec_bench_vicuna7b_dev.jsonl"
    parser.add_argument("--transcripts", default=source, type=Path, metavar="FILE")
    parser.add_argument("--tokenizer", default=data / "tokenizers" / "llama", type=Path)
    parser.add_argument("--drafter", nargs="+", action="extend", required=True, metavar="NAME")
    parser.add_argument("--table", metavar="FILE", help="or none; default: the prebuilt one")
    parser.add_argument("--warm", action="store_true", help="learn from finished answers")
    parser.add_argument("--format", choices=("auto", "vicuna", "llama2"), default="auto")
    parser.add_argument("--part", metavar="I/N", help="only turns I, I + N, I + 2N ... (from 0)")
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args(arguments)
    if not args.transcripts.exists():
        parser.error(f"{args.transcripts} is not there: give --transcripts, or set CASCADE_DATA")
    tokenizer = Tokenizer.load(args.tokenizer)
    if tokenizer is None:
        parser.error(f"{args.tokenizer} has no tokenizer.model and no tokenizer.json")
    path = tables.prebuilt_for(tokenizer) if args.table is None else args.table
    table = None
    if path is not None and str(path) != "none":
        table = tables.load_table(path, tokenizer, tokenizer.vocab_size)
    turns = read_turns(args.transcripts, tokenizer, args.format)
    if args.part:
        first, step = map(int, args.part.split("/"))
        turns = turns[first::step]
    report: dict[str, Any] = {"drafters": {}}
    for name in args.drafter:
        drafter = make_drafter(name, table, max(len(t.prompt) + len(t.output) for t in turns))
        drafter.learns = args.warm
        found = replay(turns, drafter).report()
        report["drafters"][name] = found
        print(
            f"{name:24} {found['tokens_per_target_call']:.3f} tokens per target call, "
            f"{found['drafted_per_call']:.1f} drafted, {found['microseconds_per_call']:.1f} us",
            flush=True,
        )
    report.update(
        transcripts=args.transcripts.name,
        turns=len(turns),
        warm=args.warm,
        table="none" if table is None else Path(path).name,
        machine=machine_facts(1),
    )
    write_json(args.json, report)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
