"""The trace event format: a process for each level, a thread for each row."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from cascade_engine.trace import load
from cascade_engine.trace.chrome import chrome
from tests.trace.support import NASTY, write


def test_the_trace_by_hand(tmp_path: Path) -> None:
    written = json.loads(json.dumps(chrome(load(write(tmp_path / "t")))))
    events = written["traceEvents"]
    assert written["displayTimeUnit"] == "ms"
    names = {
        (e["pid"], e["tid"], e["name"]): e["args"].get("name") for e in events if e["ph"] == "M"
    }
    processes = {pid: name for (pid, _, kind), name in names.items() if kind == "process_name"}
    assert processes == {1: "big", 2: "small", 3: NASTY, 4: "engine"}
    threads = {(pid, tid): n for (pid, tid, kind), n in names.items() if kind == "thread_name"}
    first, second = f"1: {NASTY}", "2: b sample 1"
    assert threads == {
        (1, 1): first, (1, 2): second, (2, 1): first, (3, 1): first, (3, 2): second, (4, 1): "steps"
    }  # fmt: skip
    spans = [e for e in events if e["ph"] == "X"]
    assert {(e["pid"], e["tid"]) for e in spans} == set(threads)
    assert Counter(e["cat"] for e in spans) == {"step": 3, "prefill": 1, "draft": 2, "review": 4}
    (small,) = [e for e in spans if e["pid"] == 2]
    assert (small["name"], small["ts"], small["dur"]) == ("review 1/3", 1.25e6, 0.25e6)
    assert small["args"] == {
        "round": 0, "rows in the pass": 1, "kept": " b", "rejected": "\n a", "own": " d"
    }  # fmt: skip
    tree = next(e for e in spans if e["ts"] == 3.0e6 and e["cat"] == "review")
    assert (tree["args"]["kept"], tree["args"]["rejected"]) == (" b\n", " a a f</script>")


def test_requests_span_their_life(tmp_path: Path) -> None:
    events = chrome(load(write(tmp_path / "t")))["traceEvents"]
    begun = {e["id"]: e["ts"] for e in events if e["ph"] == "b"}
    ended = {e["id"]: e["ts"] for e in events if e["ph"] == "e"}
    assert (begun, ended) == ({0: 0, 1: 0}, {0: 3.5e6, 1: 3.5e6})
