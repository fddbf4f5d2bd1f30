"""bench.swi: prices and counts by hand, matrices of the modes, answers read, a whole report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.cascades import BigramLevel, Models, Setting, Tally, run
from bench.questions import Question, chosen_letter, final_number, questions
from bench.swi import families, main, measured_costs, modes, parse
from bench.swi_papers import previous_work_costs, size_costs, swi
from cascade_engine import AutoCascade, FixedCascade, PlainDecoding
from cascade_engine.demo.family import llama_family
from cascade_engine.engine.loading import LoadOptions
from cascade_engine.levels import Proposal
from cascade_engine.tables import load_table
from tests.bench.conftest import assert_sane
from tests.data import data_path


@pytest.fixture(scope="module")
def models() -> Models:
    family = llama_family()
    options = LoadOptions(threads=1, max_rows=1, max_context=512)
    return Models(family.target, family.drafts, family.table, options)


def test_swi_by_hand() -> None:
    # 10 passes against 2 of the target, 5 of a draft at 0.1 and free proposals.
    assert swi(10, [2, 5, 7], [1.0, 0.1, 0.0]) == pytest.approx(4.0)
    assert size_costs([11300, 220, 60]) == pytest.approx([1.0, 220 / 11300, 60 / 11300, 0.0])


def test_previous_work_by_name_and_by_place() -> None:
    names = ["flan-t5-xxl", "flan-t5-small"]
    assert previous_work_costs(names) == [1.0, 0.02, 0.0]
    assert previous_work_costs(["big", "middle", "little"]) == [1.0, 0.04, 0.02, 0.0]
    assert previous_work_costs(["llama-target", "llama-small"]) == [1.0, 0.04, 0.0]


def test_modes_take_the_cascade_apart() -> None:
    full = FixedCascade([[5, 14, 10], [0, 1, 10], [0, 0, 10]], lenience=2.0)
    by_name = {s.name: s.policy for s in modes(full, ["xxl", "base", "small"], 4)}
    assert by_name["plain"] == PlainDecoding()
    assert by_name["speculative, base"] == FixedCascade([[4, 0, 0], [0, 0, 0], [0, 0, 0]])
    assert by_name["speculative, small"] == FixedCascade([[0, 4, 0], [0, 0, 0], [0, 0, 0]])
    assert by_name["vertical only"] == FixedCascade([[5, 0, 0], [0, 1, 0], [0, 0, 10]], 2.0)
    assert by_name["horizontal only"] == FixedCascade([[5, 14, 1], [0] * 3, [0] * 3], 2.0)
    assert by_name["full cascade"] is full
    assert isinstance(by_name["automatic"], AutoCascade)


def test_measured_costs() -> None:
    plain = Tally([10, 0, 0], [20.0, 0.0, 0.0])
    cascade = Tally([4, 6, 0], [9.0, 3.0, 0.0])
    assert measured_costs([plain], [cascade, plain]) == [1.0, 0.25, 0.0]


def test_answers_are_read() -> None:
    assert final_number("so 1,250 of them.\n#### 18") == 18
    assert final_number("It costs $1,250.50.") == 1250.5
    assert final_number("none") is None
    assert chosen_letter("A is wrong. The answer is (C), not D.") == "C"
    assert chosen_letter("(B) because") == "B"
    assert chosen_letter("nothing") is None


def test_public_questions() -> None:
    data_path("prompts", "gsm8k_test.jsonl")
    first, second = questions("gsm8k", 2)
    assert first.is_correct("She makes $18.")
    assert not first.is_correct("She makes $19.")
    assert second.prompt.startswith("Question: A robe takes 2 bolts")
    (item,) = questions("mmlu", 1)
    assert "(A) 0 (B) 1 (C) 2 (D) 3" in item.prompt
    assert item.is_correct("the answer is (B)")
    assert not item.is_correct("the answer is (A)")


def test_the_bigram_level_sees_one_token(models: Models) -> None:
    """A row that repeats is not copied from; what the table says behind its last token is."""
    level = models.engine(Setting("x", PlainDecoding(), "bigram")).statistical
    assert isinstance(level, BigramLevel)
    table = load_table(llama_family().table or "", models.tokenizer, 10**6)
    rows = models.engine(Setting("x", PlainDecoding())).statistical._rows
    row = [1, 300, 301, 302, 300, 301]
    expected = [*row[-1:]]
    for _ in range(3):
        successors = table.lookup(expected[-1:])[0][2]
        expected.append(max(successors, key=lambda pair: pair[1])[0])
    rows.write(0, row)
    assert level.propose([Proposal(0, len(row), 3)]) == [3]
    assert rows.read(0, len(row), len(row) + 3) == expected[1:]
    copied = models.engine(Setting("x", PlainDecoding(), "max-gram")).statistical
    assert copied.name == "max-gram"
    assert copied.propose([Proposal(0, len(row), 2)]) == [2]
    assert rows.read(0, len(row), len(row) + 2) == [302, 300]


def test_runs_count_calls_and_compare_answers(models: Models) -> None:
    settings = [
        Setting("plain", PlainDecoding()),
        Setting("draft", FixedCascade([[4, 0], [0, 0]])),
        Setting("copies", FixedCascade([[0, 6], [0, 0]]), "max-gram"),
    ]
    asked = [Question(q.prompt, lambda text: "1" in text) for q in questions("arithmetic", 2)]
    found = run(models, settings, asked, 40)
    plain, draft, copies = found.values()
    assert plain.calls == [plain.tokens, 0, 0]
    assert plain.tokens == draft.tokens == copies.tokens
    assert plain.identical == draft.identical == copies.identical == 2
    assert draft.calls[0] < plain.calls[0]
    assert draft.calls[1] >= 4 * (draft.calls[0] - 4)
    assert draft.calls[2] == copies.calls[1] == 0 < copies.calls[2]
    assert plain.price(0)
    assert plain.price(1) is None
    assert len(plain.by_question) == 2


def test_the_report_of_any_checkpoints(tmp_path: Path) -> None:
    data_path("prompts", "gsm8k_test.jsonl")
    folder, out = llama_family().target.parent, tmp_path / "out.json"
    models = ["--target", str(folder / "llama-target"), "--draft", str(folder / "llama-middle")]
    models += ["--draft", str(folder / "llama-small"), "--preset", "flan-t5-model-size"]
    few = ["--questions", "1", "--max-new-tokens", "24", "--threads", "1", "--json", str(out)]
    main([*models, *few])
    report = json.loads(out.read_text())
    (family,) = report["families"]
    assert_sane(family)
    assert family["k_matrix"] == [[5, 14, 10], [0, 1, 10], [0, 0, 10]]
    assert family["lenience"] == 2.0
    for name in ("gsm8k", "mmlu"):
        figures = family["data"][name]["settings"]
        for figure in figures.values():
            assert figure["identical"] == 1
            for table, costs in family["costs"].items():
                expected = swi(figures["plain"]["calls"][0], figure["calls"], costs)
                assert figure["swi"][table] == expected
        assert figures["full cascade"]["calls"][0] < figures["plain"]["calls"][0]


def test_errors() -> None:
    folder = llama_family().target.parent
    args = parse(["--target", str(folder / "llama-target"), "--draft", str(folder / "llama-small")])
    args.preset = "flan-t5-model-size"
    with pytest.raises(Exception, match="k_matrix has 3 rows, but there are 2 drafting levels"):
        families(args)
    for wrong in (["--draft", "x"], ["--target", "x"], ["--questions", "0"]):
        with pytest.raises(SystemExit):
            parse(wrong)
