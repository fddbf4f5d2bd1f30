"""The end-to-end benchmark: groups and rounds, what counts as same, peers that are absent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import e2e, e2e_cases, generation
from bench.generation import Answers, Tally, Transformers, ratio, run_groups, until_stop
from cascade_engine import FixedCascade
from cascade_engine.demo.family import t5_family
from cascade_engine.errors import RequestError
from cascade_engine.policy import write_policy
from tests.bench.conftest import assert_sane
from tests.data import data_path

RANDOM = ["--random-prompts", "--questions", "4", "--max-new-tokens", "12", "--seconds", "0"]


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation, "SETTLE_SECONDS", 0.0)


class Clock:
    """Time passes in the cases alone."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def case(self, seconds: float, tokens: int) -> Any:
        def answer(prompts: list[list[int]]) -> Answers:
            self.now += seconds
            return Answers([[prompt[0]] * tokens for prompt in prompts], len(prompts))

        return answer


@pytest.mark.parametrize(("budget", "rounds"), [(0.0, 1), (11.9, 1), (12.1, 2), (18.1, 3)])
@pytest.mark.usefixtures("settled")
def test_whole_rounds_fill_the_time(budget: float, rounds: int) -> None:
    clock = Clock()
    cases = {"a": clock.case(1.0, 4), "b": clock.case(2.0, 4)}
    tallies = run_groups(cases, [[[1], [2]], [[3], [4]]], budget, clock)
    # Two groups take 6 s; the first one is answered once before that.
    assert clock.now == 3.0 + 6.0 * rounds
    assert tallies["a"].seconds == [1.0] * 2 * rounds
    assert tallies["b"].tokens == [8] * 2 * rounds
    assert tallies["b"].answers == [[i] * 4 for i in (1, 2, 3, 4)] * rounds
    assert tallies["b"].calls == 4 * rounds
    assert ratio(tallies["a"], tallies["b"])["total"] == 2.0


def test_a_ratio_weighs_groups_by_their_tokens() -> None:
    slow, fast = Tally([], [1.0, 3.0], [10, 10]), Tally([], [0.5, 0.5], [10, 30])
    found = ratio(fast, slow)
    assert found["total"] == 40.0 / 5.0
    assert (found["p10"], found["p90"]) == (2.0, 18.0)


def test_answers_end_with_their_stop() -> None:
    assert until_stop([5, 6, 2, 7, 2], [2]) == [5, 6, 2]
    assert until_stop([5, 6], [2]) == [5, 6]
    assert until_stop([5, 2], []) == [5, 2]


def test_groups_are_full() -> None:
    assert e2e.grouped([[1], [2], [3], [4], [5]], 2) == [[[1], [2]], [[3], [4]]]


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_the_grid_has_twelve_settings(levels: int) -> None:
    models = e2e_cases.Models(Path(), (Path(),) * (levels - 1), None, None, "f32", 1, 1, 8, ())
    settings = e2e_cases.settings_of(["fixed"], True, models)
    policies = [s.policy for s in settings if isinstance(s.policy, FixedCascade)]
    assert len(policies) == 13
    assert len({repr(policy) for policy in policies[1:]}) == 12
    for policy in policies:
        policy.check(levels)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("6,0;0,8 trees=3", "'trees' is none of tree, siblings, lenience"),
        ("6,0;0,8 tree=x", "tree needs a number, got 'x'"),
        ("6", "there are 2 drafting levels"),
    ],
)
def test_what_is_no_setting_is_named(text: str, message: str) -> None:
    models = e2e_cases.Models(Path(), (Path(),), None, None, "f32", 1, 1, 8, ())
    with pytest.raises(RequestError, match=message):
        e2e_cases.parse_setting(text, models)


def test_a_setting_may_be_a_policy_file(tmp_path: Path) -> None:
    policy = FixedCascade([[3, 0], [0, 4]], 2.0)
    write_policy(tmp_path / "found.json", policy, ["large", "small"], {})
    models = e2e_cases.Models(Path("large"), (Path("small"),), None, None, "f32", 1, 1, 8, ())
    name = str(tmp_path / "found.json")
    assert e2e_cases.parse_setting(name, models) == (name, policy)
    with pytest.raises(RequestError, match="is for the models"):
        e2e_cases.parse_setting(name, models._replace(target=Path("other")))


