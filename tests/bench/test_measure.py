"""Quantiles, paired ratios and the order of interleaved runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.measure import ReadCeiling, interleaved, paired_ratio, quantiles, write_json


def test_quantiles() -> None:
    assert quantiles(range(101)) == {"median": 50, "p10": 10, "p90": 90}
    assert quantiles([4.0]) == {"median": 4.0, "p10": 4.0, "p90": 4.0}
    assert quantiles([1.0, 2.0])["median"] == 1.5


def test_a_paired_ratio_is_the_median_of_ratios_not_the_ratio_of_medians() -> None:
    assert paired_ratio([2.0, 30.0, 4.0], [1.0, 10.0, 4.0])["median"] == 2.0
    with pytest.raises(ValueError, match="shorter"):
        paired_ratio([1.0, 2.0], [1.0])


def test_every_round_runs_every_case_in_turn() -> None:
    calls: list[str] = []
    cases = {name: (lambda name=name: calls.append(name)) for name in "ab"}
    times = interleaved(cases, rounds=3, warmup=1)
    assert calls == ["a", "b", *["a", "a", "b", "b"] * 3]
    assert {name: len(t) for name, t in times.items()} == {"a": 3, "b": 3}
    assert min(times["a"] + times["b"]) > 0


def test_the_read_ceiling_counts_the_bytes_of_its_array() -> None:
    ceiling = ReadCeiling(threads=1)
    ceiling()
    assert ceiling.num_bytes == (1 << 16) * 4


def test_json_is_written_where_asked(tmp_path: Path) -> None:
    write_json(None, {})
    write_json(str(tmp_path / "a.json"), {"x": 1})
    assert json.loads((tmp_path / "a.json").read_text())["x"] == 1
