"""bench.decode on the tiny shape: the report and its table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench import decode, llamacpp
from tests.bench.conftest import assert_sane

QUICK = ["--shape", "tiny", "--dtype", "f32", "--threads", "1", "--rounds", "2", "--context", "24"]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """With transformers alone: llama.cpp is an extra that need not be there."""
    path = tmp_path_factory.mktemp("decode") / "decode.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decode, "measure_memory", lambda *_: None)
        decode.main([*QUICK, "--peers", "hf", "--json", str(path)])
    return json.loads(path.read_text())


def test_a_report_holds_every_figure(report: dict[str, Any]) -> None:
    assert_sane(report)
    steps = {f"{who} {k}" for who in ("ours", "hf") for k in decode.REVIEWS}
    trees = {f"tree {k}" for k in decode.TREES}
    assert set(report["milliseconds"]) == steps | trees | {"read ceiling"}
    assert list(report["tree_over_decode"]) == [str(k) for k in decode.TREES]
    ks = [str(k) for k in decode.REVIEWS]
    assert list(report["review_over_decode"]) == list(report["ours_over_hf"]) == ks
    assert report["review_over_decode"]["1"]["median"] == 1.0
    assert set(report["prefill_512_milliseconds"]) == {"ours", "hf"}
    assert set(report["prefill_over_ours"]) == {"hf"}
    assert (report["dtype"], report["context"], report["rounds"]) == ("float32", 24, 2)
    assert (report["compressed"], report["forms"]) == (False, {})
    assert report["machine"]["threads"] == 1
    hf = report["peers"]["hf"]
    assert 0 < hf["logits_difference"] < decode.TOLERANCE["f32"]
    assert (hf["weights"], hf["cache"]) == ("float32", "float32")


def test_both_forms_of_the_weights(tmp_path: Path) -> None:
    """Each by its own step."""
    parsed = ["--shape", "tiny", "--peers", "none", "--threads", "1", "--context", "8"]
    target = decode.write_shape("tiny", "bf16", tmp_path)
    for dtype, names in (("bf16", ["compressed"]), ("int8", ["bf16", "compressed"])):
        args = decode.parse([*parsed, "--dtype", dtype])
        ours = decode.Ours(target, decode.DTYPE_NAMES[dtype], 1, 8)
        forms = decode.open_forms(target, ours, args, 1)
        assert [form.compressed for form in forms.values()] == [n == "compressed" for n in names]
        assert list(forms) == names
    times = {
        f"{who} {k}": [float(k * t)] * 2 for who, t in (("a", 1), ("b", 2)) for k in decode.REVIEWS
    }
    found = decode.by_own_step("b", ours, times, [1e9, 2e9])
    assert found["review_over_decode"]["8"]["median"] == 8.0
    assert found["fraction_of_read_bandwidth"]["p90"] == found["bytes_per_step"] / 2 / 1e9


def test_ratios_are_ours_over_theirs(report: dict[str, Any]) -> None:
    ratio, ms = report["ours_over_hf"]["1"], report["milliseconds"]
    low = ms["ours 1"]["p10"] / ms["hf 1"]["p90"]
    high = ms["ours 1"]["p90"] / ms["hf 1"]["p10"]
    assert low <= ratio["median"] <= high < 1
    assert report["prefill_over_ours"]["hf"]["median"] > 1


def test_no_shape_of_the_table_no_bars(report: dict[str, Any]) -> None:
    assert report["bars"] == []


def test_the_table_is_printed(report: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    memory = {
        "resident_bytes": 2e6,
        "over_weights_and_cache": 1.05,
        "peak_over_weights_and_cache": 1.1,
    }
    bf16 = {key.replace("hf", "bf16"): t for key, t in report["milliseconds"].items()}
    prefill = {"ours": {"median": 2.0}, "hf": {"median": 8.0}, "bf16": {"median": 4.0}}
    whole = report | {
        "memory": memory,
        "bars": [{"name": "a bar", "value": 1.0, "bar": "<= 1.1", "pass": True}],
        "peers": report["peers"] | {"bf16": {"logits_difference": 0.01}},
        "milliseconds": report["milliseconds"] | bf16,
        "bf16_over_ours": {str(k): {"median": 2.0} for k in decode.REVIEWS},
        "prefill_512_milliseconds": prefill,
        "prefill_over_ours": {"hf": {"median": 4.0}, "bf16": {"median": 2.0}},
    }
    decode.show(whole)
    lines = capsys.readouterr().out.splitlines()
    rows = [line.split() for line in lines if line.split()[0].isdigit()]
    assert [row[0] for row in rows] == [str(k) for k in decode.REVIEWS]
    assert {row[-1] for row in rows} == {"0.50"}
    assert "prefill of 512: 2.0 ms; hf 8.0 ms, 4.00x; bf16 4.0 ms, 2.00x" in lines
    assert "memory: 2.0 MB, 1.05 of weights and cache; 1.10 at its peak" in lines
    assert lines[-1].split() == ["a", "bar", "1.000", "<=", "1.1", "pass"]


def test_peers_are_named() -> None:
    assert decode.peer_names("hf,llamacpp") == ("hf", "llamacpp")
    assert decode.peer_names("none") == ()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--peers", "hf,vllm"], "unknown peer 'vllm': name some of hf, llamacpp"),
        (["--context", "0"], "--context must be >= 1, got 0"),
        (["--rounds", "-1"], "--rounds must be >= 1, got -1"),
        (["--dtype", "fp8"], "'fp8'"),
    ],
)
def test_wrong_arguments_are_named(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        decode.main([*QUICK, *arguments])
    assert message in capsys.readouterr().err


def test_an_absent_extra_is_named_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llamacpp.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r"module llama_cpp: pip install 'cascade_engine\[bench\]"):
        decode.main([*QUICK, "--peers", "llamacpp"])


def test_a_directory_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"bench\.decode: .*absent is not a directory"):
        decode.main(["--target", str(tmp_path / "absent"), "--peers", "none"])
