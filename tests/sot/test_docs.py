"""The examples of docs/skeleton-of-thought.md run as they stand."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.sot.server import serving
from tests.sot.test_endpoint import answer

PAGE = Path(__file__).resolve().parent.parent.parent / "docs" / "skeleton-of-thought.md"


def example(number: int, tmp_path: Path, *arguments: str) -> str:
    programs = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    path = tmp_path / "example.py"
    path.write_text(programs[number])
    done = subprocess.run(
        [sys.executable, path, *arguments], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_first_example_answers_and_streams(tmp_path: Path) -> None:
    shown = example(0, tmp_path)
    assert shown.startswith("1. ")
    assert re.search(r"^points \d+ \d+ [1-9]\d* \d+$", shown, re.MULTILINE)
    assert "0 '1.'" in shown


def test_the_endpoint_example_answers(tmp_path: Path) -> None:
    pytest.importorskip("openai")
    with serving(answer) as server:
        shown = example(1, tmp_path, server.url)
    assert shown.startswith("1. Fix taps")
