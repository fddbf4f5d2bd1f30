"""`python -m cascade_engine.demo.evaluate --json FILE`: what the embedded models can do, and what
each cascade setting saves on the test split."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cascade_engine.demo.corpus import Document, distinct_documents
from cascade_engine.demo.family import Family, llama_family
from cascade_engine.demo.scoring import is_correct, parsed_points
from cascade_engine.engine import Engine, Generation
from cascade_engine.params import SamplingParams
from cascade_engine.policy import FixedCascade, PlainDecoding, Policy

TASKS = ("arithmetic", "fact", "advice", "skeleton", "expansion")
MAX_TOKENS = 400


@dataclass(frozen=True)
class Setting:
    """A cascade to try: which of the family's drafts, with the table or not, and its matrix."""

    name: str
    drafts: tuple[Path, ...]
    table: Path | None
    k_matrix: tuple[tuple[int, ...], ...] | None
    """None: plain decoding."""

    def policy(self) -> Policy:
        return PlainDecoding() if self.k_matrix is None else FixedCascade(self.k_matrix)


def settings(family: Family) -> list[Setting]:
    """Plain decoding first, the family's own setting last."""
    folder = family.target.parent
    small, middle = (folder / "llama-small",), (folder / "llama-middle",)
    both = (*middle, *small)
    table = family.table
    return [
        Setting("plain", (), None, None),
        Setting("max-gram", (), None, ((10,),)),
        Setting("max-gram + table", (), table, ((10,),)),
        Setting("small draft", small, None, ((5, 0), (0, 0))),
        Setting("small draft, vertical", small, table, ((6, 0), (0, 8))),
        Setting("small draft, vertical + horizontal", small, table, ((5, 8), (0, 8))),
        Setting("middle draft, vertical", middle, table, ((8, 0), (0, 8))),
        Setting("both drafts, full cascade", both, table, ((6, 4, 4), (0, 3, 0), (0, 0, 8))),
        Setting("default", family.drafts, table, family.k_matrix),
    ]


def task_scores(
    documents: Sequence[Document], results: Sequence[Generation]
) -> dict[str, dict[str, float]]:
    """By task: the share of correct answers, of answers that stopped by themselves, and for lists
    the share that parses into 3 to 8 points."""
    scores = {}
    for task in TASKS:
        mine = [(d, r) for d, r in zip(documents, results, strict=True) if d.task == task]
        score = {
            "count": float(len(mine)),
            "correct": statistics.fmean(is_correct(d, r.text) for d, r in mine),
            "stopped": statistics.fmean(r.finish_reason == "stop" for _, r in mine),
        }
        if task in ("advice", "skeleton"):
            parsed = [3 <= len(parsed_points(d, r.text)) <= 8 for d, r in mine]
            score["parsed"] = statistics.fmean(parsed)
        scores[task] = score
    return scores


@dataclass
class Run:
    """One setting over all questions."""

    setting: Setting
    engine: Engine
    results: list[Generation]
    seconds: list[float]

    def figures(self, plain: Run) -> dict[str, Any]:
        """JSON-ready; times relative to `plain`, which answered the same questions in turn."""
        tokens = sum(len(r.token_ids) for r in self.results)
        pairs = list(zip(self.results, plain.results, strict=True))
        ratios = [a / b for a, b in zip(plain.seconds, self.seconds, strict=True)]
        return {
            "k_matrix": self.setting.k_matrix,
            "drafts": [path.name for path in self.setting.drafts],
            "tokens_per_target_call": tokens / sum(r.stats.target_calls for r in self.results),
            "tokens_per_second": tokens / sum(self.seconds),
            "times_plain": sum(plain.seconds) / sum(self.seconds),
            "times_plain_median_of_questions": statistics.median(ratios),
            "identical": sum((a.token_ids, a.text) == (b.token_ids, b.text) for a, b in pairs),
        }


def evaluate(per_task: int, threads: int | None) -> dict[str, Any]:
    """All figures as JSON-ready values. The settings answer each question in turn, one request at
    a time as a user at a terminal would ask, so that a busy moment of the machine hits all."""
    family = llama_family()
    documents = [d for task in TASKS for d in distinct_documents("test", task, per_task)]  # type: ignore[arg-type]
    options: dict[str, Any] = {"threads": threads, "max_rows": 1, "reuse_cache": False}
    runs = []
    for setting in settings(family):
        engine = Engine.load(
            family.target, setting.drafts, setting.table, policy=setting.policy(), **options
        )
        runs.append(Run(setting, engine, [], []))
    params = SamplingParams(max_tokens=MAX_TOKENS)
    for i, document in enumerate(documents):
        for run in runs:
            if i == 0:
                run.engine.generate(document.prompt, params)
            begin = time.perf_counter()
            run.results += run.engine.generate(document.prompt, params)
            run.seconds.append(time.perf_counter() - begin)
    found = {run.setting.name: run.figures(runs[0]) for run in runs}
    scores = task_scores(documents, runs[0].results)
    return {"questions": len(documents), "settings": found, "scores": scores}


def show(report: dict[str, Any]) -> None:
    for name, found in report["settings"].items():
        print(
            f"{name:36s} {found['tokens_per_target_call']:6.2f} tokens per target pass  "
            f"{found['tokens_per_second']:8.0f} tokens/s  {found['times_plain']:5.2f}x plain  "
            f"identical {found['identical']}/{report['questions']}"
        )
    for task, score in report["scores"].items():
        print(f"{task:12s} " + "  ".join(f"{key} {value:.3f}" for key, value in score.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description="evaluate the embedded models on the test split")
    parser.add_argument("--json", metavar="FILE", help="write all figures")
    parser.add_argument("--per-task", type=int, default=64, help="questions of each task")
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    report = evaluate(args.per_task, args.threads)
    show(report)
    if args.json:
        Path(args.json).write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
