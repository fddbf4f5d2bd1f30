"""Losses, distillation, resuming and export of the training scripts, on the smallest presets."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")

import cascade_engine.demo
from cascade_engine.demo import train
from cascade_engine.demo.corpus import distinct_documents
from cascade_engine.demo.export import embedded_bytes, export_model
from cascade_engine.demo.model_card import write_card
from cascade_engine.demo.presets import PRESETS, build_model, load_model
from cascade_engine.demo.reference_scores import agreement, answer_batch
from cascade_engine.demo.tokenizer import encode_answer, load_tokenizer
from cascade_engine.training import losses
from cascade_engine.training.batches import Batch

TOKENIZER = Path(cascade_engine.demo.__file__).parent / "llama-target" / "tokenizer.model"


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Small tensors on a busy machine: threads would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def llama():
    torch.manual_seed(0)
    return build_model("llama-small").eval()


@pytest.fixture(scope="module")
def t5():
    torch.manual_seed(0)
    return build_model("t5-draft").eval()


def test_presets_have_the_promised_sizes() -> None:
    bounds = {
        "llama-target": (5e6, 8e6),
        "llama-middle": (0.8e6, 1.3e6),
        "llama-small": (0.15e6, 0.3e6),
        "t5-target": (4e6, 7e6),
        "t5-draft": (0.4e6, 0.8e6),
    }
    assert set(bounds) == set(PRESETS)
    for name, (low, high) in bounds.items():
        assert low <= sum(p.numel() for p in build_model(name).parameters()) <= high, name


def test_unknown_preset_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"model must be one of llama-target, .* got 'gpt'"):
        build_model("gpt")


def test_llama_loss_is_the_next_token_loss(llama) -> None:
    tokens = torch.randint(3, 2048, (2, 20), generator=torch.Generator().manual_seed(1))
    weights = torch.ones(2, 20)
    weights[:, 0] = 0
    ours = losses.loss_of(llama, Batch(tokens, weights))
    with torch.autocast("cpu", torch.bfloat16):
        theirs = llama(input_ids=tokens, labels=tokens).loss
    assert abs(ours.item() - theirs.item()) < 5e-3


def test_t5_loss_is_the_loss_of_transformers(t5) -> None:
    generator = torch.Generator().manual_seed(2)
    tokens, inputs = (torch.randint(3, 2048, (2, n), generator=generator) for n in (9, 14))
    tokens[1, 6:], inputs[1, 10:] = 0, 0
    ours = losses.loss_of(t5, Batch(tokens, (tokens != 0).float(), inputs))
    labels = tokens.masked_fill(tokens == 0, -100)
    with torch.autocast("cpu", torch.bfloat16):
        theirs = t5(input_ids=inputs, attention_mask=(inputs != 0).long(), labels=labels).loss
    assert abs(ours.item() - theirs.item()) < 5e-3


def test_weights_choose_the_tokens_that_count(llama) -> None:
    tokens = torch.arange(40).reshape(2, 20) + 5
    one = torch.zeros(2, 20)
    one[0, 7] = 1.0
    other = tokens.clone()
    other[:, 8:] = 9
    assert losses.loss_of(llama, Batch(tokens, one)) == losses.loss_of(llama, Batch(other, one))


def test_distillation_from_itself_has_no_divergence(llama) -> None:
    batch = Batch(torch.arange(40).reshape(2, 20) + 5, torch.ones(2, 20))
    assert losses.loss_of(llama, batch, teacher=llama, teacher_share=1.0).abs() < 1e-6
    mixed = losses.loss_of(llama, batch, teacher=llama, teacher_share=0.25)
    assert abs(mixed.item() - 0.75 * losses.loss_of(llama, batch).item()) < 1e-4


def test_agreement_of_a_model_with_its_own_greedy_tokens_is_one(llama) -> None:
    tokenizer = load_tokenizer(TOKENIZER)
    items = distinct_documents("test", "fact", 3)
    batch = answer_batch([tokenizer.encode(d.prompt) for d in items], [[7, 8, 2]] * 3, False)
    first = losses.forward_logits(llama, batch).argmax(-1)[batch.weights > 0].tolist()[0::3]
    assert agreement(llama, tokenizer, items, [[t] for t in first]) == 1.0
    assert agreement(llama, tokenizer, items, [[(t + 1) % 2048] for t in first]) == 0.0


def test_answer_batch_marks_the_answers() -> None:
    batch = answer_batch([[5, 6], [7]], [[8, 2], [9, 10, 2]], encoder_decoder=False)
    assert batch.tokens.tolist() == [[1, 5, 6, 8, 2], [1, 7, 9, 10, 2]]
    assert batch.weights.tolist() == [[0, 0, 0, 1, 1], [0, 0, 1, 1, 1]]
    pair = answer_batch([[5, 6], [7]], [[8, 2], [9, 10, 2]], encoder_decoder=True)
    assert pair.inputs is not None
    assert pair.inputs.tolist() == [[5, 6, 2], [7, 2, 0]]
    assert pair.weights.tolist() == [[1, 1, 0], [1, 1, 1]]


def run_training(monkeypatch: pytest.MonkeyPatch, out: Path, *extra: str) -> None:
    arguments = ["--model", "llama-small", "--tokenizer", str(TOKENIZER), "--out", str(out)]
    monkeypatch.setattr("sys.argv", ["train", *arguments, "--report-count", "2", *extra])
    monkeypatch.setattr(train, "VALIDATION_BATCHES", 1)
    small = replace(PRESETS["llama-small"], batch_tokens=288)
    monkeypatch.setitem(PRESETS, "llama-small", small)
    monkeypatch.setattr(train, "greedy_answers", lambda *_, **__: [[5, 2], [5]])
    train.main()


def test_a_run_resumes_where_it_stopped_and_exports(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    out = tmp_path / "trained" / "llama-small"
    run_training(monkeypatch, out, "--steps", "3", "--until", "2")
    assert not (out / "final").exists()
    run_training(monkeypatch, out, "--steps", "3", "--resume")
    record = json.loads((out / "log.jsonl").read_text().splitlines()[-1])
    assert record["step"] == 3
    assert record["tokens"] > 3 * 200
    assert record["arithmetic"]["stopped"] == 0.5
    export_model("llama-small", tmp_path / "trained", TOKENIZER, tmp_path)
    exported = load_model(tmp_path / "llama-small", "llama", torch.bfloat16)
    final = load_model(out / "final", "llama", torch.bfloat16)
    for name, value in final.state_dict().items():
        assert torch.equal(value, exported.state_dict()[name]), name
    assert embedded_bytes(tmp_path) < 600_000
    write_card(tmp_path, tmp_path / "trained")
    card = (tmp_path / "MODEL_CARD.md").read_text()
    assert "| llama-small | 237,888 |" in card
    assert f"{record['validation_loss']} |" in card


def test_export_names_the_command_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"demo\.train --model t5-draft"):
        export_model("t5-draft", tmp_path, TOKENIZER, tmp_path)


def test_answers_end_with_eos() -> None:
    assert encode_answer(load_tokenizer(TOKENIZER), " Yes.")[-1] == 2
