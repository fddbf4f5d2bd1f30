"""bench.ablations: settings by hand, one small report, its picture."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.ablations import main, settings_by_group, smallest_draft
from bench.tables import ablations
from cascade_engine import FixedCascade, PlainDecoding


def test_settings_by_hand() -> None:
    full = FixedCascade([[6, 4, 4], [0, 3, 0], [0, 0, 8]])
    groups = settings_by_group(full, ["big", "middle", "little"])
    every = [setting for settings in groups.values() for setting in settings]
    assert len({setting.name for setting in every}) == len(every)
    assert every[0].policy == PlainDecoding()
    none, *kinds = groups["statistical level"]
    assert none.policy == FixedCascade([[6, 4, 0], [0, 3, 0], [0, 0, 0]])
    assert [s.statistical for s in kinds] == [
        "bigram", "max-gram", "max-gram + bigram", "max-gram + table",
    ]  # fmt: skip
    assert {s.policy for s in kinds} == {full}
    assert [s.policy.lenience for s in groups["lenience"]] == [1, 2, 3, 4, 5]
    assert smallest_draft(3, 5, 8) == [[0, 5, 8], [0, 0, 0], [0, 0, 8]]
    assert smallest_draft(2, 5, 0) == [[5, 0], [0, 8]]
    for copied in (0, 8):
        by_k = {s.policy.k_matrix[0][1:] for s in groups[f"K, {copied} copied"]}  # type: ignore[attr-defined]
        assert by_k == {(k, copied) for k in (1, 2, 4, 6, 8, 10, 13)}


@pytest.mark.parametrize("ending", ["svg", "png"])
def test_a_report_and_its_picture(tmp_path: Path, ending: str) -> None:
    pytest.importorskip("matplotlib")
    out, picture = tmp_path / "out.json", tmp_path / f"picture.{ending}"
    few = ["--family", "t5", "--questions", "1", "--max-new-tokens", "20", "--threads", "1"]
    main([*few, "--json", str(out), "--plot", str(picture)])
    report = json.loads(out.read_text())
    for group in report["groups"].values():
        for name, found in group.items():
            assert found["identical"] == report["questions"] == 2, name
            assert found["tokens"] == report["groups"]["cascades"]["plain"]["tokens"], name
    shown = picture.read_bytes()
    if ending == "svg":
        text = shown.decode()
        assert all(word in text for word in ("t5-target", "horizontal only", "lenience", "bigram"))
        assert "dc:date" not in text
    else:
        assert shown.startswith(b"\x89PNG")
    table = ablations({"ablations": report})
    best = report["groups"]["lenience"]["lenience 3"]
    assert f"| lenience 3 | {best['swi']['model size']:.2f} | {best['times_plain']:.2f} |" in table


def test_errors() -> None:
    for wrong in (["--plot", "x.txt"], ["--questions", "0"]):
        with pytest.raises(SystemExit):
            main(wrong)
