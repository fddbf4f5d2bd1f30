"""What each part of the cascade contributes: CS Drafting's ablations on the embedded models.

    python -m bench.ablations --json FILE --plot FILE.svg
    python -m bench.ablations --family t5 --plot FILE.png

With and without each cascade; the statistical level left out, made of Max-Gram or a bigram table
alone, of both, and with longer contexts; lenience from 1 to 5; K from short to long drafts with and
without the horizontal cascade. All settings answer the same questions in turn (bench.cascades).
Figures: the standardized walltime improvement by model size (bench.swi), the clock's factor over
plain decoding, and tokens for each pass of the target.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from bench.cascades import STATISTICAL, Models, Setting, run
from bench.measure import machine_facts, write_json
from bench.questions import questions
from bench.swi import MATRICES, embedded, figures, modes
from bench.swi_papers import size_costs
from cascade_engine import FixedCascade
from cascade_engine.engine.loading import LoadOptions
from cascade_engine.ops.cpu import default_threads

LENIENCES = (1, 2, 3, 4, 5)
DRAFT_LENGTHS = (1, 2, 4, 6, 8, 10, 13)
COPIED = (0, 8)
"""Tokens of the horizontal cascade behind them."""
TABLE_DRAFT = 8
TASKS = ("arithmetic", "advice")
COLOURS = ("#30638e", "#d1495b", "#edae49", "#00798c")


def settings_by_group(full: FixedCascade, names: Sequence[str]) -> dict[str, list[Setting]]:
    """`names`: of the neural levels. The first setting is plain decoding."""
    rows = full.k_matrix
    neural = [[*row[:-1], 0] for row in rows]
    return {
        "cascades": modes(full, names, 5),
        "statistical level": [
            Setting("none", FixedCascade(neural)),
            *(Setting(kind, full, kind) for kind in reversed(STATISTICAL)),
        ],
        "lenience": [Setting(f"lenience {x}", FixedCascade(rows, float(x))) for x in LENIENCES],
        **{
            f"K, {copied} copied": [
                Setting(f"k {k}, {copied}", FixedCascade(smallest_draft(len(rows), k, copied)))
                for k in DRAFT_LENGTHS
            ]
            for copied in COPIED
        },
    }


def smallest_draft(n: int, k: int, copied: int) -> list[list[int]]:
    """A matrix for n drafting levels: the smallest model reviews copies up to k tokens, and
    `copied` tokens come behind them unreviewed."""
    rows = [[0] * n for _ in range(n)]
    rows[0][n - 2 :] = [k, copied]
    rows[-1][-1] = TABLE_DRAFT
    return rows


def measure(family: str, per_task: int, threads: int, limit: int) -> dict[str, Any]:
    target, drafts, table = embedded(family)
    models = Models(target, drafts, table, LoadOptions(threads=threads, max_rows=1))
    full = FixedCascade.parse(MATRICES[len(drafts)])
    groups = settings_by_group(full, models.names)
    asked = [question for task in TASKS for question in questions(task, per_task)]
    every = [setting for settings in groups.values() for setting in settings]
    found = figures(
        run(models, every, asked, limit), {"model size": size_costs(models.parameters())}
    )
    return {
        "machine": machine_facts(threads),
        "models": models.names,
        "k_matrix": full.k_matrix,
        "questions": len(asked),
        "groups": {
            group: {setting.name: found[setting.name] for setting in settings}
            for group, settings in groups.items()
        },
    }


def show(report: Mapping[str, Any]) -> None:
    """The table for people."""
    print(
        f"{' <- '.join(report['models'])}, K {report['k_matrix']}, {report['questions']} questions"
    )
    print(f"{'':34s} SWI MS  x plain  tokens/pass  identical")
    for group, settings in report["groups"].items():
        print(group)
        for name, found in settings.items():
            print(
                f"  {name:32s} {found['swi']['model size']:6.2f} {found['times_plain']:8.2f} "
                f"{found['tokens_per_target_call']:12.2f} {found['identical']:10d}"
            )


def plot(report: Mapping[str, Any], path: str) -> None:
    """The same as a picture, in the format of the file's ending."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "cascade_engine"  # the same figures, the same file
    matplotlib.rcParams["svg.fonttype"] = "none"
    from matplotlib import pyplot

    groups = report["groups"]
    figure, ((a, b), (c, d)) = pyplot.subplots(2, 2, figsize=(11, 7.5), layout="constrained")
    _bars(a, "cascades", groups["cascades"])
    _bars(b, "statistical level of the full cascade", groups["statistical level"])
    _lines(c, "lenience", LENIENCES, {"full cascade": groups["lenience"]})
    _lines(
        d, f"tokens that {report['models'][-1]} vouches for (k)", DRAFT_LENGTHS,
        {f"then {copied} copied": groups[f"K, {copied} copied"] for copied in COPIED},
    )  # fmt: skip
    figure.suptitle(
        f"{' <- '.join(report['models'])}, {report['questions']} questions, "
        f"{report['machine']['date']}"
    )
    metadata = {"Date": None} if path.endswith(".svg") else None
    figure.savefig(path, metadata=metadata)
    pyplot.close(figure)


def _bars(axes: Any, title: str, settings: Mapping[str, Any]) -> None:
    names, places = list(settings), range(len(settings))
    measures = {
        "SWI by model size": [settings[name]["swi"]["model size"] for name in names],
        "x plain by the clock": [settings[name]["times_plain"] for name in names],
    }
    for i, (label, values) in enumerate(measures.items()):
        offset = (i - 0.5) * 0.38
        bars = axes.barh([p + offset for p in places], values, 0.38, label=label, color=COLOURS[i])
        axes.bar_label(bars, fmt="%.2f", fontsize=7, padding=2)
    axes.set_yticks(list(places), names, fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_title(title, fontsize=10)
    axes.legend(fontsize=8, loc="upper right")


def _lines(
    axes: Any, label: str, xs: Sequence[int], curves: Mapping[str, Mapping[str, Any]]
) -> None:
    for i, (name, settings) in enumerate(curves.items()):
        found = list(settings.values())
        swi = [figure["swi"]["model size"] for figure in found]
        clock = [figure["times_plain"] for figure in found]
        axes.plot(xs, swi, "o-", color=COLOURS[2 * i % 4], label=f"SWI, {name}")
        axes.plot(xs, clock, "s--", color=COLOURS[(2 * i + 1) % 4], label=f"x plain, {name}")
    axes.set_xlabel(label, fontsize=9)
    axes.set_xticks(list(xs))
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.ablations",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--family", choices=("llama", "t5"), default="llama")
    parser.add_argument("--questions", type=int, default=8, help=f"of each of {', '.join(TASKS)}")
    parser.add_argument("--max-new-tokens", type=int, default=200)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--plot", metavar="FILE", help="a picture: .svg or .png")
    args = parser.parse_args(argv)
    for name in ("questions", "max_new_tokens", "threads"):
        value = getattr(args, name)
        if value is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')} must be >= 1, got {value}")
    if args.plot and not args.plot.endswith((".svg", ".png")):
        parser.error(f"--plot must end in .svg or .png, got {args.plot}")
    threads = args.threads or default_threads()
    report = measure(args.family, args.questions, threads, args.max_new_tokens)
    show(report)
    if args.plot:
        plot(report, args.plot)
    write_json(args.json, report)


if __name__ == "__main__":
    main()
