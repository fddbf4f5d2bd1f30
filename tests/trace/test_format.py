"""Reading traces: whole ones, cut ones, damaged ones, those of other programs."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from cascade_engine.errors import TraceError
from cascade_engine.trace import load, statistics
from cascade_engine.trace.format import read_events
from cascade_engine.trace.writer import TraceWriter
from tests.trace.support import EVENTS, HEADER, lines, write


def test_the_figures_of_a_trace_by_hand(tmp_path: Path) -> None:
    counted = statistics(load(write(tmp_path / "t")))
    levels = counted.pop("levels")
    assert counted == {
        "requests": {"added": 2, "finished": 1, "aborted": 1, "preempted": 1},
        "prompt_tokens": 3,
        "cached_prompt_tokens": 1,
        "new_tokens": 6,
        "steps": 3,
        "step_seconds": 2.5,
        "prefill_seconds": 0.25,
        "tokens_per_target_review": 7 / 3,
        "tokens_per_pass": [1, 0, 2],
    }
    names = [level.pop("name") for level in levels]
    assert names == HEADER["levels"]
    assert levels == [
        {"passes": 2, "rows": 3, "seconds": 1.5, "drafted": [], "accepted": []},
        {"passes": 1, "rows": 1, "seconds": 0.25, "drafted": [2, 2], "accepted": [0, 2]},
        {"passes": 1, "rows": 2, "seconds": 0.125, "drafted": [2, 1, 1], "accepted": [2]},
    ]


def test_rows_and_rounds_of_a_trace_by_hand(tmp_path: Path) -> None:
    history = load(write(tmp_path / "t"))
    first, second = history.rows
    assert [len(this.actions) for this in first.rounds] == [3, 1]
    assert [this.tokens for this in first.rounds] == [[11, 13, 14], [11, 12]]
    assert first.rounds[0].actions[1].depths() == [0, 1, 2]
    assert first.rounds[1].actions[0].depths() == [0, 0, 1, 1, 2, 0]
    assert (first.begun, first.ended, first.finish) == (0.5, 3.5, "stop")
    assert (second.begun, second.ended, second.finish) == (None, 3.5, "dropped")
    assert [len(this.actions) for this in second.rounds] == [2]
    assert history.piece(10) == " a"
    assert history.piece(99) == "#99"


def test_a_cut_last_line_is_left_out(tmp_path: Path) -> None:
    """Wherever the run was killed, what is complete can be read."""
    whole = lines()
    ends = [i + 1 for i, c in enumerate(whole) if c == "\n"]
    for cut in range(ends[0], len(whole), 7):
        _, events, truncated = read_events(write(tmp_path / "t", whole[:cut]))
        complete = sum(end <= cut for end in ends) - 1
        assert events == EVENTS[:complete]
        assert truncated == (cut not in ends)
        assert len(load(tmp_path / "t").rows) <= 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no complete header line"),
        ('{"format": "casc', "no complete header line"),
        ("hello\n", "line 1 is not a JSON object"),
        ("[1]\n", "line 1 is not a JSON object"),
        ('{"format": "another"}\n', "no format 'cascade_engine.trace'"),
        (lines([], HEADER | {"version": 2}), "version 2; this program reads version 1"),
        (lines([], HEADER | {"levels": ["one"]}), "must name a target and a statistical level"),
        (lines([], HEADER | {"levels": "two"}), "must name a target and a statistical level"),
        (lines([], HEADER | {"started": None}), "no valid started"),
        (lines() + "{oops}\n" + lines(), rf"line {len(EVENTS) + 2} is not a JSON object"),
        (lines([{"event": "step", "t": 0}]), "line 2: step has no valid s"),
        (lines([{"event": "step", "t": True, "s": 1}]), "step has no valid t"),
        (lines() + '{"event": "step", "t": NaN, "s": 1}\n', "step has no valid t"),
        (lines([{"event": "pieces", "pieces": {"x": "y"}}]), "pieces has no valid pieces"),
        (lines([{"event": "admit", "t": 0, "row": 0, "cached": 0}]), "does not fit"),
        (lines([*EVENTS[:3], EVENTS[2]]), "request at t=0.0 does not fit what came before"),
    ],
)
def test_what_is_no_trace(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=message):
        load(write(tmp_path / "t", text))


REVIEW = next(i for i, event in enumerate(EVENTS) if "parents" in str(event))


@pytest.mark.parametrize(
    "change",
    [
        {"tokens": [10, 11, 10, 12, 15]},
        {"tokens": [10, 11, 10, 12, 15, -1]},
        {"tokens": [10, 11, 10, 12, 15, 2**60]},
        {"tokens": "abcd"},
        {"probs": [1]},
        {"probs": [1, 1, 1, 1, 1, "1"]},
        {"parents": [-1, -1, 1, 3, 3, -1]},
        {"parents": [-1, -1, 1, 1, 3, -2]},
        {"parents": [-1, -1, 1, 1, 3, True]},
        {"parents": [-1]},
        {"sources": [1, 2, 2]},
        {"kept": [1, 2, 3]},
        {"kept": [3]},
        {"kept": [6]},
        {"kept": None},
        {"token": None},
        {"prob": "x"},
        {"at": 1.5},
        {"row": "0"},
    ],
    ids=str,
)
def test_a_damaged_review(change: dict[str, Any], tmp_path: Path) -> None:
    events = copy.deepcopy(EVENTS)
    events[REVIEW]["rows"][0] |= change
    with pytest.raises(TraceError, match=f"line {REVIEW + 2}: review has no valid rows"):
        load(write(tmp_path / "t", lines(events)))


@pytest.mark.parametrize(
    ("number", "change"),
    [
        (REVIEW, {"level": 3}),
        (REVIEW, {"rows": [EVENTS[REVIEW]["rows"][0] | {"sources": [1, 2, 3, 1, 1, 1]}]}),
        (REVIEW, {"rows": [EVENTS[REVIEW]["rows"][0] | {"row": 2}]}),
        (REVIEW + 1, {"levels": [2, 3]}),
        (REVIEW + 1, {"texts": [" b"]}),
        (REVIEW + 2, {"row": 2}),
    ],
)
def test_events_that_do_not_fit(number: int, change: dict[str, Any], tmp_path: Path) -> None:
    events = copy.deepcopy(EVENTS)
    events[number] |= change
    with pytest.raises(TraceError, match="does not fit what came before"):
        load(write(tmp_path / "t", lines(events)))


def test_what_a_later_program_adds_is_passed_over(tmp_path: Path) -> None:
    events = [event | {"more": [1, {}]} for event in EVENTS]
    events.insert(4, {"event": "weather", "t": 1, "sun": True})
    read = load(write(tmp_path / "t", lines(events, HEADER | {"more": 1})))
    assert statistics(read) == statistics(load(write(tmp_path / "u")))


def test_what_is_written_is_read(tmp_path: Path) -> None:
    """Also text that is no text, and before the file is closed: a line is there or it is not."""
    writer = TraceWriter(tmp_path / "t", ["a", "b"])
    assert read_events(tmp_path / "t")[1] == []
    assert writer.unnamed([3, 1, 3]) == [1, 3]
    writer.name({1: "\ud800\u2028", 3: "é"})
    assert writer.unnamed([3, 4]) == [4]
    writer.add("step", s=0.25)
    assert read_events(tmp_path / "t")[1] == []
    writer.flush()
    header, events, truncated = read_events(tmp_path / "t")
    assert (header["levels"], truncated) == (["a", "b"], False)
    assert events[0] == {"event": "pieces", "pieces": {"1": "\ud800\u2028", "3": "é"}}
    assert events[1]["s"] == 0.25
    assert 0 <= events[1]["t"] < 60
    writer.close()
    writer.close()
    assert all(json.loads(line) for line in (tmp_path / "t").read_bytes().splitlines())
