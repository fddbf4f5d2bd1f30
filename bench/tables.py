"""What the pages say about results: Markdown from reports, nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bench.suite import default_command

Report = Mapping[str, Any]
Results = dict[str, Any]
"""Reports by name, without their dates."""
MISSING = "not measured"
DECODE_TOKENS = (1, 2, 4, 8, 16, 32, 64)
DECODE = {
    "decode-110m-bf16": "110M shape, bfloat16",
    "decode-15m-bf16": "15M shape, bfloat16",
    "decode-110m-f32": "110M shape, float32",
}
PEERS = {
    "hf": "transformers",
    "hf-assisted": "its assisted generation",
    "llamacpp": "llama.cpp",
}
REPLAYED = {"replayed-110m-bf16": "110M, bfloat16", "replayed-7b-int8": "7B, int8"}


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def command(name: str, results: Results) -> str:
    """What makes a report, for a table's last column."""
    return f"`{results[name].get('command', default_command(name))}`"


def headline(results: Results) -> str:
    """What a stranger wants to know first, each with the command that shows it again."""
    rows: list[tuple[str, str, str]] = []
    for name, describe in HEADLINES.items():
        if name in results:
            shown = command(name, results)
            for what, found in describe(results[name]):
                rows.append((what, found, shown))
                shown = "the same"
    return table(("what", "measured", "command"), rows)


def _answers(report: Report) -> Iterator[tuple[str, str]]:
    for rows, which in (("1", "one request at a time"), ("16", "16 at a time")):
        cases = report["rows"].get(rows, {}).get("cases", {})
        for name, kind in (("auto", "automatic policy"), ("fixed", "fixed default")):
            if name not in cases:
                continue
            case = cases[name]
            ratios = [f"**{case['over_plain']['total']:.2f}x** plain decoding"]
            ratios += [
                f"{case['over'][peer]['total']:.1f}x {PEERS[peer]}"
                for peer in PEERS
                if peer in case["over"]
            ]
            same = f"{case['same_as_plain']} of {case['answers']} texts identical to plain's"
            yield f"embedded LLaMA, {which}, {kind}", f"{', '.join(ratios)}; {same}"


def _t5(report: Report) -> Iterator[tuple[str, str]]:
    cases = report["batch 1"]
    rates = {name: case["tokens_per_second"] for name, case in cases.items()}
    theirs, assisted = rates["transformers"], rates["transformers, assisted"]
    best = rates["cascade"]
    yield (
        "embedded T5, one request at a time",
        f"**{best / rates['plain']:.2f}x** plain decoding, {best / theirs:.1f}x transformers, "
        f"{best / assisted:.1f}x its assisted generation",
    )


def _passes(report: Report) -> Iterator[tuple[str, str]]:
    prices = report["review_over_decode"]
    yield (
        f"a pass over 8 / 16 tokens, {DECODE['decode-110m-bf16']}",
        f"**{prices['8']['median']:.2f}x** / {prices['16']['median']:.2f}x of one token's time",
    )
    for peer, called in PEERS.items():
        ratios = report.get(f"ours_over_{peer}")
        if ratios:
            yield (
                f"a pass over 1 / 8 tokens beside {called}",
                f"{ratios['1']['median']:.2f}x / {ratios['8']['median']:.2f}x of its time",
            )


def _recorded(report: Report) -> Iterator[tuple[str, str]]:
    drafters = report["drafters"].items()
    found = {name: drafter["tokens_per_target_call"] for name, drafter in drafters}
    name = max(found, key=lambda each: found[each])
    yield (
        "Vicuna-7B's answers to Spec-Bench, no draft model",
        f"**{found[name]:.2f}** tokens per pass of the target ({name})",
    )


