"""Which n-gram table an engine drafts from: the shipped one of its tokenizer, another, or none."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from cascade_engine import Engine, FixedCascade, PlainDecoding, SamplingParams
from cascade_engine.errors import CheckpointError, RequestError, VocabularyMismatch
from cascade_engine.tables import prebuilt_for
from cascade_engine.tokenizer import Tokenizer
from tests.data import data_path
from tests.models.support import random_llama

TARGET = data_path("stories260k")
PROMPT = "The capital of"
PARAMS = SamplingParams(max_tokens=12, ignore_eos=True)


def with_tokenizer(folder: Path, name: str, rows: int) -> Path:
    """A random model of `rows` tokens with one of the common tokenizers."""
    random_llama(folder, 1, vocab_size=rows, tie_word_embeddings=True, max_position_embeddings=128)
    for file in data_path("tokenizers", name).iterdir():
        if file.name.startswith("tokenizer"):
            shutil.copy(file, folder)
    return folder


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_tokenizer(tmp_path_factory.mktemp("llama"), "llama", 32000)


@pytest.fixture(scope="module")
def shipped() -> Path:
    path = prebuilt_for(Tokenizer.load(data_path("tokenizers", "llama")))
    assert path is not None
    return path


def test_the_tokenizers_own_table_unless_told(llama: Path, shipped: Path) -> None:
    """It drafts from the first token on and changes none of them."""
    plain = Engine.load(llama, policy=PlainDecoding(), max_rows=1, threads=1)
    expected = plain.generate(PROMPT, PARAMS)[0].token_ids
    drafted = {}
    for tables in (None, shipped, "none"):
        for policy in (FixedCascade([[4]]), FixedCascade([[0]], tree=8)):
            engine = Engine.load(llama, tables=tables, policy=policy, max_rows=1, threads=1)
            name = "max-gram" if tables == "none" else "max-gram + table"
            assert engine.level_names[-1] == name
            result = engine.generate(PROMPT, PARAMS)[0]
            assert result.token_ids == expected
            drafted[tables, bool(policy.tree[0])] = result.stats.levels[-1].drafted
    for tree in (False, True):
        assert drafted[None, tree] == drafted[shipped, tree] > drafted["none", tree]


def test_a_tokenizer_without_a_table_has_none() -> None:
    assert Engine.load(TARGET, max_rows=1).level_names[-1] == "max-gram"


def test_a_model_with_fewer_rows_than_the_table_goes_without(tmp_path: Path, shipped: Path) -> None:
    """Nobody asked for the table that does not fit; one that was asked for is refused."""
    small = with_tokenizer(tmp_path, "llama", 31990)
    engine = Engine.load(small, max_rows=1, threads=1)
    assert engine.level_names[-1] == "max-gram"
    with pytest.raises(VocabularyMismatch, match="tokens up to 31999, the models share 31990"):
        Engine.load(small, tables=shipped, max_rows=1)


def test_tables_that_do_not_fit_are_refused(tmp_path: Path, shipped: Path) -> None:
    with pytest.raises(VocabularyMismatch, match="was built for another tokenizer"):
        Engine.load(TARGET, tables=shipped, max_rows=1)
    with pytest.raises((CheckpointError, OSError), match="missing"):
        Engine.load(TARGET, tables=tmp_path / "missing.safetensors", max_rows=1)
    nameless = tmp_path / "nameless"
    random_llama(nameless, 1, vocab_size=512)
    with pytest.raises(RequestError, match="has none to compare with"):
        Engine.load(nameless, tables=shipped, max_rows=1)
    assert Engine.load(nameless, max_rows=1).level_names[-1] == "max-gram"
