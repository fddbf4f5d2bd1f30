"""The corpus: determinism, disjoint splits, true arithmetic, parseable skeletons."""

from __future__ import annotations

import itertools
import random
import re
from itertools import islice

import pytest

from cascade_engine.demo import corpus, formats
from cascade_engine.demo.advice import make_advice, topics
from cascade_engine.demo.arithmetic import SCHEMAS, make_problem
from cascade_engine.demo.corpus import Document, distinct_documents, documents, split_of
from cascade_engine.demo.sums import plural, solve
from cascade_engine.demo.world import TOWNS, towns

SAMPLE = 4000
_EQUATION = re.compile(r"\d[\d +\-*/=]*=[\d +\-*/=]*\d")


@pytest.fixture(scope="module")
def arithmetic() -> list[Document]:
    return list(islice(documents("train", 5, {"arithmetic": 1.0}), SAMPLE))


def value_of(expression: str) -> int:
    """A sum, difference, product or exact quotient of two numbers, or one number."""
    parts = expression.split()
    if len(parts) == 1:
        return int(parts[0])
    a, op, b = int(parts[0]), parts[1], int(parts[2])
    if op == "/":
        assert a % b == 0
        return a // b
    return {"+": a + b, "-": a - b, "*": a * b}[op]


def test_same_seed_gives_the_same_stream() -> None:
    first, second = (list(islice(documents("train", 3), 200)) for _ in range(2))
    assert first == second
    assert first != list(islice(documents("train", 4), 200))


def test_stream_is_fixed_across_machines() -> None:
    assert next(documents("test", 0, {"arithmetic": 1.0})).identity == "groups+:2,5,20"


def test_splits_share_no_problem() -> None:
    seen = {
        s: {d.identity for d in islice(documents(s, 0), 600)}
        for s in ("train", "validation", "test")
    }
    assert not seen["train"] & seen["validation"]
    assert not seen["train"] & seen["test"]
    assert not seen["validation"] & seen["test"]


def test_split_shares() -> None:
    splits = [split_of(f"p:{i}") for i in range(20_000)]
    assert abs(splits.count("train") / 20_000 - 0.90) < 0.01
    assert abs(splits.count("test") / 20_000 - 0.07) < 0.01


def test_identity_is_the_numbers_and_not_the_names(arithmetic: list[Document]) -> None:
    for document in arithmetic[:500]:
        numbers = sorted(int(n) for n in document.identity.split(":")[1].split(","))
        in_text = [int(n) for n in re.findall(r"\d+", document.prompt)]
        if "pack" not in document.identity:
            assert set(numbers) <= set(in_text)


def test_every_equation_is_true_and_the_last_is_the_answer(arithmetic: list[Document]) -> None:
    for document in arithmetic:
        equations = _EQUATION.findall(document.answer)
        assert equations, document.text
        for equation in equations:
            values = {value_of(link.strip()) for link in equation.split("=")}
            assert len(values) == 1, equation
            assert 0 < values.pop() <= 999
        assert int(equations[-1].split("=")[-1]) == document.answer_number
        assert formats.parse_final_number(document.answer) == document.answer_number


def test_solutions_restate_the_problem(arithmetic: list[Document]) -> None:
    """What is copied from the problem is what Max-Gram drafts: over half of a solution."""
    shares = []
    for document in arithmetic[:1000]:
        words = set(document.prompt.split())
        answer = document.answer.split()
        shares.append(sum(word in words for word in answer) / len(answer))
    assert sum(shares) / len(shares) > 0.5


def test_every_schema_appears(arithmetic: list[Document]) -> None:
    kinds = {d.identity.split(":")[0].rstrip("+-*/") for d in arithmetic}
    wanted = "story share groups compare together pay change bill need gone pack days trip drill"
    assert set(wanted.split()) <= kinds
    assert len({s.__name__ for s in SCHEMAS}) == 9
    assert {len(str(d.answer_number)) for d in arithmetic} == {1, 2, 3}


