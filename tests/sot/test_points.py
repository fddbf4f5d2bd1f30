"""Points survive whatever models write around them."""

# ruff: noqa: RUF001 - marks of other scripts are meant as they stand

from __future__ import annotations

import time

import pytest

from cascade_engine.sot.plan import skeleton_of
from cascade_engine.sot.points import extract_points

ABC = ["Apples", "Bread", "Cheese"]

CASES: list[tuple[str, str, list[str]]] = [
    ("plain", "1. Apples\n2. Bread\n3. Cheese", ABC),
    ("begun with its number", "1.Apples\n2.Bread\n3.Cheese", ABC),
    ("trailing newlines", "1. Apples\n2. Bread\n3. Cheese\n\n\n", ABC),
    ("brackets", "1) Apples\n2) Bread\n3) Cheese", ABC),
    ("both brackets", "(1) Apples\n(2) Bread\n(3) Cheese", ABC),
    ("square brackets", "[1] Apples\n[2] Bread\n[3] Cheese", ABC),
    ("colons", "1: Apples\n2: Bread\n3: Cheese", ABC),
    ("dashes", "1 - Apples\n2 - Bread\n3 - Cheese", ABC),
    ("bold numbers", "**1.** Apples\n**2.** Bread\n**3.** Cheese", ABC),
    ("bold numbers inside", "**1**. Apples\n**2**. Bread\n**3**. Cheese", ABC),
    ("bold lines", "**1. Apples**\n**2. Bread**\n**3. Cheese**", ABC),
    ("bold texts", "1. **Apples**\n2. **Bread**\n3. **Cheese**", ABC),
    ("bold titles", "1. **Apples:** red\n2. **Bread**: new", ["Apples: red", "Bread: new"]),
    ("italics", "1. _Apples_\n2. *Bread*\n3. `Cheese`", ABC),
    ("headings", "## 1. Apples\n## 2. Bread\n## 3. Cheese", ABC),
    ("list marks before", "- 1. Apples\n- 2. Bread\n- 3. Cheese", ABC),
    ("quoted", "> 1. Apples\n> 2. Bread\n> 3. Cheese", ABC),
    ("named", "Point 1: Apples\nPoint 2: Bread\nPoint 3: Cheese", ABC),
    ("steps", "Step 1. Apples\nStep 2. Bread\nStep 3. Cheese", ABC),
    ("full stops at the end", "1. Apples.\n2. Bread;\n3. Cheese:", ABC),
    ("windows line ends", "1. Apples\r\n2. Bread\r\n3. Cheese\r\n", ABC),
    ("old mac line ends", "1. Apples\r2. Bread\r3. Cheese", ABC),
    ("other line ends", "1. Apples\u20282. Bread\u20283. Cheese", ABC),
    ("blank lines between", "1. Apples\n\n2. Bread\n\n3. Cheese", ABC),
    ("indented", "  1. Apples\n  2. Bread\n  3. Cheese", ABC),
    ("only the first not indented", "1. Apples\n 2. Bread\n 3. Cheese", ABC),
    ("tabs", "1.\tApples\n2.\tBread\n3.\tCheese", ABC),
    ("words before", "Sure! Here it is:\n\n1. Apples\n2. Bread\n3. Cheese", ABC),
    ("remark after", "1. Apples\n2. Bread\n3. Cheese\n\nI hope this helps!", ABC),
    ("remark between", "1. Apples\n\nAnd now:\n2. Bread\n3. Cheese", ABC),
    ("one line", "1. Apples 2. Bread 3. Cheese", ABC),
    ("one line with brackets", "1) Apples 2) Bread 3) Cheese", ABC),
    ("one line, bold", "**1.** Apples **2.** Bread **3.** Cheese", ABC),
    ("one line after words", "The list is: 1. Apples 2. Bread 3. Cheese", ABC),
    ("two lines of several", "1. Apples 2. Bread\n3. Cheese 4. Dates", [*ABC, "Dates"]),
    ("wrapped", "1. Apples\n   of all kinds\n2. Bread", ["Apples of all kinds", "Bread"]),
    ("wrapped at the margin", "1. Red\napples\n2. Bread", ["Red apples", "Bread"]),
    ("text on the next line", "1.\nApples\n2.\nBread\n3.\nCheese", ABC),
    ("text after a blank line", "1.\n\nApples\n2.\n\nBread\n3. Cheese", ABC),
    ("sub-bullets", "1. Apples\n   - red\n   - green\n2. Bread\n   * new\n3. Cheese", ABC),
    ("sub-bullets at the margin", "1. Apples\n- red\n• green\n2. Bread\n3. Cheese", ABC),
    ("lettered", "1. Apples\n   a) red\n   b. green\n2. Bread\n3. Cheese", ABC),
    ("inner list", "1. Apples\n   1. red\n   2. green\n   3. old\n2. Bread\n3. Cheese", ABC),
    ("decimal sub-points", "1. Apples\n1.1 red\n1.2. green\n2. Bread\n3. Cheese", ABC),
    ("behind sub-bullets", "1. Apples\n   - red\n     rose\n2. Bread", ["Apples", "Bread"]),
    ("arabic digits", "١. Apples\n٢. Bread\n٣. Cheese", ABC),
    ("full-width", "１．Apples\n２．Bread\n３．Cheese", ABC),
    ("chinese marks", "1、苹果\n2、面包", ["苹果", "面包"]),
    ("devanagari digits", "१. Apples\n२. Bread\n३. Cheese", ABC),
    ("the same twice", "1. Apples\n2. Bread\n2. bread\n3. Cheese", ABC),
    ("all numbered 1", "1. Apples\n1. Bread\n1. Cheese", ABC),
    ("missing numbers", "1. Apples\n3. Bread\n7. Cheese", ABC),
    ("descending", "3. Apples\n2. Bread\n1. Cheese", ABC),
    ("begins at zero", "0. Apples\n1. Bread\n2. Cheese", ABC),
    ("number repeated", "1. 1. Apples\n2. Bread\n3. Cheese", ABC),
    ("cut off", "1. Apples\n2. Bread\n3. Cheese\n4.", ABC),
    ("two digits", "\n".join(f"{i}. Item {i}x" for i in range(1, 13)),
     [f"Item {i}x" for i in range(1, 13)]),
    ("decimals", "1. Use 2.5 litres\n2. Add 3.0 more", ["Use 2.5 litres", "Add 3.0 more"]),
    ("versions", "1. Python 3.11 or 2. Bread", ["Python 3.11 or", "Bread"]),
    ("version ends a sentence", "1. Leave version 2. Then go on\n3. Cheese",
     ["Leave version 2. Then go on", "Cheese"]),
    ("number ends a sentence", "1. Take 2. Then rest\n2. Bread", ["Take 2. Then rest", "Bread"]),
    ("wrapped decimal", "1. Walk\n2.5 miles\n2. Bread", ["Walk 2.5 miles", "Bread"]),
    ("time of day", "1. Get up at\n6:30 sharp\n2. Bread", ["Get up at 6:30 sharp", "Bread"]),
    ("year", "1. Founded\n2020. A hard year\n2. Bread", ["Founded 2020. A hard year", "Bread"]),
    ("other numbers", "1. Take 7. or 9) of them 2. Bread", ["Take 7. or 9) of them", "Bread"]),
    ("ranges", "1. Sleep 7 - 8 hours\n2. Bread", ["Sleep 7 - 8 hours", "Bread"]),
    ("etc.", "1. Apples, pears etc.\n2. Bread...", ["Apples, pears etc.", "Bread..."]),
    ("snake case", "1. Set max_rows_here\n2. a * b * c", ["Set max_rows_here", "a * b * c"]),
    ("not a list", "Apples are red. Bread is new.", []),
    ("empty", "", []),
    ("a number alone", "1.", []),
    ("one point", "1. Apples", ["Apples"]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "points"), [case[1:] for case in CASES], ids=[c[0] for c in CASES]
)
def test_points_are_found(text: str, points: list[str]) -> None:
    skeleton = skeleton_of(text, max_points=50)
    assert [point.text for point in skeleton.points] == points
    assert [point.index for point in skeleton.points] == list(range(1, len(points) + 1))


