"""bench.all: what runs, what is left out, and that results appear complete or not at all."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from bench import render, suite
from bench.all import chosen, main, run
from bench.suite import JOBS, Job, default_command
from bench.tables import HEADLINES, REPLAYED

SCRIPT = """
import json, sys
path = sys.argv[sys.argv.index("--json") + 1]
open(path, "w").write(json.dumps(sys.argv[1:-2]))
sys.exit({status})
"""


def job(tmp_path: Path, status: int, monkeypatch: pytest.MonkeyPatch, **fields: str) -> Job:
    (tmp_path / "measures.py").write_text(SCRIPT.format(status=status))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return Job("x", "measures", "--a 'b c'", "--fast", **fields)


def test_a_run_leaves_its_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "results"
    folder.mkdir()
    assert run(job(tmp_path, 0, monkeypatch), True, folder)
    (path,) = folder.iterdir()
    assert path.name.endswith("-x.json")
    assert json.loads(path.read_text()) == ["--a", "b c", "--fast"]
    assert run(job(tmp_path, 0, monkeypatch), False, folder)
    assert json.loads(path.read_text()) == ["--a", "b c"]


def test_a_failed_run_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "results"
    folder.mkdir()
    assert not run(job(tmp_path, 3, monkeypatch), True, folder)
    assert not list(folder.iterdir())


def test_the_suite_renders_and_says_what_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rendered = []
    broken = job(tmp_path, 1, monkeypatch)
    absent = broken._replace(name="absent", needs=str(tmp_path / "nowhere"))
    huge = broken._replace(name="huge", gigabytes=1e6)
    monkeypatch.setattr("bench.all.JOBS", (absent, huge))
    monkeypatch.setattr(render, "RESULTS", tmp_path)
    monkeypatch.setattr(render, "main", rendered.append)
    assert main(["--quick"]) == 0
    out = capsys.readouterr().out
    assert "absent: left out" in out
    assert "huge: left out: it takes 1000000 GB" in out
    monkeypatch.setattr("bench.all.JOBS", (broken,))
    assert main(["--only", "x"]) == 1
    assert "failed: x" in capsys.readouterr().out
    assert rendered == [[], []]


def test_every_job_is_a_command_that_there_is() -> None:
    for each in JOBS:
        assert importlib.util.find_spec(each.module), each.module
    assert len({each.name for each in JOBS}) == len(JOBS)
    assert set(HEADLINES) | set(REPLAYED) <= {each.name for each in JOBS}
    quick = {each.name for each in chosen(True, None)}
    assert set(HEADLINES) <= quick < {each.name for each in chosen(False, None)}
    assert [each.name for each in chosen(True, ["demo-evaluate"])] == ["demo-evaluate"]


def test_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    job = next(job for job in JOBS if job.name == "decode-110m-bf16")
    for installed in ("hf", "hf,llamacpp"):
        monkeypatch.setattr(suite, "peers", lambda installed=installed: installed)
        assert job.command(quick=True)[-3:] == [installed, "--rounds", "5"]
        assert default_command("decode-110m-bf16") == (
            "python -m bench.decode --shape 110m --dtype bf16 --peers hf,llamacpp"
        )
    assert default_command("nobody-knows") == "nobody-knows"
