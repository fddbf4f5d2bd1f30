"""The figures for people: tables, and with each how it was obtained."""

from __future__ import annotations

from typing import Any

from cascade_engine.console import table
from cascade_engine.info.collect import WIDTHS


def as_text(report: dict[str, Any]) -> str:
    """The report of `collect` as lines of text."""
    how = report["how"]
    blocks = [
        _models(report),
        _machine(report),
        *(_passes(m, report["cached_tokens"], how["predicted"]) for m in report["models"]),
        _gain("statistical level alone (Max-Gram, tables)", report["statistical"]),
        *(_gain(f"draft {draft['name']}", draft) for draft in report["drafts"]),
        "\n".join([f"(expected: {how['expected']})", *report["formulas"]]),
        _memory(report["memory"]),
    ]
    return "\n\n".join(blocks)


def _models(report: dict[str, Any]) -> str:
    rows = [["model", "parameters", "in files", "loaded", "cache a token", "context", "its cache"]]
    for model in report["models"]:
        files = ", ".join(f"{_size(n)} {name}" for name, n in model["file_bytes"].items())
        rows.append(
            [
                model["name"],
                f"{model['parameters']:,}",
                files,
                f"{_size(model['loaded_bytes'])} {'compressed ' * model['compressed']}"
                f"{model['dtype']}",
                _size(model["cache_bytes_per_token"]),
                f"{model['context']:,}",
                _size(model["cache_bytes_full"]),
            ]
        )
    return f"{table(rows)}\n(counted: {report['how']['counted']})"


def _machine(report: dict[str, Any]) -> str:
    machine = report["machine"]
    lines = [f"machine: {machine['isa']}, {machine['threads']} threads"]
    for model in report["models"]:
        read, rate = (model["per_second"][key] for key in ("read_bytes", "multiply_adds"))
        lines.append(
            f"{model['name']}: weights read at {read['rate'] / 1e9:.1f} GB/s ({read['how']}, "
            f"{read['runs']} runs), {rate['rate'] / 1e9:.1f} G multiply-adds/s ({rate['how']}, "
            f"{rate['runs']} runs)"
        )
    lines.append(f"(measured: {report['how']['measured']})")
    lines += [f"on a GPU, {name}: {who}" for name, who in report["gpu_operations"].items()]
    return "\n".join(lines)


def _passes(model: dict[str, Any], cached: int, predicted: str) -> str:
    shown = [one for one in model["passes"] if one["tokens"] in WIDTHS]
    first = shown[0]["seconds"]
    rows = [[f"{model['name']}: tokens in a pass", *(str(one["tokens"]) for one in shown)]]
    rows.append(["MFLOP (counted)", *(_number(one["flops"] / 1e6) for one in shown)])
    rows.append(["MB moved (counted)", *(_number(one["bytes"] / 1e6) for one in shown)])
    rows.append(["ms at least (predicted)", *(_number(one["seconds"] * 1e3) for one in shown)])
    rows.append(["times one token", *(f"{one['seconds'] / first:.2f}" for one in shown)])
    return f"{table(rows)}\n(behind {cached} cached tokens; predicted: {predicted})"


def _gain(title: str, draft: dict[str, Any]) -> str:
    head = f"{title}: cost ratio c = {draft['cost_ratio']:.3f} (predicted, one token each)"
    if draft.get("vocabulary_problem"):
        head += f"\nNOT USABLE as a draft: {draft['vocabulary_problem']}"
    cascade = "cascade" in draft["gain"][0]
    rows = [["expected gain at a =", "best d", "tokens a pass", "EWIF", "here"]]
    rows[0] += ["EWIF of a cascade"] * cascade
    for gain in draft["gain"]:
        keys = ["tokens_per_pass", "ewif", "here", *["cascade"] * cascade]
        figures = [f"{gain[key]:.2f}" for key in keys]
        rows.append([f"{gain['acceptance']:.1f}", str(gain["drafted"]), *figures])
    return f"{head}\n{table(rows)}"


def _memory(memory: dict[str, Any]) -> str:
    weights, cache, available = (
        _size(memory[f"{name}_bytes"]) for name in ("weight", "cache", "available")
    )
    answer = "fits" if memory["fits"] else "DOES NOT FIT"
    return (
        f"memory: {weights} of weights and {cache} of cache for one row of full length; "
        f"{available} available now: {answer}"
    )


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def _number(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"