def _replayed(report: Report) -> Iterator[tuple[str, str]]:
    cases = {name: case for name, case in report["policies"].items() if "plain" not in name}
    name = max(cases, key=lambda each: cases[each]["times_plain"])
    yield (
        f"the same answers, passes of the {report['shape'].upper()} shape, {report['dtype']}",
        f"**{cases[name]['times_plain']:.2f}x** plain decoding ({name})",
    )


HEADLINES = {
    "e2e-demo-peers": _answers,
    "t5-demo-bf16": _t5,
    "decode-110m-bf16": _passes,
    "replay-spec-bench-cold": _recorded,
    "replayed-110m-bf16": _replayed,
}


def decode(results: Results) -> str:
    """Milliseconds of a pass by tokens; in brackets over one token's, and over the peers'."""
    reports = {name: results[name] for name in DECODE if name in results}
    rows = [
        [str(tokens), *(_pass(report, tokens) for report in reports.values())]
        for tokens in DECODE_TOKENS
    ]
    return table(["tokens in a pass", *(DECODE[name] for name in reports)], rows)


def _pass(report: Report, tokens: int) -> str:
    median = report["milliseconds"][f"ours {tokens}"]["median"]
    parts = [f"{report['review_over_decode'][str(tokens)]['median']:.2f}x"]
    for peer, called in PEERS.items():
        if ratios := report.get(f"ours_over_{peer}"):
            parts.append(f"{ratios[str(tokens)]['median']:.2f} of {called}")
    return f"{median:.2f} ms ({', '.join(parts)})"


def sample(results: Results) -> str:
    """What `make generate` prints."""
    return f"```\n{results['sample']['output'].strip()}\n```" if "sample" in results else MISSING


def swi(results: Results) -> str:
    """Our modes on the embedded families, then the papers' rows."""
    if "swi" not in results:
        return MISSING
    report = results["swi"]
    parts = []
    for family in report["families"]:
        names = list(next(iter(family["data"].values()))["settings"])
        rows = []
        for name in names:
            found = [data["settings"][name] for data in family["data"].values()]
            cells = [f"{f['swi']['model size']:.2f} ({f['times_plain']:.2f})" for f in found]
            rows.append([name, *cells])
        heads = [" <- ".join(family["models"]), *family["data"]]
        parts.append(table(heads, rows))
    rows = []
    for row in report["published"]:
        speculative = f"{row['speculative']:.2f}" + (f" ({row['note']})" if row["note"] else "")
        rows.append([row["target"], row["data"], f"{row['cascade']:.2f}", speculative])
    parts.append(table(("published", "data", "CS Drafting", "speculative decoding"), rows))
    return "\n\n".join(parts)


def replayed(results: Results) -> str:
    """By policy and shape: times over plain decoding, tokens and milliseconds of a call."""
    reports = {name: results[name] for name in REPLAYED if name in results}
    if not reports:
        return MISSING
    names = list(next(iter(reports.values()))["policies"])
    rows = []
    for name in names:
        found = [report["policies"][name] for report in reports.values()]
        cells = [
            f"{f['times_plain']:.2f}x ({f['tokens_per_target_call']:.2f} tokens, "
            f"{f['milliseconds_per_target_call']:.1f} ms a call)"
            for f in found
        ]
        rows.append([name, *cells])
    heads = [f"{REPLAYED[name]}, {report['turns']} turns" for name, report in reports.items()]
    return table(["", *heads], rows)


def ablations(results: Results) -> str:
    """By setting: SWI by model size, the clock's factor, tokens for each pass of the target."""
    if "ablations" not in results:
        return MISSING
    rows = []
    for group, settings in results["ablations"]["groups"].items():
        rows.append([f"**{group}**", "", "", ""])
        for name, found in settings.items():
            swi, clock = found["swi"]["model size"], found["times_plain"]
            per_pass = found["tokens_per_target_call"]
            rows.append([name, f"{swi:.2f}", f"{clock:.2f}", f"{per_pass:.2f}"])
    return table(("setting", "SWI by model size", "x plain", "tokens per target pass"), rows)
