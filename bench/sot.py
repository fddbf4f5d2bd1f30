"""Skeleton-of-Thought: how much sooner answers are there, and how good they are.

    python -m bench.sot --json FILE --picture FILE.png           # the embedded models
    python -m bench.sot --target DIR --questions vicuna --json FILE
    python -m bench.sot --endpoint URL --model NAME --questions wizardlm
        --judge-endpoint URL --judge-model NAME

Ordinary decoding, Skeleton-of-Thought (SoT) and SoT with a router (SoT-R). On a local target every
way of expanding points is timed with the cascade and without, interleaved question by question;
the ordinary answer has as many tokens as the one by points. Throughput and latency are measured
over 1 to 16 questions at a time. Times are CUDA events where a GPU decodes, else wall clock.
"""

from __future__ import annotations

import argparse
import csv
import os
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from bench.measure import machine_facts, quantiles, write_json
from cascade_engine import Engine, FixedCascade, PlainDecoding, SamplingParams
from cascade_engine.demo.corpus import distinct_documents
from cascade_engine.demo.family import llama_family
from cascade_engine.ops.cpu import default_threads
from cascade_engine.policy import Policy
from cascade_engine.sot import (
    Decision,
    Prices,
    SkeletonOfThought,
    SotOptions,
    SotResult,
    TrainedRouter,
)
from cascade_engine.sot.endpoint import Endpoint, EndpointOptions, EndpointSkeletonOfThought
from cascade_engine.sot.judge import ASPECTS, GENERAL, Judge, Pair, net_win_rate
from cascade_engine.sot.train_router import Labelled, evaluate

MODES = ("fork", "ragged", "left-padded")
DATA = Path(os.environ.get("CASCADE_DATA", Path(__file__).parent.parent.parent / "shared" / "data"))
# Vicuna-80 in its order: category, questions.
VICUNA = (
    ("generic", 10), ("knowledge", 10), ("roleplay", 10), ("common-sense", 10), ("fermi", 10),
    ("counterfactual", 10), ("coding", 7), ("math", 3), ("writing", 10),
)  # fmt: skip


@dataclass(frozen=True)
class Question:
    text: str
    category: str


