"""Questions, their answers in several ways, and what those are worth beside each other."""

from __future__ import annotations

import argparse
import csv
import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench.measure import quantiles
from bench.questions import data_folder
from cascade_engine import SamplingParams
from cascade_engine.demo.corpus import distinct_documents
from cascade_engine.sot import Prices, SotOptions, SotResult, TrainedRouter
from cascade_engine.sot.endpoint import Endpoint, EndpointOptions, EndpointSkeletonOfThought
from cascade_engine.sot.judge import ASPECTS, GENERAL, Judge, Pair, net_win_rate
from cascade_engine.sot.train_router import Labelled, evaluate

# Vicuna-80 in its order: category, questions.
VICUNA = (
    ("generic", 10), ("knowledge", 10), ("roleplay", 10), ("common-sense", 10), ("fermi", 10),
    ("counterfactual", 10), ("coding", 7), ("math", 3), ("writing", 10),
)  # fmt: skip


Answers = dict[str, list[SotResult]]
"""Results by way of answering: "normal", "sot" and "sot-r"."""


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
        with (data_folder() / "sot" / f"{name}_router.csv").open(
            encoding="utf-8", newline=""
        ) as file:
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


def router_table() -> dict[str, Any]:
    router = TrainedRouter()
    found = {}
    for name in ("vicuna", "wizardlm"):
        path = data_folder() / "sot" / f"{name}_router.csv"
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

    def answers(self, questions: Sequence[str]) -> Answers:
        """One question after the other, so that times do not mix."""
        ways = {"normal": self.off, "sot": self.sot, "sot-r": self.routed}
        return {name: [way.answer(text) for text in questions] for name, way in ways.items()}


def endpoint_options(url: str, model: str | None, args: argparse.Namespace) -> EndpointOptions:
    key = os.environ.get(args.api_key_env) or "none"
    return EndpointOptions(
        url=url, model=model or "default", api_key=key, concurrency=args.concurrency
    )


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
