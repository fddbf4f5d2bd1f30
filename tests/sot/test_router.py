"""The routers: what the built-in one reaches, and that the others do what they say."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from cascade_engine.errors import CheckpointError, RequestError
from cascade_engine.sot import SkeletonOfThought, SotOptions, TrainedRouter
from cascade_engine.sot.request_features import KIND_NAMES, features_of
from cascade_engine.sot.router import WEIGHTS
from cascade_engine.sot.train_router import (
    Labelled,
    auc,
    best_threshold,
    evaluate,
    train,
    write_weights,
)
from tests.data import data_path
from tests.sot.support import embedded_engine

LIST_QUESTION = "What are the best ways to save water at home?"


@pytest.mark.parametrize(("name", "bar"), [("vicuna", 0.80), ("wizardlm", 0.75)])
def test_the_router_reaches_its_bars(name: str, bar: float) -> None:
    data = Labelled.read(data_path("sot", f"{name}_router.csv"))
    found = evaluate(TrainedRouter(), data)
    assert found["accuracy"] >= bar
    assert found["auc"] >= 0.79
    assert found["accuracy"] > found["majority"]
    card = (WEIGHTS.parent / "router_card.md").read_text()
    assert f"| {found['questions']} | {found['accuracy']:.1%} | {found['auc']:.3f} |" in card


def test_the_weights_are_small_and_the_router_is_quick() -> None:
    assert WEIGHTS.stat().st_size <= 1_000_000
    assert f"{WEIGHTS.stat().st_size:,} bytes" in (WEIGHTS.parent / "router_card.md").read_text()
    router = TrainedRouter()
    times = []
    for _ in range(50):
        begin = time.process_time()
        router.score("What are the main ways to improve my time management skills? " * 5)
        times.append(time.process_time() - begin)
    assert min(times) <= 1e-3


def test_it_tells_lists_from_sums() -> None:
    router = TrainedRouter()
    for question in (LIST_QUESTION, "What are the benefits of regular exercise?"):
        assert router.score(question) >= router.threshold
    for question in (
        "Solve for x in the equation 3x + 10 = 5(x - 2).",
        "Write a C++ program to find the nth Fibonacci number using recursion.",
        "Write a story about a lost dog.",
        "",
    ):
        assert router.score(question) < router.threshold
    assert 0 <= router.score("x" * 1_000_000) <= 1


def test_a_score_is_that_of_the_model_that_was_trained(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    data = Labelled.read(data_path("sot", "lima_router.csv"))
    some = Labelled(data.requests[:200], data.labels[:200])
    arrays, report = train(some)
    path = tmp_path / "weights.npz"
    write_weights(path, arrays)
    first = path.read_bytes()
    write_weights(path, arrays)
    assert path.read_bytes() == first
    assert report["requests"] == 200
    router = TrainedRouter(path)
    terms = bytes(arrays["terms"]).decode().split("\n")
    header = json.loads(bytes(arrays["header"]))
    for request in data.requests[200:220]:
        counts, kinds = features_of(request)
        vector = np.array(
            [
                (1 + np.log(counts[t])) * i if counts[t] else 0.0
                for t, i in zip(terms, arrays["idf"], strict=True)
            ]
        )
        vector /= max(np.linalg.norm(vector), 1e-30)
        logit = header["bias"] + vector @ arrays["weights"] + arrays["kinds"][kinds].sum()
        assert router.score(request) == pytest.approx(1 / (1 + np.exp(-logit)), rel=1e-5)


def test_auc_and_threshold_are_as_defined() -> None:
    labels = np.array([0, 0, 1, 1])
    assert auc(np.array([0.1, 0.4, 0.35, 0.8]), labels) == 0.75
    assert auc(np.array([0.5, 0.5, 0.5, 0.5]), labels) == 0.5
    scores = np.array([[0.3] * 50 + [0.7] * 50])
    assert 0.3 < best_threshold(scores, np.array([0] * 50 + [1] * 50)) <= 0.7


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.npz"
    path.write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="no router weights"):
        TrainedRouter(path)
    with np.load(WEIGHTS) as data:
        arrays = {name: data[name] for name in data.files}
    write_weights(path, {**arrays, "idf": arrays["idf"][:-1]})
    with pytest.raises(CheckpointError, match="idf must have"):
        TrainedRouter(path)
    header = json.dumps({"format": 9, "threshold": 0.5, "bias": 0.0}).encode()
    write_weights(path, {**arrays, "header": np.frombuffer(header, np.uint8)})
    with pytest.raises(CheckpointError, match="router format 9"):
        TrainedRouter(path)
    assert len(arrays["kinds"]) == len(KIND_NAMES)


def test_auto_asks_the_router() -> None:
    sot = SkeletonOfThought(embedded_engine(), SotOptions(prompts="embedded", use="auto"))
    decided = sot.decide("What is 17 + 25?")
    assert decided is not None
    assert not decided.use_sot
    assert "the router gives" in decided.reason
    accepted = sot.decide(LIST_QUESTION)
    assert accepted is not None
    assert accepted.use_sot
    with pytest.raises(RequestError, match="router must be"):
        SkeletonOfThought(embedded_engine(), SotOptions(use="auto"), router="roberta")


@pytest.fixture(scope="module")
def tiny_classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A RoBERTa of a few thousand weights with a vocabulary of words."""
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["<s>", "<pad>", "</s>", "<unk>", "tips", "ways", "solve", "code", "how", "what"]
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", unk_token="<unk>", model_max_length=64
    )
    config = transformers.RobertaConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=40, pad_token_id=1, num_labels=2,
    )  # fmt: skip
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("classifier")
    transformers.RobertaForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_sequence_classifier_is_trained_and_routes(
    tiny_classifier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from cascade_engine.sot.hf_router import HfRouter
    from cascade_engine.sot.train_hf_router import main

    rows = ["label;request"]
    rows += [f"{i % 2};{['solve code', 'tips ways'][i % 2]} how what" for i in range(96)]
    for name in ("lima", "vicuna"):
        (tmp_path / f"{name}_router.csv").write_text("\n".join(rows) + "\n")
    out = tmp_path / "out"
    folders = {"--model": tiny_classifier, "--data": tmp_path, "--out": out}
    options = [str(part) for pair in folders.items() for part in pair]
    main([*options, "--epochs", "200"])
    report = json.loads(capsys.readouterr().out)
    assert report["last_loss"] < report["first_loss"]
    assert report["vicuna"]["accuracy"] == 1.0
    router = HfRouter(out)
    assert router.score("tips ways") > 0.5 > router.score("solve code " * 1000)
    with pytest.raises(CheckpointError, match="is not a directory"):
        HfRouter(tmp_path / "nowhere")
    with pytest.raises(CheckpointError):
        HfRouter(tmp_path)


def test_the_recipe_weighs_errors_as_the_paper_does() -> None:
    from cascade_engine.sot.train_hf_router import learning_rate_at, tversky_loss

    labels = torch.tensor([1, 0])
    right, alarm, missed = (
        float(tversky_loss(torch.tensor(p), labels, 0.7, 0.3, 0.0))
        for p in ([1.0, 0.0], [1.0, 1.0], [0.5, 0.0])
    )
    assert right == pytest.approx(0.0, abs=1e-6)
    assert alarm == pytest.approx(1 - 1 / 1.7)
    assert missed == pytest.approx(1 - 0.5 / (0.5 + 0.15))
    assert [learning_rate_at(i, 100, 0.02) for i in (0, 1, 2, 51, 100)] == [0.5, 1, 1, 0.5, 0]