@pytest.mark.parametrize(
    ("a", "op", "b", "text"),
    [
        (4, "+", 7, "4 + 7 = 11."),
        (347, "+", 285, "347 + 285 = 547 + 85 = 627 + 5 = 632."),
        (347, "+", 85, "347 + 85 = 427 + 5 = 432."),
        (300, "+", 200, "300 + 200 = 500."),
        (47, "+", 305, "47 + 305 = 347 + 5 = 352."),
        (20, "*", 7, "20 * 7 = 140."),
        (432, "-", 285, "432 - 285 = 232 - 85 = 152 - 5 = 147."),
        (432, "-", 200, "432 - 200 = 232."),
        (24, "*", 6, "24 * 6 = 120 + 24 = 140 + 4 = 144."),
        (12, "*", 9, "12 * 9 = 108."),
        (56, "/", 7, "56 / 7 = 8."),
    ],
)
def test_solve_chains_easy_steps(a: int, op: str, b: int, text: str) -> None:
    assert solve(a, op, b) == (text, value_of(f"{a} {op} {b}"))


@pytest.mark.parametrize(("a", "op", "b"), [(7, "/", 2), (7, "%", 2)])
def test_solve_rejects(a: int, op: str, b: int) -> None:
    with pytest.raises(ValueError, match="op must be"):
        solve(a, op, b)


def test_plurals() -> None:
    assert [plural(n) for n in ("box", "shelf", "potato", "photo", "tray", "apple")] == [
        "boxes", "shelves", "potatoes", "photos", "trays", "apples"
    ]  # fmt: skip


def test_skeletons_parse_back() -> None:
    for document in islice(documents("train", 1, {"skeleton": 1.0}), 300):
        points = formats.parse_skeleton(document.answer)
        assert len(points) == document.points
        assert all(3 <= len(p.split()) <= 5 for p in points)
        assert document.prompt.endswith("\n1.")


def test_advice_answers_parse_as_lists() -> None:
    for document in islice(documents("train", 1, {"advice": 1.0}), 300):
        points = formats.parse_skeleton(document.answer, prompt_has_first_number=False)
        assert len(points) == document.points


def test_expansion_prompt_extends_the_skeleton() -> None:
    for document in islice(documents("train", 1, {"expansion": 1.0}), 100):
        head = document.prompt.split("\nPoint ")[0]
        request, skeleton = head.split(formats.SKELETON_PREFIX)
        assert (
            formats.skeleton_prompt(request.removeprefix(formats.QUESTION_PREFIX)) + skeleton
            == head
        )
        assert formats.parse_skeleton(skeleton)


def test_expansion_prompt_rejects_a_missing_point() -> None:
    with pytest.raises(ValueError, match=r"index must be in 1\.\.2, got 3"):
        formats.expansion_prompt("How?", ["Do this first", "Then do that"], 3)


def test_parse_skeleton_takes_text_with_and_without_the_first_blank() -> None:
    for text in (" One\n2. Two", "One\n2. Two"):
        assert formats.parse_skeleton(text) == ["One", "Two"]
    assert formats.parse_skeleton(" 1. One\n2. Two", prompt_has_first_number=False) == [
        "One",
        "Two",
    ]


@pytest.mark.parametrize("text", [" One\n3. Three", " One\nTwo", "", "\nOne", " One\n\n2. Two"])
def test_parse_skeleton_rejects(text: str) -> None:
    assert formats.parse_skeleton(text) == []


def test_topics_and_world_are_complete() -> None:
    assert len(topics()) == 24
    assert all(
        3 <= len(p.split()) <= 5 and t.endswith(".") for topic in topics() for p, t in topic.points
    )
    assert set(towns()) == set(TOWNS)
    assert all(len(facts) == 8 for facts in towns().values())


def test_distinct_documents_have_distinct_prompts() -> None:
    found = distinct_documents("test", "skeleton", 100)
    assert len({d.prompt for d in found}) == 100


def test_distinct_documents_says_when_a_split_is_too_small(monkeypatch: pytest.MonkeyPatch) -> None:
    few = list(islice(documents("test", 0, {"fact": 1.0}), 3))
    monkeypatch.setattr(corpus, "documents", lambda *_: itertools.cycle(few))
    with pytest.raises(ValueError, match="split test of fact has only 3 documents, not 9"):
        distinct_documents("test", "fact", 9)


def test_generators_never_fail() -> None:
    rng = random.Random(9)
    for _ in range(3000):
        problem = make_problem(rng)
        assert 0 < problem.answer <= 999, problem
        assert "  " not in problem.solution
        make_advice(rng)