@pytest.mark.parametrize(
    "unit",
    [
        "1. a ", "1. a\n", "1.", "1", " ", "\n", "((", "(after 1 ", "** ", "1) version 2. ",
        "1. (after 1, 1 ", "x", "- ", "__", "1.1 ", "２．", "\r", "1. Take 2. and 2. and ",
        "  1. a\n    1. b\n", "_a", "1. a (after 1)\n",
    ],
)  # fmt: skip
def test_time_is_linear_in_the_text(unit: str) -> None:
    """Eight times the text takes about eight times as long; 64 times if it were quadratic."""

    def seconds(characters: int) -> float:
        text = ("1. x " + unit * (characters // len(unit)))[:characters]
        best = 1e9
        for _ in range(3):
            begin = time.process_time()
            extract_points(text)
            skeleton_of(text, 16)
            best = min(best, time.process_time() - begin)
        return best

    assert seconds(16_000) < 30 * max(seconds(2_000), 1e-3)


def test_a_hundred_thousand_characters_are_read() -> None:
    begin = time.process_time()
    text = "1. Item " + "and more 2. then 10. or 3.5 " * 3600
    assert len(text) > 100_000
    assert extract_points(text)
    assert len(extract_points("1. a\n" * 20_000)) == 20_000
    assert time.process_time() - begin < 20


def test_dependencies_are_read_and_taken_off() -> None:
    text = "1. A\n2. B (after 1)\n3. C (after 1, 2).\n4. D [depends on points 2 and 3]\n5. E (new)"
    skeleton = skeleton_of(text, 16)
    assert [p.text for p in skeleton.points] == ["A", "B", "C", "D", "E (new)"]
    assert [p.after for p in skeleton.points] == [(), (1,), (1, 2), (2, 3), ()]
    assert skeleton.waves() == [[1, 5], [2], [3], [4]]
    assert skeleton.ancestors(4) == [1, 2, 3]
    assert skeleton.notes == ()


def test_dependencies_follow_the_numbers_that_were_written() -> None:
    skeleton = skeleton_of("2. A\n5. B (after 2)\n9. C (after 5)", 16)
    assert [p.after for p in skeleton.points] == [(), (1,), (2,)]


def test_cycles_and_unknown_numbers_are_dropped_with_a_note() -> None:
    skeleton = skeleton_of("1. A (after 3)\n2. B (after 1, 9)\n3. C (after 2)\n4. D (after 4)", 16)
    assert [p.after for p in skeleton.points] == [(), (1,), (2,), ()]
    assert len(skeleton.notes) == 3
    assert sum(len(wave) for wave in skeleton.waves()) == 4
    assert any("9" in note for note in skeleton.notes)


def test_a_point_behind_a_cycle_keeps_its_dependency() -> None:
    skeleton = skeleton_of("1. A (after 2)\n2. B (after 3)\n3. C (after 2)", 16)
    assert [p.after for p in skeleton.points] == [(2,), (), (2,)]


def test_too_many_points_are_left_out_with_a_note() -> None:
    skeleton = skeleton_of("\n".join(f"{i}. Item {i}x" for i in range(1, 31)), 5)
    assert len(skeleton.points) == 5
    assert "max_points=5" in skeleton.notes[0]


def test_the_skeleton_is_written_with_running_numbers() -> None:
    assert skeleton_of("1) Apples\n4) Bread.", 9).text == "1. Apples\n2. Bread"
