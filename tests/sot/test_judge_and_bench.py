"""Judges over HTTP, and the benchmark from end to end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cascade_engine.errors import RequestError
from tests.sot.server import Reply, serving
from tests.sot.test_endpoint import answer, content

pytest.importorskip("openai")

from bench.sot import main
from bench.sot_answers import VICUNA, load_questions
from cascade_engine.sot.endpoint import Endpoint, EndpointOptions
from cascade_engine.sot.judge import ASPECTS, GENERAL, JUDGE_FOLDER, Judge, Pair, net_win_rate
from tests.data import data_path


def between(text: str, begin: str, end: str) -> str:
    return text.split(begin)[1].split(end)[0].strip()


def by_length(body: dict[str, Any]) -> Reply:
    """Prefers the longer answer; says so in words that must not be mistaken for the verdict."""
    text = content(body)
    first = between(text, "Answer 1 begins.", "Answer 1 ends.")
    second = between(text, "Answer 2 begins.", "Answer 2 ends.")
    said = "TIE" if len(first) == len(second) else "1" if len(first) > len(second) else "2"
    return Reply(f"At first VERDICT: 1 seemed right.\nVERDICT: {said}")


def judge_on(url: str, folder: Path = JUDGE_FOLDER) -> Judge:
    return Judge(Endpoint(EndpointOptions(url=url, model="j", attempts=1, backoff=0.0)), folder)


def test_both_orders_decide() -> None:
    pairs = [
        Pair("Q?", "long answer", "short"),
        Pair("Q?", "x", "much longer"),
        Pair("Q", "a", "b"),
    ]
    with serving(by_length) as server:
        found = judge_on(server.url).compare(pairs)
        assert len(server.requests) == 6
    assert [j.verdict for j in found] == ["win", "loss", "tie"]
    assert found[0].orders == ("1", "2")
    assert net_win_rate(found) == {
        "net_win_rate": 0.0, "win": 1, "tie": 1, "loss": 1, "not_judged": 0,
    }  # fmt: skip


def test_a_judge_that_likes_the_first_decides_nothing() -> None:
    with serving(lambda body: Reply("VERDICT: 1")) as server:
        found = judge_on(server.url).compare([Pair("Q?", "a", "b")])
    assert found[0].verdict == "tie"


def test_a_tie_in_one_order_leaves_the_other() -> None:
    def half(body: dict[str, Any]) -> Reply:
        first = between(content(body), "Answer 1 begins.", "Answer 1 ends.")
        return Reply("**VERDICT: 1**" if first == "good" else "Verdict: Tie")

    with serving(half) as server:
        assert judge_on(server.url).compare([Pair("Q?", "good", "b")])[0].verdict == "win"
        assert judge_on(server.url).compare([Pair("Q?", "b", "good")])[0].verdict == "loss"


def test_no_verdict_is_not_counted() -> None:
    with serving(lambda body: Reply("Both are fine.")) as server:
        found = judge_on(server.url).compare([Pair("Q?", "a", "b")])
    assert found[0].verdict is None
    assert "no verdict" in (found[0].error or "")
    with serving(lambda body: Reply(status=500)) as server:
        found += judge_on(server.url).compare([Pair("Q?", "a", "b")])
    assert net_win_rate(found)["not_judged"] == 2


def test_answers_are_never_read_as_places(tmp_path: Path) -> None:
    with serving(by_length) as server:
        judge_on(server.url).compare([Pair("{first}", "{second} {question}", "b")])
        assert "{second} {question}" in content(server.requests[0])
        judge = judge_on(server.url, tmp_path)
        with pytest.raises(RequestError, match=r"has no general\.txt"):
            judge.compare([])
        (tmp_path / "general.txt").write_text("{question} {first}")
        with pytest.raises(RequestError, match=r"no place \{second\}"):
            judge.compare([])


@pytest.mark.parametrize("aspect", [GENERAL, *ASPECTS])
def test_every_aspect_has_its_prompt(aspect: str) -> None:
    with serving(by_length) as server:
        assert judge_on(server.url).compare([Pair("Q?", "aa", "b")], aspect)[0].verdict == "win"
        assert aspect in content(server.requests[0]) or aspect == GENERAL


def test_questions_have_their_categories() -> None:
    data_path("sot", "vicuna_router.csv")
    questions = load_questions("vicuna", None)
    assert len(questions) == 80 == sum(count for _, count in VICUNA)
    assert questions[0].category == "generic"
    assert next(q for q in questions if "C++ program" in q.text).category == "coding"
    assert next(q for q in questions if "5x^3" in q.text).category == "math"
    assert len(load_questions("wizardlm", None)) == 218
    assert len({q.text for q in load_questions("wizardlm", 20)}) == 20


def test_the_benchmark_judges_an_endpoint(tmp_path: Path) -> None:
    (tmp_path / "questions.txt").write_text("How can I save water?\nWhat are good habits?\n")
    report_file = tmp_path / "report.json"

    def both(body: dict[str, Any]) -> Reply:
        return by_length(body) if "Answer 1 begins." in content(body) else answer(body)

    with serving(both) as server:
        main(
            [
                *("--endpoint", server.url, "--model", "m", "--judge-endpoint", server.url),
                *("--questions", str(tmp_path / "questions.txt"), "--json", str(report_file)),
                *("--prices", "1,2", "--picture", str(tmp_path / "p.png"), "--aspects"),
            ]
        )  # fmt: skip
    entry = json.loads(report_file.read_text())["answers"]["all"]
    assert entry["questions"] == 2
    # The server's ordinary answer is the skeleton alone, which is shorter.
    assert entry["sot"]["judge"]["general"]["net_win_rate"] == 1.0
    assert set(entry["sot"]["judge"]) == {GENERAL, *ASPECTS}
    assert entry["sot"]["prompt_tokens"]["sot"] > 5 * entry["sot"]["prompt_tokens"]["normal"]
    assert entry["sot"]["cost"]["sot"] > entry["sot"]["cost"]["normal"]
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


def test_the_benchmark_times_the_embedded_models(tmp_path: Path) -> None:
    report = main(
        [
            *("--limit", "2", "--rounds", "1", "--concurrent", "1,2", "--threads", "1"),
            *("--picture", str(tmp_path / "p.png"), "--json", str(tmp_path / "r.json")),
        ]
    )  # fmt: skip
    assert report["latency"]["same_text"]
    assert report["latency"]["questions"] == 2
    assert set(report["throughput"]) == {"1", "2"}
    # Nothing was known of the load: the first question goes by points.
    assert report["trigger"]["by_points"] >= 1
    assert report["latency"]["fork_over_left_padded_prefill"] <= 0.35
    assert report["points"]["at_least_3_points"] == 1.0
    assert (tmp_path / "p.png").exists()
    assert json.loads((tmp_path / "r.json").read_text())["machine"]["cores"]
