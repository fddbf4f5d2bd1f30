"""The GPU session's script, as far as it goes without a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = {
    "tests": ["pytest -m gpu", "tests/cuda tests/kernels", "tests collected"],
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
