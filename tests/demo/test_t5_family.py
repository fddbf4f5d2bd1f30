"""The embedded T5 pair: the tokens of transformers, the cascade's speed in passes, the command
line."""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest
import torch
from transformers import T5ForConditionalGeneration

from cascade_engine import Engine, FixedCascade, Generation, PlainDecoding, SamplingParams
from cascade_engine.demo import family as families
from cascade_engine.demo.corpus import Document, distinct_documents
from cascade_engine.demo.family import Family, t5_family
from cascade_engine.demo.scoring import parsed_points
from cascade_engine.generate import main

TOLERANCE = 1e-4
"""Between two best logits of about 10: what float32 sums in two orders may differ by."""
TASKS = ("arithmetic", "fact", "advice", "skeleton", "expansion")


@pytest.fixture(scope="module")
def family() -> Family:
    return t5_family()


@pytest.fixture(scope="module")
def documents() -> list[Document]:
    return [d for task in TASKS for d in distinct_documents("test", task, 40)]


@pytest.fixture(scope="module")
def answers(family: Family, documents: list[Document]) -> dict[str, list[Generation]]:
    engine = Engine.load(family.target, family.drafts, family.table, dtype="float32")
    found = {}
    for name, policy in (
        ("plain", PlainDecoding()),
        ("cascade", FixedCascade(family.k_matrix)),
        ("tree", FixedCascade(family.k_matrix, tree=16, siblings=1)),
    ):
        engine.set_policy(policy)
        found[name] = engine.generate([d.prompt for d in documents], SamplingParams(max_tokens=300))
    return found


@pytest.mark.parametrize("name", ["cascade", "tree"])
def test_the_cascade_answers_as_plain_decoding(
    answers: dict[str, list[Generation]], name: str
) -> None:
    for plain, cascade in zip(answers["plain"], answers[name], strict=True):
        assert (plain.token_ids, plain.text) == (cascade.token_ids, cascade.text)


def test_greedy_tokens_are_those_of_transformers(
    family: Family, answers: dict[str, list[Generation]]
) -> None:
    """Each token is the best by transformers' logits after the same tokens, in float32, or its gap
    to the best one is below the tolerance."""
    model = T5ForConditionalGeneration.from_pretrained(family.target, dtype=torch.float32).eval()
    results = sorted(answers["plain"], key=lambda r: len(r.token_ids))
    assert len(results) == 200
    for first in range(0, len(results), 20):
        part = results[first : first + 20]
        sources = [torch.tensor(r.prompt_token_ids) for r in part]
        tokens = [torch.tensor(r.token_ids) for r in part]
        source = torch.nn.utils.rnn.pad_sequence(sources, batch_first=True)
        mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(s) for s in sources], True)
        wanted = torch.nn.utils.rnn.pad_sequence(tokens, batch_first=True)
        decoded = torch.nn.functional.pad(wanted, (1, 0))[:, :-1]
        with torch.no_grad():
            logits = model(source, attention_mask=mask, decoder_input_ids=decoded).logits
        gaps = logits.max(-1).values - logits.gather(2, wanted[..., None])[..., 0]
        given = torch.nn.utils.rnn.pad_sequence([torch.ones_like(t) for t in tokens], True)
        assert (gaps * given).max() <= TOLERANCE


def test_answers_have_the_form_they_should(
    documents: list[Document], answers: dict[str, list[Generation]]
) -> None:
    results = list(zip(documents, answers["cascade"], strict=True))
    assert statistics.fmean(r.finish_reason == "stop" for _, r in results) > 0.97
    lists = [parsed_points(d, r.text) for d, r in results if d.task in ("advice", "skeleton")]
    assert statistics.fmean(3 <= len(points) <= 8 for points in lists) >= 0.9
    assert not any(r.text.startswith(" ") for _, r in results)  # an answer is a text of its own


def test_the_cascade_saves_half_of_the_passes(answers: dict[str, list[Generation]]) -> None:
    for name in ("cascade", "tree"):
        tokens = sum(len(result.token_ids) for result in answers[name])
        assert tokens / sum(result.stats.target_calls for result in answers[name]) >= 2


def test_the_command_line(
    family: Family, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    question = "How can I save water at home?"
    assert main(["--model-family", "t5", "--compare", question]) == 0
    shown = capsys.readouterr()
    assert shown.out.startswith("1. ")
    assert "compare: identical" in shown.err
    assert "t5-draft" in shown.err
    assert main(["--model-family", "t5", "--preset", "llama-7b-model-size", question]) == 0
    assert main(["--model-family", "t5", "--preset", "flan-t5-model-size", question]) == 2
    assert "k_matrix has 3 rows, but there are 2 drafting levels" in capsys.readouterr().err


def test_what_the_command_line_refuses(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for options, words in (
        (["--model-family", "t5", "--target", "x"], "leave it or --target out"),
        (["--preset", "none"], "preset must be one of flan-t5-model-size, "),
        (["--preset", "llama-7b-model-size", "--lenience", "2"], "leave --lenience out"),
        (["--preset", "llama-7b-model-size", "--k-matrix", "1"], "leave --k-matrix out"),
        (["--preset", "llama-7b-model-size", "--plain"], "leave --preset out"),
    ):
        assert main([*options, "question"]) == 2
        assert words in capsys.readouterr().err
    monkeypatch.setattr(families, "FOLDER", tmp_path)
    assert main(["--model-family", "t5", "question"]) == 2
    assert "t5-target holds no model: this package was built without it" in capsys.readouterr().err
