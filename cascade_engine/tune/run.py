"""One task: record, measure, search, verify, write."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cascade_engine.engine import Engine
from cascade_engine.errors import CapacityError
from cascade_engine.policy import AutoCascade, FixedCascade, PlainDecoding, Policy
from cascade_engine.policy.file import write_policy
from cascade_engine.tune.costs import Measured
from cascade_engine.tune.report import described, figures, plot, show_frontier, show_verified
from cascade_engine.tune.search import PLAIN, Candidate, Found, search
from cascade_engine.tune.simulate import Outcome, Simulator, Task

SLEEP = 0.005
"""Seconds between runs, in which the machine settles."""
PROBE_ROUNDS = 3


@dataclass(frozen=True)
class Options:
    trials: int = 400
    verify: int = 3
    """Best settings that are run for real, beside plain decoding, the default and the automatic
    policy."""
    rounds: int = 5
    seed: int = 0
    lenience: bool = True
    max_new_tokens: int = 200


def tune(
    engine: Engine,
    prompts: Sequence[list[int]],
    out: Path,
    source: dict[str, Any],
    options: Options,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Writes `out`.policy.json, `out`.png and `out`.report.json; returns the report. `engine` has
    the target and all drafts, and no cache of prefixes."""
    names = [level.name for level in engine.neural]
    levels = len(names)
    prompts = _fitting(engine, prompts, options.max_new_tokens)
    say(f"{source['prompts']}: the target answers {len(prompts)} prompts")
    task = Task(engine, prompts, options.max_new_tokens)
    measured = measure(task, levels)
    simulator = Simulator(task, measured)
    begin = time.perf_counter()
    found = search(simulator, levels - 1, options.trials, options.seed, options.lenience)
    spent = time.perf_counter() - begin
    say(f"{len(found)} settings in {spent:.0f} s, {simulator.passes} passes of drafts for them")
    plain = simulator.run(PlainDecoding())
    show_frontier(found, plain, names[1:])
    plot(found, plain, source["prompts"], _beside(out, "png"))
    fixed, verified = verify(task, found[: options.verify], simulator, options.rounds)
    show_verified(verified)
    best = max(range(len(fixed)), key=lambda i: verified[i]["measured"]["over_plain"])
    chosen = fixed[best]
    used = [names[0], *(names[draft] for draft in chosen.drafts)]
    report = {
        **source,
        "prompts_used": len(prompts),
        "rows": engine.neural[0].rows.tokens.shape[0],
        "settings": len(found),
        "search_seconds": spent,
        "verified": verified,
        "chosen": {"levels": used, "setting": described(chosen.policy, used[1:])},
    }
    write_policy(_beside(out, "policy.json"), chosen.policy, used, {**source, **verified[best]})
    _beside(out, "report.json").write_text(json.dumps(report, indent=2) + "\n")
    return report


def _beside(out: Path, ending: str) -> Path:
    return out.with_name(f"{out.name}.{ending}")


def _fitting(engine: Engine, prompts: Sequence[list[int]], new_tokens: int) -> list[list[int]]:
    """Each prompt once. Raises CapacityError for one that leaves no room for an answer."""
    context = engine.neural[0].context
    distinct = list(dict.fromkeys(map(tuple, prompts)))
    for prompt in distinct:
        if len(prompt) + new_tokens > context:
            raise CapacityError(
                f"a prompt of {len(prompt)} tokens and {new_tokens} new ones do not fit a context "
                f"of {context}: leave it out or lower --max-new-tokens"
            )
    return [list(prompt) for prompt in distinct]


def measure(task: Task, levels: int) -> Measured:
    """Times of passes of all levels, over few and many tokens, chains and trees."""
    measured = Measured(task.engine.level_set)
    for i in range(PROBE_ROUNDS):
        for policy in probes(levels):
            time.sleep(SLEEP)
            task.run(policy)
        if i == 0:  # the first round warms up
            task.engine.listeners.append(measured)
    task.engine.listeners.remove(measured)
    return measured


def probes(levels: int) -> list[Policy]:
    """Settings that between them make passes of all sizes; `levels` are neural ones, the target
    included."""

    def one_draft(draft: int, first: int, copied: int) -> FixedCascade:
        matrix = [[0] * levels for _ in range(levels)]
        matrix[0][draft - 1] = first
        matrix[draft][-1] = matrix[-1][-1] = copied
        return FixedCascade(matrix, tree=0)

    def alone(copied: int, tree: int) -> FixedCascade:
        matrix = [[0] * levels for _ in range(levels)]
        matrix[0][-1] = matrix[-1][-1] = copied
        return FixedCascade(matrix, tree=tree)

    found: list[Policy] = [PlainDecoding()]
    found += [alone(copied, 0) for copied in (2, 5, 10, 16)]
    found += [alone(0, nodes) for nodes in (8, 16, 32, 64)]
    for draft in range(1, levels):
        found += [one_draft(draft, *sizes) for sizes in ((3, 0), (8, 0), (6, 4), (12, 8), (16, 14))]
    return found


def verify(
    task: Task, best: Sequence[Found], simulator: Simulator, rounds: int
) -> tuple[list[Candidate], list[dict[str, Any]]]:
    """Really runs settings in turn, `rounds` times: the best ones, the default and plain decoding,
    and the automatic policy. Returns the fixed ones, and predicted and measured figures of all, the
    automatic policy's last. Ratios are medians over rounds."""
    names = [level.name for level in task.engine.neural]
    levels = len(names)
    default = Candidate(tuple(range(1, levels)), FixedCascade.default(levels))
    candidates = [*(found.candidate for found in best), default, PLAIN]
    policies: list[Policy] = [candidate.over(levels) for candidate in candidates]
    policies.append(AutoCascade(cache=None))
    outcomes: list[list[Outcome]] = [[] for _ in policies]
    for _ in range(rounds):
        for found, policy in zip(outcomes, policies, strict=True):
            time.sleep(SLEEP)
            found.append(task.run(policy))
    plain, expected_plain = outcomes[len(candidates) - 1], simulator.run(PLAIN.over(levels))
    rows: list[dict[str, Any]] = []
    for i, found in enumerate(outcomes):
        row: dict[str, Any] = {"name": "automatic", "predicted": None}
        if i < len(candidates):
            used = [names[draft] for draft in candidates[i].drafts]
            row["name"] = described(candidates[i].policy, used)
            row["predicted"] = figures([simulator.run(policies[i])], [expected_plain])
        rows.append({**row, "measured": figures(found, plain)})
    rows[len(best)]["name"] += " (default)"
    rows[len(best) + 1]["name"] = "plain decoding"
    return candidates, rows
