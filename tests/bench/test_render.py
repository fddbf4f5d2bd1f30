"""bench.render: the pages are what the newest results say; tables from reports by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import measure, render, tables

REPLAYED = {
    "shape": "110m",
    "dtype": "bfloat16",
    "turns": 3,
    "command": "python -m bench.replay_level",
    "policies": {
        "plain, replayed": {
            "times_plain": 1.0, "tokens_per_target_call": 1.0, "milliseconds_per_target_call": 5.0,
        },
        "tree, replayed": {
            "times_plain": 1.5, "tokens_per_target_call": 2.25, "milliseconds_per_target_call": 7.5,
        },
    },
}  # fmt: skip


def test_the_pages_are_rendered() -> None:
    assert render.stale() == [], "run `python -m bench.render` and commit what it wrote"


def test_every_result_and_table_has_its_place() -> None:
    pages = "".join((render.ROOT / page).read_text("utf-8") for page in render.PAGES)
    for name in render.TABLES:
        assert f"<!-- results: {name} -->" in pages


def test_the_newest_report_of_each_name_counts(tmp_path: Path) -> None:
    for name, value in (
        ("2026-01-09-a-b", 1),
        ("2026-01-10-a-b", 2),
        ("2025-12-31-c", 3),
        ("d", 4),
    ):
        (tmp_path / f"{name}.json").write_text(json.dumps({"value": value}))
    assert render.newest(tmp_path) == {"a-b": {"value": 2}, "c": {"value": 3}}
    (tmp_path / "2026-01-11-c.json").write_text("{")
    with pytest.raises(ValueError, match=r"2026-01-11-c\.json: .* measure again"):
        render.newest(tmp_path)


def test_only_what_stands_between_the_marks_changes() -> None:
    page = (
        "a\n<!-- results: sample -->\nold\n<!-- end -->\nb\n"
        "<!-- results: replayed -->\n<!-- end -->c"
    )
    found = render.rendered(page, {"sample": {"output": " x\n"}})
    assert found == (
        "a\n<!-- results: sample -->\n```\nx\n```\n<!-- end -->\nb\n"
        "<!-- results: replayed -->\nnot measured\n<!-- end -->c"
    )
    assert render.rendered(found, {"sample": {"output": " x\n"}}) == found


@pytest.mark.parametrize(
    ("page", "message"),
    [
        ("<!-- results: nonsense -->\n<!-- end -->", "no table 'nonsense': there are headline"),
        ("<!-- results: swi -->\n", "1 tables begin and 0 end"),
        ("<!-- results: swi -->\n<!-- results: swi -->\n<!-- end -->", "'swi' has no <!-- end -->"),
    ],
)
def test_marks_that_do_not_fit(page: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        render.rendered(page, {})


def test_tables_by_hand() -> None:
    assert tables.table(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"
    shown = tables.replayed({"replayed-110m-bf16": REPLAYED})
    assert "| tree, replayed | 1.50x (2.25 tokens, 7.5 ms a call) |" in shown
    head = tables.headline({"replayed-110m-bf16": REPLAYED}).splitlines()
    assert len(head) == 3
    assert "**1.50x** plain decoding (tree, replayed)" in head[2]
    assert head[2].endswith("`python -m bench.replay_level` |")


def test_decoding_with_and_without_a_peer() -> None:
    median = {"median": 0.5}
    counts = [str(k) for k in tables.DECODE_TOKENS]
    report = {
        "milliseconds": {f"ours {k}": {"median": 2.0 * int(k)} for k in counts},
        "review_over_decode": {k: {"median": float(k)} for k in counts},
    }
    both = {
        "decode-110m-f32": report,
        "decode-110m-bf16": {**report, "ours_over_llamacpp": dict.fromkeys(counts, median)},
    }
    line = tables.decode(both).splitlines()[2 + tables.DECODE_TOKENS.index(8)]
    assert line == "| 8 | 16.00 ms (8.00x, 0.50 of llama.cpp) | 16.00 ms (8.00x) |"


def test_a_report_says_what_made_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["x", "--json", "FILE", "--shape", "a b", "--plot", "P", "--quick"]
    monkeypatch.setattr(measure.sys, "argv", arguments)
    path = tmp_path / "x.json"
    measure.write_json(str(path), {"value": 1})
    report = json.loads(path.read_text())
    assert report["command"].endswith(" --shape 'a b' --quick")
    assert report["command"].startswith("python ")
    assert "FILE" not in report["command"]
    assert report["value"] == 1
