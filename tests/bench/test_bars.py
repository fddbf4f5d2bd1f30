"""Which bars hold where, and when they are met."""

from __future__ import annotations

import pytest

from bench.bars import DECODE_BARS, OPS_BARS, Bar, judge, show_bars


@pytest.mark.parametrize(
    ("at_most", "value", "met"),
    [
        (True, 0.49, True),
        (True, 0.5, True),
        (True, 0.51, False),
        (False, 0.49, False),
        (False, 0.5, True),
        (False, 0.51, True),
    ],
)
def test_a_bar_is_met_up_to_its_limit(at_most: bool, value: float, met: bool) -> None:
    bar = Bar("x", ("a", "b"), 0.5, at_most)
    verdict = bar.judge({"a": {"b": {"median": value, "p10": 0.0, "p90": 9.0}}})
    assert verdict == {
        "name": "x",
        "value": value,
        "bar": "<= 0.5" if at_most else ">= 0.5",
        "pass": met,
    }
    assert bar.value({"a": {"b": value}}) == value


@pytest.mark.parametrize("report", [{}, {"a": None}, {"a": {}}, {"a": {"b": None}}, {"a": 3.0}])
def test_what_was_not_measured_is_neither_met_nor_missed(report: dict[str, object]) -> None:
    assert Bar("x", ("a", "b"), 0.5, True).judge(report)["pass"] is None


def limits(shape: str, dtype: str) -> dict[tuple[str, ...], str]:
    """The bars that are judged, by the path of their figure."""
    judged = judge(DECODE_BARS, {}, shape, dtype)
    held = [b for b in DECODE_BARS if b.judge({}) in judged and shape in b.shapes]
    found = {bar.path: bar.judge({})["bar"] for bar in held}
    assert len(found) == len(judged)
    return found


def test_the_table_of_the_large_shape() -> None:
    against = {("ours_over_llamacpp", k): "<= 0.5" for k in ("8", "16", "32")}
    other = {
        ("forms", "uncompressed", "review_over_decode", k): f"<= {limit}"
        for k, limit in (("8", 1.2), ("16", 1.4), ("32", 2.3))
    }
    assert limits("110m", "bf16") == {**against, **other} | {
        ("ours_over_llamacpp", "1"): "<= 0.65",
        ("fraction_of_read_bandwidth",): ">= 0.8",
        ("review_over_decode", "8"): "<= 1.2",
        ("review_over_decode", "16"): "<= 1.4",
        ("review_over_decode", "32"): "<= 2.3",
        ("prefill_over_ours", "hf"): ">= 1.4",
        ("outside_native", "share"): "<= 0.1",
        ("memory", "over_weights_and_cache"): "<= 1.1",
    }


def test_the_tables_of_other_shapes_and_dtypes() -> None:
    small, int8 = limits("15m", "bf16"), limits("110m", "int8")
    assert small["outside_native", "share"] == "<= 0.25"
    assert small["ours_over_llamacpp", "1"] == "<= 0.65"
    assert ("review_over_decode", "8") not in small
    assert int8["bf16_over_ours", "1"] == ">= 1.7"
    assert int8["bf16_over_ours", "16"] == ">= 1.0"
    assert ("ours_over_llamacpp", "1") not in int8
    assert limits("110m", "f32") == {
        ("fraction_of_read_bandwidth",): ">= 0.8",
        ("ours_over_llamacpp", "8"): "<= 0.5",
        ("ours_over_llamacpp", "16"): "<= 0.5",
        ("ours_over_llamacpp", "32"): "<= 0.5",
        ("outside_native", "share"): "<= 0.1",
        ("memory", "over_weights_and_cache"): "<= 1.1",
    }
    assert judge(DECODE_BARS, {}, None, "bf16") == []
    assert judge(DECODE_BARS, {}, "tiny", "bf16") == []


def test_the_table_is_printed_with_its_verdicts(capsys: pytest.CaptureFixture[str]) -> None:
    figures = {
        "fraction_of_ceiling": {"attention 1x1@8192": 0.7},
        "torch_over_ours": {"attention 1x16@8192": 1.5},
    }
    show_bars(judge(OPS_BARS, figures, "110m", "f32"))
    met, missed, absent = capsys.readouterr().out.splitlines()
    assert met.split()[-4:] == ["0.700", ">=", "0.6", "pass"]
    assert missed.split()[-4:] == ["1.500", ">=", "2.0", "FAIL"]
    assert absent.split()[-5:] == ["-", ">=", "2.0", "not", "measured"]
