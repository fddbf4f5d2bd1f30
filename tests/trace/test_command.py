"""`python -m cascade_engine.trace`, and `generate --trace`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cascade_engine.generate import main as generate
from cascade_engine.trace import load, statistics
from cascade_engine.trace.__main__ import main
from tests.trace.support import lines, write


def test_each_command_writes_where_it_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = write(tmp_path / "t.jsonl")
    for command, ending, begin in (
        ("html", "html", "<!doctype html>"),
        ("chrome", "json", '{"displayTimeUnit"'),
        ("svg", "svg", "<svg "),
    ):
        options = ["--rounds", "2,1-2"] if command == "svg" else []
        assert main([command, str(trace), *options]) == 0
        text = trace.with_suffix(f".{ending}").read_text("utf-8")
        assert text.startswith(begin)
        assert f"t.{ending}: " in capsys.readouterr().err
        assert main([command, str(trace), "-o", str(tmp_path / "other"), *options]) == 0
        assert (tmp_path / "other").read_text("utf-8") == text
        capsys.readouterr()
        assert main([command, str(trace), "-o", "-", *options]) == 0
        assert capsys.readouterr().out == text
    assert main(["stats", str(trace)]) == 0
    assert json.loads(capsys.readouterr().out) == statistics(load(trace))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["html", "missing"], "No such file"),
        (["html", "bad"], "line 1 is not a JSON object"),
        (["chrome", "t.json"], "is the trace itself: give another -o"),
        (["svg", "t.json", "--rounds", "a-b"], "--rounds must be numbers such as 2,5-7, got 'a-b'"),
        (["svg", "t.json", "--rounds", "2-1"], "--rounds must be numbers such as 2,5-7, got '2-1'"),
        (["svg", "t.json", "--rounds", "1,2-"], "--rounds must be numbers such as"),
        (["svg", "t.json", "--rounds", "1-999999999"], "--rounds must be numbers such as"),
        (["svg", "t.json", "--rounds", "1-2,9"], "--rounds must be within 1..2, got 9"),
        (["svg", "t.json", "--row", "9"], "--row must be in 1..2, got 9"),
        (["stats", "t.json", "-o", "no/where"], "No such file"),
    ],
)
def test_errors_are_one_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "bad", "hello\n")
    write(tmp_path / "t.json")
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1
    assert (tmp_path / "t.json").read_text("utf-8") == lines()


def test_a_cut_trace_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stats", str(write(tmp_path / "t", lines()[:-9]))]) == 0
    assert "ends in the middle of a line" in capsys.readouterr().err


def test_generate_writes_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of the cascade alone: what --compare decodes is not in it."""
    question, trace = "How can I save water at home?", tmp_path / "t.jsonl"
    options = ["--max-new-tokens", "24", "--quiet", "--threads", "1", "--policy", "fixed"]
    stats = tmp_path / "stats.json"
    assert generate([question, *options, "--stats-json", str(stats)]) == 0
    text = capsys.readouterr().out
    assert generate([question, *options, "--compare", "--trace", str(trace)]) == 0
    assert capsys.readouterr().out == text
    history = load(trace)
    (row,) = history.rows
    assert "".join("".join(this.texts) for this in row.rounds).strip() == text.strip()
    assert question in row.text
    expected = json.loads(stats.read_text())
    counted = statistics(history)
    assert counted["new_tokens"] == 24
    assert counted["tokens_per_pass"] == expected["tokens_per_pass"]
    for level, other in zip(counted["levels"], expected["levels"], strict=True):
        assert (level["passes"], level["drafted"], level["accepted"]) == (
            other["calls"], other["reviewed_by_position"], other["accepted_by_position"]
        )  # fmt: skip


def test_generate_and_points(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = tmp_path / "t.jsonl"
    assert generate(["--sot", "on", "--quiet", "--trace", str(trace), "How can I save water?"]) == 0
    assert len(load(trace).rows) > 2
    assert generate(["--trace", str(tmp_path / "no" / "where"), "--quiet", "Hi"]) == 2
    assert "No such file" in capsys.readouterr().err
    endpoint = ["--endpoint", "http://localhost:1", "--model", "m", "--sot", "on"]
    assert generate([*endpoint, "--trace", str(trace), "Hi"]) == 2
    assert "leave it or --endpoint out" in capsys.readouterr().err
