"""tokenizer.json files: the tokens and the text of the tokenizers package."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from cascade_engine.errors import TokenizerError
from cascade_engine.tokenizer import Tokenizer
from tests.data import data_path, prompts
from tests.tokenizer_support import (
    TEXTS,
    assert_streams,
    load,
    random_rows,
    reference,
    transformers_llama,
)


def test_t5_json_and_sentencepiece_agree(tmp_path: Path) -> None:
    model = load(tmp_path, "t5", tokenizer_config={"extra_ids": 100})
    directory = tmp_path / "json"
    directory.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(data_path("tokenizers", "t5", name), directory / name)
    other = Tokenizer.load(directory)
    assert other is not None
    assert other.pieces() == model.pieces()
    assert other.fingerprint() == model.fingerprint()
    assert other.eos_ids == (1,)
    # The file cuts and fills texts to 153 tokens, which is not what a model should be fed.
    assert len(other.encode("word " * 500)) > 400
    texts = prompts(200)
    assert sum(model.encode(text) == other.encode(text) for text in texts) >= 0.95 * len(texts)


def json_tokenizer(tmp_path: Path, kind: str) -> tuple[Tokenizer, Any]:
    """A tokenizer read by the engine, and the same one of the tokenizers package."""
    tokenizers = pytest.importorskip("tokenizers")
    settings = {"bos_token": "<s>", "eos_token": "</s>"}
    if kind == "llama":
        transformers_llama(reference("stories260k")).backend_tokenizer.save(
            str(tmp_path / "tokenizer.json")
        )
    elif kind == "metaspace":
        shutil.copy(data_path("tokenizers", "t5", "tokenizer.json"), tmp_path)
        settings = {"eos_token": "</s>"}
    else:
        model = tokenizers.Tokenizer(tokenizers.models.BPE())
        model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        model.decoder = tokenizers.decoders.ByteLevel()
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=600,
            special_tokens=["<s>", "</s>"],
            initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        model.train_from_iterator([*TEXTS, "the cat sat on the mat " * 20], trainer)
        model.add_tokens(["<tool é>", "日"])
        model.post_processor = tokenizers.processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", model.token_to_id("<s>"))]
        )
        model.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer is not None
    other = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    other.no_truncation()
    other.no_padding()
    return tokenizer, other


@pytest.mark.parametrize("kind", ["llama", "byte level", "metaspace"])
def test_json_tokenizers(tmp_path: Path, kind: str) -> None:
    tokenizer, other = json_tokenizer(tmp_path, kind)
    rng = random.Random(4)
    for text in TEXTS + prompts(60):
        ids = other.encode(text).ids
        assert tokenizer.encode(text, parse_special=True) == ids
        if "</s>" not in text:
            assert tokenizer.encode(text) == ids
        assert tokenizer.decode(ids) == other.decode(ids)
        assert_streams(tokenizer, ids, rng)
    checked = 0
    for ids in random_rows(rng, tokenizer.pieces(), 2000):
        assert_streams(tokenizer, ids, rng)
        expected = other.decode(ids)
        # In a run of bytes with a mistake, the package drops the characters that are right too.
        if kind != "llama" or "\ufffd" not in expected:
            checked += 1
            assert tokenizer.decode(ids) == expected, ids
    assert checked > 500
    special = "</s>"
    plain = tokenizer.encode(special, add_bos=False, add_eos=False)
    if kind != "metaspace":  # a unigram model finds all its pieces in plain text
        assert not set(plain) & set(tokenizer.eos_ids)
    assert tokenizer.encode(special, False, False, parse_special=True) == list(tokenizer.eos_ids)


def test_json_decoder_that_is_not_known(tmp_path: Path) -> None:
    json_tokenizer(tmp_path, "llama")
    file = tmp_path / "tokenizer.json"
    content = json.loads(file.read_text())
    for decoder in ({"type": "WordPiece", "prefix": "##", "cleanup": True}, None):
        content["decoder"] = decoder
        file.write_text(json.dumps(content))
        with pytest.raises(TokenizerError, match=r"decoder .* is not supported; ByteLevel,"):
            Tokenizer.load(tmp_path)
