"""The embedded models do their job through the engine, and the cascade changes nothing."""

from __future__ import annotations

import hashlib
import re
import statistics
from pathlib import Path

import pytest

from cascade_engine import Engine, FixedCascade, Generation, PlainDecoding, SamplingParams
from cascade_engine.demo.corpus import Document, distinct_documents
from cascade_engine.demo.family import FOLDER, llama_family
from cascade_engine.demo.scoring import is_correct, parsed_points
from cascade_engine.generate import main

TASKS = ("arithmetic", "fact", "advice", "skeleton", "expansion")


@pytest.fixture(scope="module")
def documents() -> list[Document]:
    return [d for task in TASKS for d in distinct_documents("test", task, 16)]


@pytest.fixture(scope="module")
def answers(documents: list[Document]) -> dict[str, list[Generation]]:
    family = llama_family()
    engine = Engine.load(family.target, family.drafts, family.table)
    found = {}
    for name, policy in (("plain", PlainDecoding()), ("cascade", FixedCascade(family.k_matrix))):
        engine.set_policy(policy)
        engine.clear_cache()
        params = SamplingParams(max_tokens=400)
        found[name] = engine.generate([d.prompt for d in documents], params)
    return found


def test_the_cascade_answers_as_plain_decoding(answers: dict[str, list[Generation]]) -> None:
    for plain, cascade in zip(answers["plain"], answers["cascade"], strict=True):
        assert (plain.token_ids, plain.text) == (cascade.token_ids, cascade.text)


def test_answers_are_right(documents: list[Document], answers: dict[str, list[Generation]]) -> None:
    results = list(zip(documents, answers["cascade"], strict=True))
    assert all(result.finish_reason == "stop" for _, result in results)
    sums = [is_correct(d, r.text) for d, r in results if d.task == "arithmetic"]
    assert statistics.fmean(sums) >= 0.85
    lists = [parsed_points(d, r.text) for d, r in results if d.task in ("advice", "skeleton")]
    assert statistics.fmean(3 <= len(points) <= 8 for points in lists) >= 0.95


def test_the_cascade_saves_two_passes_of_three(answers: dict[str, list[Generation]]) -> None:
    tokens = sum(len(result.token_ids) for result in answers["cascade"])
    calls = sum(result.stats.target_calls for result in answers["cascade"])
    assert tokens / calls >= 3


def test_embedded_files_are_small_and_as_the_card_says() -> None:
    card = (FOLDER / "MODEL_CARD.md").read_text()
    weights = sorted(FOLDER.glob("*/model.safetensors"))
    assert weights
    for path in weights:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        assert re.search(rf"\| {path.parent.name} \|.*{digest}", card), path
    embedded = [p for p in FOLDER.rglob("*") if p.suffix in (".safetensors", ".model", ".json")]
    assert sum(path.stat().st_size for path in embedded) <= 30e6


def test_the_default_run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["--compare", "--prompt-file", str(question(tmp_path))]) == 0
    shown = capsys.readouterr()
    assert "The answer is 11." in shown.out
    assert "compare: identical" in shown.err
    assert main(["--draft", "x", "x"]) == 2
    assert "--draft needs --target" in capsys.readouterr().err


def question(folder: Path) -> Path:
    path = folder / "question.txt"
    path.write_text("Sally has 4 apples. She buys 7 more. How many apples does she have now?")
    return path
