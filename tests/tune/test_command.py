"""The command line: what it writes is what an engine loads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cascade_engine import Engine
from cascade_engine.demo.corpus import sample_prompts
from cascade_engine.demo.family import llama_family, t5_family
from cascade_engine.errors import RequestError
from cascade_engine.generate import main as generate
from cascade_engine.policy import (
    FixedCascade,
    PlainDecoding,
    Policy,
    read_policy,
    write_policy,
)
from cascade_engine.tune import __main__ as command
from cascade_engine.tune import run as tune_run
from cascade_engine.tune.search import PLAIN
from cascade_engine.tune.simulate import Outcome, Task

for module in ("optuna", "matplotlib"):
    pytest.importorskip(module, reason="needs the tune extra")


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    file = tmp_path / "some.questions.jsonl"
    file.write_text("\n".join(map(json.dumps, sample_prompts("test", 4))))
    return file


def test_a_task_is_tuned_and_the_file_is_used(
    prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, family = tmp_path / "tuned", llama_family()
    arguments = ["--target", family.target, "--draft", family.drafts[0], "--table", family.table]
    small = ["--trials", 12, "--verify", 2, "--rounds", 1, "--max-new-tokens", 24, "--threads", 1]
    files = ["--prompts", prompts, "--out", out]
    assert command.main([str(a) for a in (*arguments, *small, *files)]) == 0
    shown = capsys.readouterr().out
    assert "settings simulated; the frontier" in shown
    assert "run for real" in shown
    stem = out / "some.questions"
    report = json.loads(Path(f"{stem}.report.json").read_text())
    assert report["prompts_used"] == 4
    names = [row["name"] for row in report["verified"]]
    assert names[3:] == ["plain decoding", "automatic"]
    assert names[2] == "llama-small K 8,0;0,10 (default)"
    assert report["verified"][3]["measured"]["over_plain"] == 1.0
    for row in report["verified"]:
        assert row["measured"]["tokens_per_second"] > 0
        if row["predicted"] is not None:
            calls = [row[which]["tokens_per_target_call"] for which in ("predicted", "measured")]
            assert calls[0] == calls[1]
    assert Path(f"{stem}.png").read_bytes().startswith(b"\x89PNG")
    levels = report["chosen"]["levels"]
    drafts = family.drafts if len(levels) == 2 else ()
    assert levels == ["llama-target", *(path.name for path in drafts)]
    policy = Path(f"{stem}.policy.json")
    engine = Engine.load(family.target, drafts, threads=1, policy=policy)
    assert isinstance(engine.policy, FixedCascade)
    assert f"--policy {policy}" in shown
    with pytest.raises(RequestError, match="is for the models"):
        Engine.load(family.target, () if drafts else family.drafts, threads=1, policy=str(policy))


def test_generate_takes_a_policy_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    family, file = llama_family(), tmp_path / "policy.json"
    write_policy(file, FixedCascade([[3, 0], [0, 4]]), ["llama-target", "llama-small"], {})
    ask = ["What is 2 and 3?", "--max-new-tokens", "12", "--threads", "1", "--policy", str(file)]
    assert generate([*ask, "--compare"]) == 0
    assert "compare: identical" in capsys.readouterr().err
    assert generate([*ask, "--tree", "8"]) == 2
    assert "a policy file sets K, lenience and trees" in capsys.readouterr().err
    models = ["--target", str(family.target)]
    assert generate([*ask, *models]) == 2
    assert "is for the models ['llama-target', 'llama-small']" in capsys.readouterr().err
    assert generate(["Hi", *models, "--policy", "absent"]) == 2
    assert "policy must be 'auto', 'fixed', 'plain'" in capsys.readouterr().err


def test_the_fastest_that_was_run_is_chosen(
    prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no setting pays, that is plain decoding."""
    family = llama_family()
    engine = Engine.load(
        family.target, family.drafts, family.table, threads=1, max_rows=1, reuse_cache=False
    )
    assert engine.tokenizer is not None
    run = Task.run

    def slow(self: Task, policy: Policy) -> Outcome:
        pays = policy == PLAIN.over(2) or isinstance(policy, PlainDecoding)
        return run(self, policy)._replace(seconds=1.0 if pays else 2.0)

    monkeypatch.setattr(Task, "run", slow)
    ids = [engine.tokenizer.encode("What is 2 and 3?")]
    options = tune_run.Options(trials=4, verify=1, rounds=1, max_new_tokens=8)
    tune_run.tune(engine, ids, tmp_path / "x", {"prompts": "x"}, options, lambda line: None)
    policy = read_policy(tmp_path / "x.policy.json", ["llama-target"])
    assert policy.k_matrix == ((0,),)


def test_probes_reach_all_levels() -> None:
    assert len(tune_run.probes(1)) == 9
    policies = tune_run.probes(3)
    for policy in policies:
        policy.check(3)
    matrices = [policy.k_matrix for policy in policies if isinstance(policy, FixedCascade)]
    for draft in (1, 2):
        assert sum(matrix[0][draft - 1] > 0 for matrix in matrices) == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--draft", "x"], "--draft needs --target"),
        (["--target", str(t5_family().target)], "t5-target is no LLaMA model"),
        (["--max-new-tokens", "1020"], "do not fit a context of 1024"),
        (["--prompts", "other/some.questions.txt"], "two files have the same name"),
    ],
)
def test_what_cannot_be_done_is_named(
    prompts: Path, tmp_path: Path, arguments: list[str], message: str,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "some.questions.txt").write_text("one\n")
    files = ["--prompts", str(prompts), "--out", str(tmp_path / "tuned"), "--threads", "1"]
    assert command.main([*files, *arguments]) == 2
    assert message in capsys.readouterr().err


def test_counts_are_checked(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(["--prompts", "x", "--out", "y", "--trials", "0"])
    assert "--trials must be >= 1, got 0" in capsys.readouterr().err