def load_questions(name: str, limit: int | None) -> list[Question]:
    """ "advice" (held-out questions of the embedded models), "vicuna", "wizardlm" (its categories
    are whether a person found that SoT suits), or a file with a question a line."""
    if name == "advice":
        documents = distinct_documents("test", "advice", limit or 100)
        return [
            Question(d.identity.removeprefix("advice:"), f"{d.points} points") for d in documents
        ]
    if name in ("vicuna", "wizardlm"):
        with (DATA / "sot" / f"{name}_router.csv").open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file, delimiter=";"))
        if name == "vicuna":
            kinds = [kind for kind, count in VICUNA for _ in range(count)]
        else:
            kinds = ["suits" if row["label"] == "1" else "does not suit" for row in rows]
        found = [Question(r["request"], kind) for r, kind in zip(rows, kinds, strict=True)]
    else:
        lines = Path(name).read_text(encoding="utf-8").splitlines()
        found = [Question(line, "all") for line in lines if line.strip()]
    if limit is None or limit >= len(found):
        return found
    return [found[i * len(found) // limit] for i in range(limit)]


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


def router_table() -> dict[str, Any]:
    router = TrainedRouter()
    found = {}
    for name in ("vicuna", "wizardlm"):
        path = DATA / "sot" / f"{name}_router.csv"
        if path.is_file():
            found[name] = evaluate(router, Labelled.read(path))
    return found


class Remote:
    """An endpoint, and the ways to answer with it."""

    def __init__(self, args: argparse.Namespace) -> None:
        endpoint = endpoint_options(args.endpoint, args.model, args)
        options = SotOptions(
            prompts=args.prompts or "default",
            params=SamplingParams(max_tokens=args.max_tokens),
            points_per_request=args.points_per_request,
        )
        self.sot = EndpointSkeletonOfThought(endpoint, options)
        self.off = EndpointSkeletonOfThought(endpoint, replace(options, use="off"))
        self.routed = EndpointSkeletonOfThought(endpoint, replace(options, use="auto"))


def endpoint_options(url: str, model: str | None, args: argparse.Namespace) -> EndpointOptions:
    key = os.environ.get(args.api_key_env) or "none"
    return EndpointOptions(
        url=url, model=model or "default", api_key=key, concurrency=args.concurrency
    )


Answers = dict[str, list[SotResult]]


def answer_questions(args: argparse.Namespace, local: Local | None, texts: list[str]) -> Answers:
    """By way of answering ("normal", "sot", "sot-r"): results, one question after the other so
    that times do not mix."""
    if local is None:
        remote = Remote(args)
        ways: dict[str, Any] = {"normal": remote.off, "sot": remote.sot, "sot-r": remote.routed}
        return {name: [way.answer(text) for text in texts] for name, way in ways.items()}
    found: Answers = {"normal": [], "sot": [], "sot-r": []}
    for text in texts:
        for name, sot in (
            ("normal", local.off), ("sot", local.sot["fork"]), ("sot-r", local.routed)
        ):  # fmt: skip
            seconds, result = local.run(local.cascade, lambda s=sot, t=text: s.answer(t))
            result.seconds = seconds
            found[name].append(result)
    return found


def compare_answers(
    args: argparse.Namespace, questions: Sequence[Question], answers: Answers
) -> dict[str, Any]:
    """Speed-up and, with a judge, net win rate over normal answers, by category."""
    verdicts: dict[tuple[str, str], list[Any]] = {}
    if args.judge_endpoint:
        judge = Judge(Endpoint(endpoint_options(args.judge_endpoint, args.judge_model, args)))
        for way in ("sot", "sot-r"):
            pairs = [
                Pair(q.text, a.text, b.text)
                for q, a, b in zip(questions, answers[way], answers["normal"], strict=True)
            ]
            for aspect in (GENERAL, *(ASPECTS if args.aspects else ())):
                verdicts[way, aspect] = judge.compare(pairs, aspect)
    report: dict[str, Any] = {}
    groups = ["all", *dict.fromkeys(q.category for q in questions)]
    for group in groups:
        chosen = [i for i, q in enumerate(questions) if group in ("all", q.category)]
        report[group] = {"questions": len(chosen)}
        for way in ("sot", "sot-r"):
            report[group][way] = _compared(answers, way, chosen, verdicts, args.prices)
    return report


def _compared(
    answers: Answers,
    way: str,
    chosen: list[int],
    verdicts: dict[tuple[str, str], list[Any]],
    prices: Prices | None,
) -> dict[str, Any]:
    pairs = [(answers["normal"][i], answers[way][i]) for i in chosen]
    good = [(a, b) for a, b in pairs if not a.failures and not b.failures]
    entry: dict[str, Any] = {
        "speed_up": quantiles([a.seconds / b.seconds for a, b in good]) if good else None,
        "used_sot": statistics.fmean(b.used_sot for _, b in pairs),
        "failed": len(pairs) - len(good),
    }
    for name in ("prompt_tokens", "new_tokens"):
        sums = [[r.total(name) for r in column] for column in zip(*good, strict=True)]
        if good and all(None not in column for column in sums):
            entry[name] = {"normal": sum(sums[0]), way: sum(sums[1])}  # type: ignore[arg-type]
    if prices is not None and good:
        costs = [[r.cost(prices) for r in column] for column in zip(*good, strict=True)]
        if all(None not in column for column in costs):
            entry["cost"] = {"normal": sum(costs[0]), way: sum(costs[1])}  # type: ignore[arg-type]
    for (judged_way, aspect), judgements in verdicts.items():
        if judged_way == way:
            entry.setdefault("judge", {})[aspect] = net_win_rate([judgements[i] for i in chosen])
    return entry


def draw(path: str, report: dict[str, Any]) -> None:
    """Speed by way of expanding, and answers a second over questions at a time."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = [name for name in ("latency", "throughput", "answers") if name in report]
    figure, axes = pyplot.subplots(1, len(panels), figsize=(5.5 * len(panels), 4), squeeze=False)
    for axis, panel in zip(axes[0], panels, strict=True):
        if panel == "latency":
            ratios = report["latency"]["times_faster_than_cascaded_ordinary"]
            names = list(ratios)
            axis.barh(names, [ratios[name]["median"] for name in names])
            axis.axvline(1.0, color="black", linewidth=0.8)
            axis.set_xlabel("times as fast as ordinary decoding with the cascade")
        elif panel == "throughput":
            counts = list(report["throughput"])
            for name in ("ordinary", "sot"):
                rates = [report["throughput"][c][name]["answers_per_second"] for c in counts]
                axis.plot([int(c) for c in counts], rates, marker="o", label=name)
            axis.set_xlabel("questions at a time")
            axis.set_ylabel("answers per second")
            axis.legend()
        else:
            groups = [g for g, entry in report["answers"].items() if entry["sot"]["speed_up"]]
            speeds = [report["answers"][g]["sot"]["speed_up"]["median"] for g in groups]
            axis.barh(groups, speeds)
            axis.set_xlabel("SoT: times as fast as a normal answer")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def show(report: dict[str, Any]) -> None:
    if "points" in report:
        print(f"at least 3 points: {report['points']['at_least_3_points']:.1%} of "
              f"{report['points']['questions']} questions")  # fmt: skip
    if "latency" in report:
        found = report["latency"]
        for name, seconds in found["seconds"].items():
            ratio = found["times_faster_than_cascaded_ordinary"][name]
            plain = found["times_faster_than_plain_ordinary"][name]
            print(
                f"{name:22s} {seconds['median'] * 1e3:8.1f} ms; {ratio['median']:.2f}x cascaded, "
                f"{plain['median']:.2f}x plain ordinary decoding"
            )
        share = found["fork_over_left_padded_prefill"]
        print(f"prefill of fork over left-padded: {share:.2f}; same text: {found['same_text']}")
    for name, entry in report.get("router", {}).items():
        print(
            f"router on {name}: accuracy {entry['accuracy']:.1%} (majority "
            f"{entry['majority']:.1%}), AUC {entry['auc']:.3f}, {entry['milliseconds']:.2f} ms"
        )
    for group, entry in report.get("answers", {}).items():
        parts = []
        for way in ("sot", "sot-r"):
            speed = entry[way]["speed_up"]
            text = f"{way} " + ("failed" if speed is None else f"{speed['median']:.2f}x")
            if "judge" in entry[way]:
                text += f" net wins {entry[way]['judge'][GENERAL]['net_win_rate']:+.0%}"
            parts.append(text)
        print(f"{group} ({entry['questions']}): {'; '.join(parts)}")


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--target", metavar="DIR", help="default: the embedded models")
    p.add_argument("--draft", metavar="DIR", action="append", default=[])
    p.add_argument("--table", metavar="FILE")
    p.add_argument("--k-matrix", metavar="K")
    p.add_argument("--chat-format", metavar="NAME")
    p.add_argument("--device", default="auto", help="cpu or cuda")
    p.add_argument("--threads", type=int)
    p.add_argument("--endpoint", metavar="URL")
    p.add_argument("--model", metavar="NAME")
    p.add_argument("--judge-endpoint", metavar="URL")
    p.add_argument("--judge-model", metavar="NAME")
    p.add_argument("--aspects", action="store_true", help="judge each aspect as well")
    p.add_argument("--api-key-env", default="OPENAI_API_KEY", metavar="NAME")
    p.add_argument("--concurrency", type=int, default=16)
    p.add_argument("--points-per-request", type=int, default=1)
    p.add_argument("--prompts", metavar="NAME")
    p.add_argument("--questions", default="advice", help="advice, vicuna, wizardlm, or a file")
    p.add_argument("--limit", type=int, help="of questions")
    p.add_argument("--points", type=int, help="time only answers of so many points")
    p.add_argument("--concurrent", default="1,2,4,8,16", help="questions at a time")
    p.add_argument("--max-tokens", type=int, default=512)
    p.add_argument("--prices", metavar="IN,OUT", help="of a million prompt and answer tokens")
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--json", metavar="FILE")
    p.add_argument("--picture", metavar="FILE", help="a PNG; needs matplotlib")
    return p


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    args = parser().parse_args(argv)
    if args.prices is not None:
        args.prices = Prices(*(float(part) for part in args.prices.split(",")))
    questions = load_questions(args.questions, args.limit)
    report: dict[str, Any] = {
        "machine": machine_facts(args.threads or default_threads()),
        "model": args.model if args.endpoint else (args.target or "embedded"),
        "questions": args.questions,
    }
    local = None if args.endpoint else Local(args)
    if local is not None:
        report["points"] = measure_points(local, questions)
        timed = questions
        if args.points is not None:
            timed = [q for q in questions if q.category == f"{args.points} points"]
        report["latency"] = measure_latency(local, timed, args.rounds)
        report["throughput"] = measure_throughput(
            local, questions, [int(count) for count in args.concurrent.split(",")]
        )
    answers = answer_questions(args, local, [q.text for q in questions])
    report["answers"] = compare_answers(args, questions, answers)
    report["router"] = router_table()
    show(report)
    write_json(args.json, report)
    if args.picture:
        draw(args.picture, report)
    return report


if __name__ == "__main__":
    main()
