"""Tokenizer, training batches and scores: what the training scripts feed and count."""

from __future__ import annotations

import hashlib
from itertools import islice
from pathlib import Path

import pytest
import torch

import cascade_engine.demo
from cascade_engine.demo.batches import packed_batches, pair_batches
from cascade_engine.demo.corpus import Document, documents
from cascade_engine.demo.scoring import is_correct, score
from cascade_engine.demo.tokenizer import (
    BOS_ID,
    EOS_ID,
    VOCAB_SIZE,
    encode_answer,
    encode_document,
    load_tokenizer,
)
from cascade_engine.training.batches import PROMPT_WEIGHT

FOLDER = Path(cascade_engine.demo.__file__).parent


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(FOLDER / "llama-target" / "tokenizer.model")


def test_special_ids_and_size(tokenizer) -> None:
    assert tokenizer.vocab_size() == VOCAB_SIZE
    assert (tokenizer.unk_id(), tokenizer.bos_id(), tokenizer.eos_id()) == (0, BOS_ID, EOS_ID)
    assert tokenizer.pad_id() == -1


def test_documents_round_trip(tokenizer) -> None:
    for document in islice(documents("test", 0), 500):
        ids, prompt_length = encode_document(tokenizer, document.prompt, document.answer)
        assert ids[:prompt_length] == [BOS_ID, *tokenizer.encode(document.prompt)]
        assert ids[-1] == EOS_ID
        assert 0 not in ids
        assert tokenizer.decode(ids) == document.text


@pytest.mark.parametrize("text", ["naïve café", "日本 12", "tabs\tand  two blanks", "a\n\nb", "🙂"])
def test_byte_fallback_round_trips_any_text(tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert 0 not in ids
    assert tokenizer.decode(ids) == text


def test_digits_are_single_pieces(tokenizer) -> None:
    pieces = [tokenizer.id_to_piece(i) for i in tokenizer.encode("347 + 285 = 632.")]
    assert pieces == ["▁", *"347", "▁+", "▁", *"285", "▁=", "▁", *"632", "."]
    assert not any(len(p) > 1 and any(c.isdigit() for c in p) for p in pieces)


def test_answer_must_begin_with_a_blank(tokenizer) -> None:
    with pytest.raises(ValueError, match="answer must begin with a blank, got 'Yes'"):
        encode_answer(tokenizer, "Yes")


def test_missing_tokenizer_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"python -m cascade_engine\.demo\.tokenizer"):
        load_tokenizer(tmp_path / "none.model")


def test_packed_rows_hold_whole_documents(tokenizer) -> None:
    batch = next(packed_batches(documents("train", 2), tokenizer, rows=4, length=512))
    assert batch.tokens.shape == batch.weights.shape
    assert batch.tokens.shape[0] == 4
    assert batch.tokens.shape[1] <= 512
    filled = (batch.tokens != 0).sum(1)
    assert (filled > 450).all()
    for tokens, weights, length in zip(batch.tokens, batch.weights, filled, strict=True):
        assert tokens[0] == BOS_ID
        assert tokens[length - 1] == EOS_ID
        assert (tokens == BOS_ID).sum() == (tokens == EOS_ID).sum()
        assert (weights[tokens == BOS_ID] == 0).all()
        assert (weights[tokens == EOS_ID] == 1).all()
        assert (weights[length:] == 0).all()
    assert set(batch.weights.unique().tolist()) == {0.0, torch.tensor(PROMPT_WEIGHT).item(), 1.0}


def test_too_long_a_document_is_an_error(tokenizer) -> None:
    with pytest.raises(ValueError, match="does not fit a row of 16"):
        next(packed_batches(documents("train", 2), tokenizer, rows=1, length=16))


def test_pair_batches_cover_the_documents_within_the_limit(tokenizer) -> None:
    source = list(islice(documents("train", 2), 1024))
    batches = list(pair_batches(source, tokenizer, batch_tokens=1280))
    answers = []
    for batch in batches:
        assert batch.inputs is not None
        rows, width = batch.tokens.shape
        assert rows * (width + batch.inputs.shape[1]) <= 1280 or rows == 1
        assert torch.equal(batch.weights > 0, batch.tokens != 0)
        answers += [tokenizer.decode([t for t in row if t > 2]) for row in batch.tokens.tolist()]
    assert sorted(answers) == sorted(d.answer[1:] for d in source)


def test_model_card_names_the_embedded_weights_and_they_are_small() -> None:
    card = (FOLDER / "MODEL_CARD.md").read_text()
    weights = sorted(FOLDER.glob("*/model.safetensors"))
    assert {w.parent.name for w in weights} >= {"llama-target", "llama-middle", "llama-small"}
    for file in weights:
        assert f"`{hashlib.sha256(file.read_bytes()).hexdigest()}`" in card, file.parent.name
        same = file.with_name("tokenizer.model").read_bytes()
        assert same == (FOLDER / "llama-target" / "tokenizer.model").read_bytes()
    assert sum(f.stat().st_size for f in FOLDER.rglob("*") if f.is_file()) <= 30 * 2**20


SUM = Document("arithmetic", "i", "p", " 1 + 2 = 3. The answer is 3.", answer_number=3)
LIST = Document("skeleton", "i", "p", " Do this now\n2. Do that then", points=2)
FACT = Document("fact", "i", "p", " It is red.")


@pytest.mark.parametrize(
    ("document", "text", "right"),
    [
        (SUM, "Other words. The answer is 3.", True),
        (SUM, "The answer is 31.", False),
        (SUM, "The answer is 3. And more", False),
        (LIST, "One thing here\n2. Another thing here", True),
        (LIST, "One thing here", False),
        (FACT, "It is red.", True),
        (FACT, "It is blue.", False),
    ],
)
def test_is_correct(document: Document, text: str, right: bool) -> None:
    assert is_correct(document, text) is right


def test_score_counts_stops_and_texts(tokenizer) -> None:
    right = encode_answer(tokenizer, SUM.answer)
    result = score([SUM, SUM], tokenizer, [right, right[:-3]])
    assert result == {"count": 2, "correct": 0.5, "stopped": 0.5, "same_text": 0.5}
