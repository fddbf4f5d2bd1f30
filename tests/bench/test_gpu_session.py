"""The GPU session's script, as far as it goes without a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = {
    "tests": ["pytest -m gpu", "test_engine.py", "tests/kernels/test_triton.py", "tests collected"],
    "sanitize": ["--tool memcheck", "--tool racecheck", "test_sampling.py"],
    "bench": [
        "bench.ops --device cuda --graph --cold-l2",
        "bench.cuda_model --json",
        "bench.cuda_model --dependent-launch",
    ],
}


def session(mode: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(ROOT / "bench" / "gpu_session.sh"), mode],
        env={**os.environ, "PYTHON": sys.executable, "OUT": str(folder), **environment},
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
@pytest.mark.parametrize("mode", COMMANDS)
def test_a_dry_run_says_what_would_run(mode: str, tmp_path: Path) -> None:
    done = session(mode, tmp_path, DRY_RUN="1")
    assert done.returncode == 0, done.stdout + done.stderr
    for part in COMMANDS[mode]:
        assert part in done.stdout, part
    assert "kernels built: " in (tmp_path / "machine.txt").read_text()


def test_wrong_calls_are_named(tmp_path: Path) -> None:
    done = session("all", tmp_path)
    assert done.returncode == 2
    assert "unknown mode all: prepare, tests, sanitize or bench" in done.stderr
    done = session("prepare", tmp_path, CASCADE_DATA=str(tmp_path))
    assert done.returncode == 1
    assert "set CASCADE_DATA" in done.stderr


INTERPRETER = """#!/bin/bash
case "$*" in
  "-c "*) echo "kernels built: yes" ;;
  *first.py) echo "3 passed" ;;
  *second.py) echo "FAILED second.py::test_it"; echo "1 failed"; exit 1 ;;
  *third.py) echo "no tests ran"; exit 5 ;;
  *bench.ops*) echo "out of memory"; exit 1 ;;
  *) echo "ran" ;;
esac
"""


def machine(folder: Path) -> dict[str, str]:
    """A program that stands for an interpreter with torch on a GPU."""
    (folder / "python").write_text(INTERPRETER)
    (folder / "python").chmod(0o755)
    return {"PYTHON": str(folder / "python"), "FILES": "first.py second.py third.py"}


def test_a_file_that_fails_ends_no_other(tmp_path: Path) -> None:
    """A file without tests for a GPU is none that fails."""
    done = session("tests", tmp_path / "out", **machine(tmp_path))
    assert done.returncode != 0, done.stdout
    for line in ("first.py: exit 0, 3 passed", "second.py: exit 1, 1 failed", "third.py: exit 0"):
        assert line in done.stdout
    log = (tmp_path / "out" / "tests.log").read_text()
    for line in ("3 passed", "FAILED second.py::test_it", "no tests ran"):
        assert line in log
    done = session("tests", tmp_path / "out", **machine(tmp_path) | {"FILES": "first.py third.py"})
    assert done.returncode == 0, done.stderr


def test_a_part_that_fails_ends_no_other(tmp_path: Path) -> None:
    done = session("bench", tmp_path / "out", **machine(tmp_path))
    assert done.returncode == 1
    for name, said in (("ops", "out of memory"), ("model", "ran"), ("model-dependent", "ran")):
        assert said in (tmp_path / "out" / f"{name}.log").read_text()