@pytest.mark.usefixtures("settled")
def test_a_run_with_transformers(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In float32 transformers ends in the same tokens; what is not installed is shown."""
    pytest.importorskip("transformers")
    monkeypatch.setitem(e2e_cases.PEERS, "llamacpp", ("a_module_that_is_not_there",))
    out = tmp_path / "report.json"
    e2e.main(
        [
            *(*RANDOM, "--target", str(tiny), "--draft", str(tiny), "--dtype", "f32"),
            *("--peers", "hf,hf-assisted,hf-prompt-lookup,llamacpp", "--rows", "1,2"),
            *(
                "--setting",
                "4,0;0,6 tree=8 siblings=1",
                "--setting",
                "auto",
                "--threads",
                "1",
                "--json",
                str(out),
            ),
        ]
    )
    report = json.loads(out.read_text())
    assert_sane(report["rows"])
    assert [found["groups"] for found in report["rows"].values()] == [4, 2]
    for found in report["rows"].values():
        cases = found["cases"]
        assert list(cases) == [
            *("plain", "4,0;0,6 tree=8 siblings=1", "auto"),
            *("hf", "hf-assisted", "hf-prompt-lookup"),
        ]
        for name, case in cases.items():
            assert (case["same_as_plain"], case["answers"], case["tokens"]) == (4, 4, 48), name
        assert cases["plain"]["tokens_per_target_call"] == 1.0
        assert cases["hf"]["tokens_per_target_call"] == 1.0
        # The draft is the target itself.
        assert cases["4,0;0,6 tree=8 siblings=1"]["tokens_per_target_call"] > 3
        assert cases["hf-assisted"]["tokens_per_target_call"] >= 1.5
        assert set(cases["plain"]["over"]) == {"hf", "hf-assisted", "hf-prompt-lookup"}
    shown = capsys.readouterr().out
    assert "skipped: not installed (a_module_that_is_not_there;" in shown


@pytest.mark.usefixtures("settled")
def test_answers_that_differ_are_counted(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    models = e2e_cases.Models(tiny, (), "none", None, "f32", 1, 2, 6, ())
    ours = e2e_cases.open_ours(models, e2e_cases.settings_of(["fixed"], False, models))
    hf = Transformers(tiny, None, torch.float32, 6, ())
    right = hf.plain

    def wrong(prompts: list[list[int]]) -> Answers:
        answers = right(prompts)
        return Answers([answers.tokens[0], *([0] * 6 for _ in prompts[1:])], answers.calls)

    peers = {"hf": wrong, "hf-prompt-lookup": hf.prompt_lookup}
    found = e2e.measure_rows(2, ours, peers, [[5, 6, 7], [8, 9], [10], [11, 12]], 0)
    cases = found["cases"]
    assert (cases["hf"]["same_as_plain"], cases["hf"]["same_as_own_plain"]) == (2, 4)
    assert cases["hf-prompt-lookup"]["same_as_plain"] == 4
    assert cases["hf-prompt-lookup"]["same_as_own_plain"] == 2


@pytest.mark.usefixtures("settled")
def test_llama_cpp_generates_the_same(tiny: Path, tmp_path: Path) -> None:
    for name in e2e_cases.PEERS["llamacpp-draft"]:
        pytest.importorskip(name, reason="needs the bench extra")
    out = tmp_path / "report.json"
    e2e.main(
        [
            *(*RANDOM, "--target", str(tiny), "--draft", str(tiny), "--dtype", "f32"),
            *("--peers", "llamacpp,llamacpp-draft", "--rows", "1,2", "--threads", "1"),
            *("--json", str(out)),
        ]
    )
    for found in json.loads(out.read_text())["rows"].values():
        cases = found["cases"]
        assert cases["llamacpp"]["same_as_plain"] == 4
        assert cases["llamacpp-draft"]["same_as_own_plain"] == 4
        assert cases["llamacpp-draft"]["tokens_per_target_call"] > 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--peers", "hf,vllm"], "unknown peer 'vllm': some of hf, hf-assisted"),
        (["--rows", "1,x"], "--rows must be numbers >= 1"),
        (["--rows", "0"], "--rows must be numbers >= 1"),
        (["--questions", "0"], "--questions must be >= 1, got 0"),
        (["--target", "x"], "--target needs --prompts FILE or --random-prompts"),
        (["--draft", "x"], "--draft needs --target"),
    ],
)
def test_wrong_arguments_are_named(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        e2e.main(arguments)
    assert message in capsys.readouterr().err


def test_an_encoder_decoder_is_refused() -> None:
    target = str(t5_family().target)
    with pytest.raises(SystemExit, match=r"bench\.e2e: .*t5-target is no LLaMA model: bench\.t5"):
        e2e.main(["--target", target, "--random-prompts"])


def test_the_json_names_bars_that_were_not_measured() -> None:
    bars = e2e.judge(e2e.E2E_BARS, {"rows": {}}, e2e.EMBEDDED, "bf16")
    assert len(bars) == 9
    assert all(bar["pass"] is None for bar in bars)
    assert not e2e.judge(e2e.E2E_BARS, {"rows": {}}, None, "bf16")


def test_recorded_answers(tmp_path: Path) -> None:
    """Every case says what was recorded; figures are labelled."""
    data_path("transcripts", "spec_bench_vicuna7b_dev.jsonl")
    out = tmp_path / "out.json"
    few = ["--questions", "2", "--max-new-tokens", "16", "--seconds", "0", "--threads", "1"]
    e2e.main(["--replay", "15m", "--rows", "1,2", *few, "--setting", "10", "--json", str(out)])
    report = json.loads(out.read_text())
    assert_sane(report["rows"])
    assert "replayed" in report["model"][0]
    assert "replayed" in report["dtype"]
    for found in report["rows"].values():
        assert {case["same_as_plain"] for case in found["cases"].values()} == {2}
        assert found["cases"]["10"]["tokens_per_target_call"] > 1.0
        assert found["cases"]["plain"]["tokens_per_target_call"] == 1.0
    with pytest.raises(SystemExit):
        e2e.main(["--replay", "15m", "--random-prompts"])
