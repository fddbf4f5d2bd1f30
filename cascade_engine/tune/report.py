"""What a search found, for people: a table, and a plot of the frontier."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cascade_engine.errors import RequestError
from cascade_engine.policy import FixedCascade
from cascade_engine.tune.search import Found, frontier
from cascade_engine.tune.simulate import Outcome

SHOWN = 8


def described(policy: FixedCascade, names: Sequence[str]) -> str:
    """A setting in a line; `names` of the drafts it uses."""
    matrix = ";".join(",".join(map(str, row)) for row in policy.k_matrix)
    parts = [f"{'+'.join(names) or 'no draft'} K {matrix}"]
    if policy.lenience > 1.0 and names:
        parts.append(f"lenience {policy.lenience:g}")
    if any(policy.tree):
        parts.append(f"tree {policy.tree[0]}")
    if policy.siblings:
        parts.append(f"siblings {policy.siblings}")
    if policy.min_confidence:
        parts.append(f"min confidence {policy.min_confidence:g}")
    return ", ".join(parts)


def figures(outcomes: Sequence[Outcome], plain: Sequence[Outcome]) -> dict[str, float]:
    """JSON-ready; of runs in turn, medians of what they and plain decoding beside them took."""
    pairs = zip(outcomes, plain, strict=True)
    return {
        "tokens_per_second": statistics.median(o.tokens_per_second for o in outcomes),
        "tokens_per_target_call": outcomes[-1].tokens_per_call,
        "over_plain": statistics.median(p.seconds / o.seconds for o, p in pairs),
    }


def show_frontier(found: Sequence[Found], plain: Outcome, names: Sequence[str]) -> None:
    """`plain` is the simulated one; `names` of all drafts."""
    print(f"{len(found)} settings simulated; the frontier:")
    print(f"  {'x plain':>8s} {'tokens/call':>12s}  setting")
    for each in frontier(found)[:SHOWN]:
        outcome = each.outcome
        ratio = outcome.tokens_per_second / plain.tokens_per_second
        used = [names[draft - 1] for draft in each.candidate.drafts]
        line = described(each.candidate.policy, used)
        print(f"  {ratio:8.2f} {outcome.tokens_per_call:12.2f}  {line}")


def show_verified(rows: Sequence[dict[str, Any]]) -> None:
    """`rows`: name, predicted (None for what is not simulated) and measured figures."""
    print(f"run for real:\n  {'x plain':>8s} {'predicted':>10s} {'tokens/call':>12s}  setting")
    for row in rows:
        predicted, measured = row["predicted"], row["measured"]
        ratio = "-" if predicted is None else f"{predicted['over_plain']:.2f}"
        print(
            f"  {measured['over_plain']:8.2f} {ratio:>10s} "
            f"{measured['tokens_per_target_call']:12.2f}  {row['name']}"
        )


def plot(found: Sequence[Found], plain: Outcome, title: str, path: Path) -> None:
    """All settings, and the frontier, as a picture."""
    pyplot = require_pyplot()
    figure, axes = pyplot.subplots(figsize=(7, 4.5))
    best = frontier(found)
    for each, style, label in (
        (found, {"marker": ".", "linestyle": "", "color": "silver"}, "simulated"),
        (best, {"marker": "o", "linestyle": "-", "color": "tab:blue"}, "frontier"),
    ):
        rates = [f.outcome.tokens_per_second / plain.tokens_per_second for f in each]
        axes.plot([f.outcome.tokens_per_call for f in each], rates, label=label, **style)
    axes.axhline(1.0, color="black", linewidth=0.8, linestyle=":", label="plain decoding")
    axes.set_xlabel("tokens for each target pass")
    axes.set_ylabel("tokens per second, x plain")
    axes.set_title(title)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def require_pyplot() -> Any:
    """matplotlib without a display. Raises RequestError that names the extra where it is absent."""
    try:
        import matplotlib
    except ImportError:
        raise RequestError(
            "tuning plots with matplotlib: pip install 'cascade_engine[tune]'"
        ) from None
    matplotlib.use("Agg")
    import matplotlib.pyplot as pyplot

    return pyplot
