"""The picture of rounds: which boxes, where, in whose colour."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from cascade_engine.errors import TraceError
from cascade_engine.trace import load
from cascade_engine.trace.svg import picture
from tests.trace.support import lines, write


def boxes(svg: str) -> list[tuple[str, float, float, str]]:
    """Class, left edge, top and text of each token, in order."""
    pairs = re.findall(
        r'<rect class="([\w ]+)" x="([\d.]+)" y="(\d+)" width="[\d.]+" height="21" rx="4"/>'
        r'<text class="token \w+" x="[\d.]+" y="\d+">([^<]*)</text>',
        svg,
    )
    return [(look, float(x), float(y), text) for look, x, y, text in pairs]


def test_a_chain_that_two_levels_review(tmp_path: Path) -> None:
    svg = picture(load(write(tmp_path / "t")), 1, [1])
    ElementTree.fromstring(svg)
    found = boxes(svg)
    assert [(look, text) for look, _, _, text in found] == [
        ("draft table", "·b"), ("draft table", "⏎"), ("draft table", "·a"),
        ("kept table", "·b"), ("gone table", "⏎"), ("gone table", "·a"), ("own draft1", "·d"),
        ("kept table", "·b"), ("kept draft1", "·d"), ("own target", "&lt;/script&gt;"),
    ]  # fmt: skip
    left = {1: found[0][1], 2: found[1][1], 3: found[2][1]}
    assert left[1] < left[2] < left[3]
    columns = [1, 2, 3, 1, 2, 3, 2, 1, 2, 3]
    assert [x for _, x, _, _ in found] == [left[column] for column in columns]
    tops = [y for _, _, y, _ in found]
    assert tops == sorted(tops)
    assert len(set(tops)) == 4
    assert "3 tokens for one pass" in svg


def test_a_tree_shows_the_path_that_was_kept(tmp_path: Path) -> None:
    found = boxes(picture(load(write(tmp_path / "t")), 1, [2]))
    assert [(look, text) for look, _, _, text in found] == [
        ("kept table", "·b"), ("kept draft1", "⏎"), ("gone table", "·f"), ("own target", "·d")
    ]  # fmt: skip


def test_only_text_gets_into_it(tmp_path: Path) -> None:
    """Names and texts with markup, and characters that XML cannot hold."""
    text = lines().replace("small", "a\\u0000b\\ud800<i>&amp;")
    svg = picture(load(write(tmp_path / "t", text)), 1, [1, 2])
    root = ElementTree.fromstring(svg.encode())
    assert {element.tag.split("}")[1] for element in root.iter()} <= {
        "svg", "title", "style", "rect", "g", "text"
    }  # fmt: skip
    assert "a\ufffdb\ufffd<i>&amp; reviews" in "".join(root.itertext())


@pytest.mark.parametrize(
    ("row", "number", "message"),
    [
        (0, 1, r"--row must be in 1\.\.2, got 0"),
        (3, 1, r"--row must be in 1\.\.2, got 3"),
        (1, 3, r"--rounds must be within 1\.\.2, got 3"),
        (1, 0, r"got 0"),
    ],
)
def test_rounds_that_are_not_there(row: int, number: int, message: str, tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=message):
        picture(load(write(tmp_path / "t")), row, [1, number])
