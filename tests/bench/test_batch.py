"""The batch benchmark ends in bounded time, whatever a case costs, and reports what it did."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import batch
from tests.data import data_path


class Clock:
    """Time that passes only in the cases."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(batch.time, "perf_counter", lambda: self.now)

    def case(self, prompt_seconds: float, token_seconds: float) -> object:
        def run(new: int) -> None:
            self.now += prompt_seconds + new * token_seconds

        return run


@pytest.mark.parametrize(
    ("prompt", "token", "work"),
    [(0.001, 0.0001, (32, 5)), (0.1, 0.05, (32, 3)), (1.0, 0.05, (20, 1)), (50.0, 1.0, (4, 1))],
)
def test_work_fits_the_budget(
    prompt: float, token: float, work: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    case = clock.case(prompt, token)
    new, rounds = batch.fitting_work({"a": case, "b": case}, 32, 5, seconds=36.0)  # type: ignore[dict-item]
    assert (new, rounds) == work
    clock.now = 0.0
    for _ in range(2 * (batch.RUNS_BEFORE + 2 * rounds)):
        case(new)  # type: ignore[operator]
    assert clock.now <= 36.0 or (new, rounds) == (batch.FEWEST_TOKENS, 1)


def test_first_tokens_are_measured_at_least_once_and_no_longer_than_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock(monkeypatch)
    case = batch.Case.__new__(batch.Case)
    case.prompts = [[5], [6]]
    case.policy = None  # type: ignore[assignment]
    case.engine = type("Any", (), {"set_policy": lambda self, policy: None})()
    calls = []

    def first_token(prompt: list[int], others: int) -> float:
        seconds = len(prompt) / 8 + others * 1.5
        clock.now += seconds
        calls.append(tuple(prompt))
        return seconds

    monkeypatch.setattr(case, "_first_token", first_token)
    found = case.first_token_seconds(0.0)
    assert found == {"ratio": 2.5, "alone": 1.0, "in_full_batch": 2.5}
    assert len(calls) == len(set(calls)) == 2 * 2 * 1
    case.first_token_seconds(1e9)
    assert len(calls) == 2 * 2 * (1 + 9)


def test_a_small_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "batch.json"
    options = ["--dtype", "f32", "--threads", "1", "--peers", "", "--rounds", "1"]
    options += ["--seconds", "1", "--new-tokens", "6", "--rows", "1,3", "--json", str(out)]
    batch.main(["--target", str(data_path("stories260k")), *options])
    assert "  3 rows, tokens/s: plain, ragged" in capsys.readouterr().out
    report = json.loads(out.read_text())
    assert list(report["rows"]) == ["1", "3"]
    for found in report["rows"].values():
        assert found["same_tokens"]
        assert 4 <= found["new_tokens"] <= 6
        assert len(found["tokens_per_second"]) == 4
        for first in found["first_token_seconds"].values():
            assert first["ratio"] == pytest.approx(first["in_full_batch"] / first["alone"])
