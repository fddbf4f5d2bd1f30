"""How long Skeleton-of-Thought and ordinary decoding take on a local target."""

from __future__ import annotations

import argparse
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from bench.measure import quantiles
from bench.sot_answers import Answers, Question
from cascade_engine import Engine, FixedCascade, PlainDecoding, SamplingParams
from cascade_engine.demo.family import llama_family
from cascade_engine.policy import Policy
from cascade_engine.sot import Decision, SkeletonOfThought, SotOptions, SotResult

MODES = ("fork", "ragged", "left-padded")


class Stopwatch:
    """Seconds of a call: CUDA events where the engine decodes on a GPU, else the wall clock."""

    def __init__(self, cuda: bool) -> None:
        self._cuda = cuda

    def __call__(self, call: Callable[[], Any]) -> tuple[float, Any]:
        if not self._cuda:
            begin = time.perf_counter()
            result = call()
            return time.perf_counter() - begin, result
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        result = call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3, result


class Local:
    """A target with its cascade, and the ways to answer with it."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.embedded = args.target is None
        matrix = None
        if self.embedded:
            family = llama_family()
            target, drafts, table_ = family.target, family.drafts, family.table
            matrix = family.k_matrix
        else:
            target, drafts, table_ = args.target, args.draft, args.table
        self.engine = Engine.load(
            target, drafts, table_, device=args.device, threads=args.threads, max_rows=64
        )
        if args.k_matrix:
            self.cascade: Policy = FixedCascade.parse(args.k_matrix)
        else:
            levels = len(drafts) + 1
            self.cascade = FixedCascade(matrix or FixedCascade.default(levels).k_matrix)
        prompts = args.prompts or ("embedded" if self.embedded else "default")
        self.options = SotOptions(
            prompts=prompts,
            chat_format=args.chat_format,
            params=SamplingParams(max_tokens=args.max_tokens),
        )
        self.stopwatch = Stopwatch(args.device == "cuda")
        self.sot = {mode: self._sot(replace(self.options, expand=mode)) for mode in MODES}
        self.off = self._sot(replace(self.options, use="off"))
        self.routed = self._sot(replace(self.options, use="auto"))
        self.routed.room = lambda: Decision(True, "alone")  # type: ignore[method-assign]

    def _sot(self, options: SotOptions) -> SkeletonOfThought:
        return SkeletonOfThought(self.engine, options)

    def run(self, policy: Policy, call: Callable[[], Any]) -> tuple[float, Any]:
        self.engine.set_policy(policy)
        self.engine.clear_cache()
        return self.stopwatch(call)

    def ordinary(self, question: str, tokens: int) -> Callable[[], Any]:
        """An ordinary answer of exactly so many tokens."""
        params = SamplingParams(max_tokens=tokens, ignore_eos=True)
        sot = SkeletonOfThought(self.engine, replace(self.off.options, params=params))
        return lambda: sot.answer(question)

    def answers(self, questions: Sequence[str]) -> Answers:
        """One question after the other, so that times do not mix."""
        ways = {"normal": self.off, "sot": self.sot["fork"], "sot-r": self.routed}
        found: Answers = {name: [] for name in ways}
        for text in questions:
            for name, sot in ways.items():
                seconds, result = self.run(self.cascade, lambda s=sot, t=text: s.answer(t))
                result.seconds = seconds
                found[name].append(result)
        return found


def measure_points(local: Local, questions: Sequence[Question]) -> dict[str, Any]:
    """How many questions give three points or more, all of them written to their ends."""
    local.engine.set_policy(local.cascade)
    results = local.sot["fork"].answer_all([q.text for q in questions])
    good = [len(r.points) >= 3 and r.used_sot and not r.failures for r in results]
    points = [len(r.points) for r in results]
    return {
        "questions": len(results),
        "at_least_3_points": statistics.fmean(good),
        "points": quantiles(points),
    }


def measure_latency(local: Local, questions: Sequence[Question], rounds: int) -> dict[str, Any]:
    """Each way of expanding against ordinary decoding of an answer of the same length."""
    times: dict[str, list[float]] = defaultdict(list)
    prefill: dict[str, int] = defaultdict(int)
    same = True
    for question in questions:
        _, first = local.run(local.cascade, lambda q=question: local.sot["fork"].answer(q.text))
        if not first.used_sot:
            continue
        tokens = len(local.engine.tokenizer.encode(first.text, add_bos=False, add_eos=False))
        ordinary = local.ordinary(question.text, tokens)
        cases: dict[str, tuple[Policy, Callable[[], Any]]] = {
            "ordinary, cascade": (local.cascade, ordinary),
            "ordinary, plain": (PlainDecoding(), ordinary),
        }
        for mode in MODES:
            answer = lambda q=question, m=mode: local.sot[m].answer(q.text)  # noqa: E731
            cases[f"{mode}, cascade"] = (local.cascade, answer)
            cases[f"{mode}, plain"] = (PlainDecoding(), answer)
        samples: dict[str, list[float]] = defaultdict(list)
        for turn in range(rounds + 1):
            for name, (policy, call) in cases.items():
                seconds, result = local.run(policy, call)
                if turn == 0:
                    same = same and (name.startswith("ordinary") or result.text == first.text)
                    if name.endswith("cascade") and not name.startswith("ordinary"):
                        prefill[name.split(",")[0]] += result.stages[-1].prefill_tokens
                else:
                    samples[name].append(seconds)
        for name, values in samples.items():
            times[name].append(statistics.median(values))
    base = times["ordinary, cascade"]
    return {
        "questions": len(base),
        "same_text": same,
        "seconds": {name: quantiles(values) for name, values in times.items()},
        "times_faster_than_cascaded_ordinary": {
            name: quantiles([b / v for b, v in zip(base, values, strict=True)])
            for name, values in times.items()
        },
        "times_faster_than_plain_ordinary": {
            name: quantiles([b / v for b, v in zip(times["ordinary, plain"], values, strict=True)])
            for name, values in times.items()
        },
        "prefill_tokens": dict(prefill),
        "fork_over_left_padded_prefill": prefill["fork"] / max(1, prefill["left-padded"]),
    }


def measure_throughput(
    local: Local, questions: Sequence[Question], counts: Sequence[int]
) -> dict[str, Any]:
    """Questions at a time: answers and tokens a second, and when an answer is there."""
    report = {}
    for count in counts:
        batch = [questions[i % len(questions)].text for i in range(count)]
        entry = {}
        for name, sot in (("ordinary", local.off), ("sot", local.sot["fork"])):
            found = [local.run(local.cascade, lambda s=sot, b=batch: s.answer_all(b))
                     for _ in range(4)][1:]  # fmt: skip
            seconds = statistics.median(took for took, _ in found)
            results: list[SotResult] = found[0][1]
            tokens = sum(e.text.count(" ") + 1 for r in results for e in r.expansions)
            entry[name] = {
                "seconds": seconds,
                "answers_per_second": count / seconds,
                "words_per_second": tokens / seconds,
                "latency": quantiles([r.seconds for r in results]),
            }
        report[str(count)] = entry
        print(
            f"{count:3d} at a time: ordinary {entry['ordinary']['answers_per_second']:.1f}, "
            f"sot {entry['sot']['answers_per_second']:.1f} answers/s; latency "
            f"{entry['ordinary']['latency']['median'] * 1e3:.0f} and "
            f"{entry['sot']['latency']['median'] * 1e3:.0f} ms",
            flush=True,
        )
    return report


class EveryQuestion:
    """A router that sends every question on to the trigger."""

    threshold = 0.0

    def score(self, question: str) -> float:
        return 1.0


def measure_trigger(local: Local, questions: Sequence[Question]) -> dict[str, Any]:
    """What it costs to let the engine's load decide, question after question, from nothing known:
    `auto` against ordinary decoding, each question by both, in turns."""
    sot = SkeletonOfThought(local.engine, replace(local.options, use="auto"), EveryQuestion())
    ratios: dict[str, list[float]] = {"points": [], "ordinary": []}
    way = []
    for i, question in enumerate(questions):
        cases = {"ordinary": local.off, "auto": sot}
        found = {
            name: local.run(local.cascade, lambda s=cases[name]: s.answer(question.text))  # noqa: B023
            for name in sorted(cases, reverse=i % 2 == 0)
        }
        (seconds, result), (ordinary, _) = found["auto"], found["ordinary"]
        way.append("points" if result.used_sot else "ordinary")
        ratios[way[-1]].append(ordinary / seconds)
    return {
        "questions": len(questions),
        "first_ordinary": way.index("ordinary") if "ordinary" in way else None,
        "by_points": len(ratios["points"]),
        "times_as_fast_by_points": quantiles(ratios["points"]) if ratios["points"] else None,
        "times_as_fast_otherwise": quantiles(ratios["ordinary"]) if ratios["ordinary"] else None,
    }
