"""Tokenizers and texts that tests of encoding and decoding share."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sentencepiece

from cascade_engine.tokenizer import Tokenizer
from tests.data import data_path

MODELS = {
    "llama": ("tokenizers", "llama", "tokenizer.model"),
    "stories260k": ("stories260k", "tokenizer.model"),
    "t5": ("tokenizers", "t5", "spiece.model"),
}
TEXTS = [
    "",
    " ",
    "   ",
    "a",
    " a",
    "  a  b ",
    "\n\n x\n",
    "tab\there\r\n",
    "a\0b",
    "naïve Ångström — “quoted” …",
    "日本語のテキスト、한국어, العربية, עברית",
    "👩‍👩‍👧‍👦 🏳️‍🌈 \U0001f9ff\U0010fffd",
    "e\u0301 \u00a0\u3000 \ufb01 \uff21\ufffd\u2581x\u2581",
    "</s><s><unk> <0x41> [INST]",
    "def f(x):\n    return x ** 2  # ok\n",
]


def directory_of(tmp_path: Path, name: str, **files: Any) -> Path:
    source = data_path(*MODELS[name])
    shutil.copy(source, tmp_path / source.name)
    for key, value in files.items():
        (tmp_path / f"{key}.json").write_text(json.dumps(value))
    return tmp_path


def load(tmp_path: Path, name: str, **files: Any) -> Tokenizer:
    tokenizer = Tokenizer.load(directory_of(tmp_path, name, **files))
    assert tokenizer is not None
    return tokenizer


def reference(name: str) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_file=str(data_path(*MODELS[name])))


def transformers_llama(model: sentencepiece.SentencePieceProcessor, **settings: Any) -> Any:
    """transformers' LLaMA tokenizer; merges are ranked by the score of what they make."""
    from transformers import LlamaTokenizer

    size = model.get_piece_size()
    vocab = {model.id_to_piece(i): i for i in range(size)}
    merges = []
    for piece, number in vocab.items():
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in vocab and right in vocab:
                merges.append((model.get_score(number), -vocab[left], -vocab[right], left, right))
    ranked = [(left, right) for *_, left, right in sorted(merges, reverse=True)]
    return LlamaTokenizer(vocab=vocab, merges=ranked, **settings)


def random_rows(rng: random.Random, pieces: list[str], count: int) -> Iterator[list[int]]:
    """Words, bytes (cut-off characters), special tokens, and ids among the first few."""
    spaces = [i for i, piece in enumerate(pieces) if piece.startswith("▁")]
    pools = [range(len(pieces)), range(3, min(259, len(pieces))), range(4), spaces or range(4)]
    for _ in range(count):
        yield [rng.choice(rng.choice(pools)) for _ in range(rng.randrange(14))]


def assert_streams(tokenizer: Tokenizer, ids: list[int], rng: random.Random) -> None:
    """Whatever the groups in which tokens arrive, the parts make the whole."""
    for continues in (False, True):
        whole = tokenizer.decode(ids, continues)
        stream, parts, position = tokenizer.stream_decoder(continues), [], 0
        while position < len(ids):
            step = rng.choice((1, 1, 1, 2, 5))
            parts.append(stream.push(ids[position : position + step]))
            position += step
        assert "".join(parts) + stream.flush() == whole
