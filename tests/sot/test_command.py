"""Skeleton-of-Thought on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cascade_engine.generate import main
from tests.test_generate import run


def test_skeleton_of_thought_on_the_embedded_models(tmp_path: Path) -> None:
    stats = tmp_path / "stats.json"
    question = "How can I save water at home? List six points."
    done = run("--sot", "on", "--stats-json", stats, question)
    assert done.returncode == 0, done.stderr
    assert [line[:3] for line in done.stdout.splitlines()] == [f"{i}. " for i in range(1, 7)]
    assert "skeleton-of-thought: 6 points" in done.stderr
    found = json.loads(stats.read_text())
    assert found["text"] == done.stdout.rstrip("\n")
    assert [stage["name"] for stage in found["stages"]] == ["skeleton", "points"]
    sum_ = run("--sot", "auto", "--quiet", "What is 17 + 25?")
    assert sum_.returncode == 0
    assert "Point" not in sum_.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sot", "on", "--compare"], "leave --compare out"),
        (["--sot", "on", "--router", "model"], "--router needs --sot auto"),
        (["--dependencies"], "--dependencies needs --sot"),
        (["--model", "m"], "--model needs --endpoint"),
        (["--endpoint", "http://127.0.0.1:9"], "--endpoint needs --model"),
        (["--endpoint", "http://x", "--model", "m", "--target", "d"], "leave --target out"),
        (["--sot", "on", "--n", "2", "--temperature", "1"], "many requests"),
        (["--endpoint", "http://x", "--model", "m", "--prices", "1"], "two numbers"),
    ],
)
def test_skeleton_of_thought_refuses(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "Hi"]) == 2
    assert message in capsys.readouterr().err


def test_skeleton_of_thought_on_an_endpoint(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("openai")
    from tests.sot.server import Reply, serving
    from tests.sot.test_endpoint import answer, wanted

    command = ["--model", "m", "--prices", "1,2", "How can I save water?"]
    with serving(answer) as server:
        assert main(["--endpoint", server.url, *command]) == 0
    shown = capsys.readouterr()
    assert shown.out.splitlines()[1] == "2. Shower less Text number 2."
    assert "cost: 0.00" in shown.err
    with serving(lambda b: Reply(status=400) if wanted(b) == 2 else answer(b)) as server:
        assert main(["--endpoint", server.url, *command]) == 2
    shown = capsys.readouterr()
    assert "3. Full loads Text number 3." in shown.out
    assert "error: point 2: BadRequestError" in shown.err
