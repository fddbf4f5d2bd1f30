"""Skeleton-of-Thought: how much sooner answers are there, and how good they are.

    python -m bench.sot --json FILE --picture FILE.png           # the embedded models
    python -m bench.sot --target DIR --questions vicuna --json FILE
    python -m bench.sot --endpoint URL --model NAME --questions wizardlm
        --judge-endpoint URL --judge-model NAME

Ordinary decoding, Skeleton-of-Thought (SoT) and SoT with a router (SoT-R). On a local target every
way of expanding points is timed with the cascade and without, interleaved question by question;
the ordinary answer has as many tokens as the one by points. Throughput and latency are measured
over 1 to 16 questions at a time, and what it costs to let the load decide. Times are CUDA events
where a GPU decodes, else wall clock.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from bench.measure import machine_facts, write_json
from bench.sot_answers import Remote, compare_answers, load_questions, router_table
from bench.sot_timing import (
    Local,
    measure_latency,
    measure_points,
    measure_throughput,
    measure_trigger,
)
from cascade_engine.ops.cpu import default_threads
from cascade_engine.sot import Prices
from cascade_engine.sot.judge import GENERAL


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
    if "trigger" in report:
        found = report["trigger"]
        otherwise = found["times_as_fast_otherwise"]
        rest = "" if otherwise is None else f", the others {otherwise['median']:.3f}x"
        print(
            f"left to the load: {found['by_points']} of {found['questions']} questions by points"
            f"{rest} as fast as ordinary decoding"
        )
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
        report["trigger"] = measure_trigger(local, questions)
        report["throughput"] = measure_throughput(
            local, questions, [int(count) for count in args.concurrent.split(",")]
        )
    answers = (local or Remote(args)).answers([q.text for q in questions])
    report["answers"] = compare_answers(args, questions, answers)
    report["router"] = router_table()
    show(report)
    write_json(args.json, report)
    if args.picture:
        draw(args.picture, report)
    return report


if __name__ == "__main__":
    main()
