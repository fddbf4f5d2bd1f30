"""Policy files: what is written is read, and everything else is named."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cascade_engine.errors import RequestError
from cascade_engine.policy import AutoCascade, FixedCascade, named, read_policy, write_policy

LEVELS = ["large", "middle", "small"]
POLICY = FixedCascade([[5, 2, 0], [0, 1, 3], [0, 0, 8]], 2.0, (16, 4), 2, 0.25)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "a.json"
    write_policy(path, POLICY, LEVELS, {"prompts": "some"})
    return path


def test_what_is_written_is_read(file: Path) -> None:
    assert read_policy(file, LEVELS) == POLICY
    assert named(str(file), LEVELS) == POLICY
    assert named(file, LEVELS) == POLICY
    assert json.loads(file.read_text())["source"] == {"prompts": "some"}


def test_names_are_not_files(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(file.parent)
    file.rename("auto")
    assert isinstance(named("auto", LEVELS), AutoCascade)
    assert named("fixed", LEVELS) == FixedCascade.default(3)
    assert named("./auto", LEVELS) == POLICY


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "another"}, "is no policy file: its 'format' must be 'cascade_engine policy'"),
        ({"version": 2}, "has version 2; version 1 is read: tune again"),
        ({"levels": ["large", "small"]}, r"is for the models \['large', 'small'\], loaded are"),
        ({"levels": ["large", "small", "middle"]}, "load those, or tune for these"),
        ({"k_matrix": [[1, 2], [0]]}, "k_matrix must be square"),
        ({"k_matrix": 5}, "a.json: "),
        ({"k_matrix": [[1.5]]}, r"k_matrix\[0\]\[0\] must be an integer, got 1.5"),
        ({"lenience": 0.5}, "lenience must be a finite number >= 1"),
        ({"lenience": "much"}, "a.json: "),
        ({"tree": [65, 0, 0]}, r"tree must be integers in 0..64"),
        ({"siblings": -1}, "siblings must be an integer >= 0"),
        ({"min_confidence": 2}, r"min_confidence must be in 0\.\.1 \(0: off\), got 2"),
        ({"min_confidence": "low"}, "a.json: "),
        ({"siblings": None}, "siblings must be an integer >= 0"),
        ({"nodes": 3}, "has an unknown key 'nodes'"),
    ],
)
def test_what_is_wrong_is_named(file: Path, change: dict[str, Any], message: str) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(RequestError, match=message):
        read_policy(file, LEVELS)


def test_files_without_a_least_confidence_have_none(file: Path) -> None:
    content = json.loads(file.read_text())
    del content["min_confidence"]
    file.write_text(json.dumps(content))
    assert read_policy(file, LEVELS) == replace(POLICY, min_confidence=0.0)


@pytest.mark.parametrize(
    "key", ["version", "levels", "k_matrix", "lenience", "tree", "siblings", "source"]
)
def test_a_missing_key_is_named(file: Path, key: str) -> None:
    content = json.loads(file.read_text())
    del content[key]
    file.write_text(json.dumps(content))
    with pytest.raises(RequestError, match=f"lacks '{key}'"):
        read_policy(file, LEVELS)


@pytest.mark.parametrize(
    ("text", "message"), [("{", "cannot be read"), ("[1]", "is no policy file"), ("", "cannot be")]
)
def test_what_is_no_policy_file_is_named(file: Path, text: str, message: str) -> None:
    file.write_text(text)
    with pytest.raises(RequestError, match=message):
        read_policy(file, LEVELS)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"or a policy file, got '.*absent'"):
        named(str(tmp_path / "absent"), LEVELS)
    with pytest.raises(RequestError, match="cannot be read"):
        named(tmp_path, LEVELS)
