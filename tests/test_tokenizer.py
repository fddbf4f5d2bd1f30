"""Tokenizers: the tokens of SentencePiece and tokenizers, and text that streams without a seam."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from cascade_engine import tokenizer_json
from cascade_engine.errors import RequestError, TokenizerError, VocabularyMismatch
from cascade_engine.tokenizer import Tokenizer, check_same_vocabulary
from tests.data import data_path, prompts
from tests.tokenizer_support import (
    MODELS,
    TEXTS,
    assert_streams,
    load,
    random_rows,
    reference,
    transformers_llama,
)


@pytest.mark.parametrize("name", MODELS)
def test_encodes_as_sentencepiece(tmp_path: Path, name: str) -> None:
    tokenizer, model = load(tmp_path, name), reference(name)
    for text in TEXTS + prompts(400):
        expected = list(model.encode(text))
        assert tokenizer.encode(text, add_bos=False, add_eos=False) == expected
        around = [*expected, 1] if name == "t5" else [1, *expected]
        assert tokenizer.encode(text) == around


@pytest.mark.parametrize("name", ["llama", "stories260k"])
def test_encodes_and_decodes_as_transformers(tmp_path: Path, name: str) -> None:
    tokenizer, model = load(tmp_path, name), reference(name)
    other = transformers_llama(model)
    texts = prompts(400) + [text for text in TEXTS if "</s>" not in text]
    # transformers leaves out the normalization that the small model's file asks for, and adds no
    # space before a first one.
    same = [text for text in texts if model.normalize(text) == "▁" + text.replace(" ", "▁")]
    same = [text for text in same if not text.startswith(" ")]
    assert len(same) >= 250
    for text in same:
        ids = tokenizer.encode(text)
        if name == "llama" or 0 not in ids:
            assert ids == [1, *other.encode(text, add_special_tokens=False)], text
            assert tokenizer.decode(ids) == other.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("name", MODELS)
def test_decodes_as_sentencepiece(tmp_path: Path, name: str) -> None:
    tokenizer, model = load(tmp_path, name), reference(name)
    rng = random.Random(11)
    for ids in random_rows(rng, tokenizer.pieces()[: model.get_piece_size()], 3000):
        assert tokenizer.decode(ids) == model.decode(ids), ids
        assert_streams(tokenizer, ids, rng)
    for text in TEXTS + prompts(100):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == model.decode(ids)
        assert_streams(tokenizer, ids, rng)


def test_llama_round_trip(tmp_path: Path) -> None:
    tokenizer = load(tmp_path, "llama")
    for text in prompts(400) + [t for t in TEXTS if "▁" not in t]:
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_every_byte_run(tmp_path: Path) -> None:
    """All runs of two bytes, and random longer ones: what is no UTF-8 shows byte by byte."""
    tokenizer, model = load(tmp_path, "llama"), reference("llama")
    rng = random.Random(3)
    runs = [[3 + a, 3 + b] for a in range(0, 256, 3) for b in range(256)]
    starts = (0xC2, 0xE0, 0xE2, 0xED, 0xF0, 0xF4, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0x41)
    runs += [[3 + rng.choice(starts) for _ in range(rng.randrange(3, 8))] for _ in range(5000)]
    for run in runs:
        assert tokenizer.decode(run) == model.decode(run)


def test_stream_holds_back_only_what_is_cut(tmp_path: Path) -> None:
    tokenizer = load(tmp_path, "llama")
    stream = tokenizer.stream_decoder()
    emoji = [3 + byte for byte in "😀é".encode()]
    assert [stream.push([i]) for i in emoji] == ["", "", "", "😀", "", "é"]
    assert stream.push(emoji[:3]) == ""
    assert stream.push([15043]) == "\ufffd\ufffd\ufffd Hello"
    assert stream.push(emoji[:2]) == ""
    assert stream.flush() == "\ufffd\ufffd"
    assert stream.flush() == ""


def test_leading_space(tmp_path: Path) -> None:
    tokenizer = load(tmp_path, "llama")
    hello = tokenizer.encode("Hello", add_bos=False)
    assert tokenizer.decode(hello) == "Hello"
    assert tokenizer.decode(hello, continues=True) == " Hello"
    assert tokenizer.decode([1, *hello, *hello]) == "Hello Hello"
    assert tokenizer.stream_decoder(continues=True).push(hello) == " Hello"


def test_ids_outside_the_vocabulary(tmp_path: Path) -> None:
    tokenizer = load(tmp_path, "stories260k")
    with pytest.raises(TokenizerError, match="token id must be >= 0, got -1"):
        tokenizer.decode([5, -1])
    a = tokenizer.encode("a", add_bos=False)
    assert tokenizer.decode([*a, 512, *a]) == "a\ufffd a"
    assert tokenizer.decode([3 + 0xE2, 600]) == "\ufffd\ufffd"


def test_a_token_costs_the_same_wherever_it_stands(tmp_path: Path) -> None:
    tokenizer = load(tmp_path, "llama")
    ids = (tokenizer.encode("word 日本 😀 ") * 8000)[:40_000]

    def quarters() -> list[float]:
        stream, seconds = tokenizer.stream_decoder(), []
        for start in range(0, len(ids), 10_000):
            begin = time.process_time()
            for token in ids[start : start + 10_000]:
                stream.push([token])
            seconds.append(time.process_time() - begin)
        return seconds

    best = [min(each) for each in zip(*(quarters() for _ in range(4)), strict=True)]
    assert best[-1] < 5 * min(best) + 0.02


def test_begin_and_end_tokens(tmp_path: Path) -> None:
    tokenizer = load(tmp_path, "llama")
    assert (tokenizer.bos_id, tokenizer.eos_ids, tokenizer.vocab_size) == (1, (2,), 32000)
    assert tokenizer.encode("a", add_bos=True) == [1, 263]
    assert tokenizer.encode("a", add_bos=False, add_eos=True) == [263, 2]
    tokenizer = load(tmp_path, "llama", tokenizer_config={"add_bos_token": False})
    assert tokenizer.encode("a") == [263]
    settings = {"add_eos_token": True, "eos_token": {"content": "<unk>"}}
    tokenizer = load(tmp_path, "llama", tokenizer_config=settings)
    assert tokenizer.eos_ids == (0,)
    assert tokenizer.encode("a") == [1, 263, 0]
    with pytest.raises(TokenizerError, match="eos_token '<nope>' is not in the vocabulary"):
        load(tmp_path, "llama", tokenizer_config={"eos_token": "<nope>"})
    with pytest.raises(TokenizerError, match="add_bos_token must be true or false, got 1"):
        load(tmp_path, "llama", tokenizer_config={"add_bos_token": 1})


def test_special_tokens_in_text(tmp_path: Path) -> None:
    """Plain by default; parsed on request as transformers does, in both of its conventions."""
    model = reference("llama")
    pieces = ["</s>", "<s>", "hi", " hi", "hi ", "[INST]", "\n", "<unk>", "é", "<", "s>"]
    rng = random.Random(2)
    texts = ["".join(rng.choices(pieces, k=rng.randrange(1, 7))) for _ in range(300)]
    tokenizer, other = load(tmp_path, "llama"), transformers_llama(model)
    for text in texts:
        assert tokenizer.encode(text, add_bos=False) == list(model.encode(text))
        if text.startswith(" "):  # SentencePiece puts a space before it, transformers does not
            continue
        expected = other.encode(text, add_special_tokens=False)
        assert tokenizer.encode(text, add_bos=False, parse_special=True) == expected, text
    tokenizer = load(tmp_path, "llama", tokenizer_config={"legacy": True})
    assert tokenizer.encode("a</s>a", parse_special=True) == [1, 263, 2, 263]
    assert load(tmp_path, "llama", tokenizer_config={}).encode("a</s>a", parse_special=True) == [
        *(1, 263, 2, 29874)
    ]


def test_added_tokens(tmp_path: Path) -> None:
    decoder = {
        "32000": {"content": "<|im|>", "special": True, "rstrip": True},
        "32001": {"content": "<tool>", "special": False},
        "0": {"content": "<unk>", "special": True},
    }
    tokenizer = load(tmp_path, "llama", tokenizer_config={"added_tokens_decoder": decoder})
    assert tokenizer.vocab_size == 32002
    assert tokenizer.pieces()[32000:] == ["<|im|>", "<tool>"]
    assert tokenizer.special_ids() == {"<unk>": 0, "<s>": 1, "</s>": 2, "<|im|>": 32000}
    ids = tokenizer.encode("a<|im|>  a<tool>", add_bos=False, parse_special=True)
    assert ids == [263, 32000, 29874, 32001]
    assert tokenizer.decode(ids) == "aa<tool>"
    (tmp_path / "tokenizer_config.json").unlink()
    assert load(tmp_path, "llama", added_tokens={"<pad>": 32000}).pieces()[32000:] == ["<pad>"]
    with pytest.raises(TokenizerError, match="without a hole, got 32001 for '<pad>'"):
        load(tmp_path, "llama", added_tokens={"<pad>": 32001})
    with pytest.raises(TokenizerError, match="added token 2 is '<pad>', but the model file has"):
        load(tmp_path, "llama", added_tokens={"<pad>": 2})
    with pytest.raises(TokenizerError, match=r"token id must be an integer in \[0, 2\^31\), got"):
        load(tmp_path, "llama", added_tokens={"<pad>": "2"})


@pytest.mark.parametrize(
    ("decoder", "message"),
    [
        ([], None),
        (["<x>"], "added_tokens_decoder must be an object, got list"),
        ({"9" * 5000: {"content": "<x>"}}, "token id must be an integer"),
        ({"32000": {}}, "must have a content"),
    ],
)
def test_added_tokens_that_are_none(tmp_path: Path, decoder: object, message: str | None) -> None:
    config = {"added_tokens_decoder": decoder}
    if message is None:
        assert load(tmp_path, "llama", tokenizer_config=config).vocab_size == 32000
        return
    with pytest.raises(TokenizerError, match=message):
        load(tmp_path, "llama", tokenizer_config=config)


def test_t5(tmp_path: Path) -> None:
    tokenizer = load(tmp_path, "t5", tokenizer_config={"extra_ids": 100})
    pieces = tokenizer.pieces()
    assert len(pieces) == 32100
    assert (pieces[32000], pieces[32099]) == ("<extra_id_99>", "<extra_id_0>")
    assert (tokenizer.bos_id, tokenizer.eos_ids) == (None, (1,))
    assert tokenizer.encode("a", parse_special=True)[-1] == 1
    with pytest.raises(RequestError, match="add_bos must be False: this tokenizer has no begin"):
        tokenizer.encode("a", add_bos=True)


def test_text_that_is_no_unicode(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="got a lone surrogate at character 2"):
        load(tmp_path, "llama").encode("ab\ud800")


def test_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Tokenizer.load(tmp_path) is None
    for content in (b"", b"garbage" * 10):
        (tmp_path / "tokenizer.model").write_bytes(content)
        with pytest.raises(TokenizerError, match=r"tokenizer\.model is not a SentencePiece model"):
            Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(TokenizerError, match=r"tokenizer\.json is not a tokenizer"):
        Tokenizer.load(tmp_path)
    monkeypatch.setattr(tokenizer_json, "tokenizers", None)
    (tmp_path / "tokenizer.model").unlink()
    with pytest.raises(TokenizerError, match=r"needs the tokenizers package: pip install"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("[]")
    with pytest.raises(TokenizerError, match="must hold a JSON object, got list"):
        Tokenizer.load(tmp_path)


# tokenizer.json files of the kinds that LLaMA and T5 models come with.
def test_same_vocabulary(tmp_path: Path) -> None:
    stories, xs = Tokenizer.load(data_path("stories260k")), Tokenizer.load(data_path("llama2xs"))
    assert stories is not None
    assert xs is not None
    assert check_same_vocabulary(stories, xs) == 512
    assert check_same_vocabulary(stories, xs, 576, 512) == 512
    assert stories.fingerprint() == xs.fingerprint()
    assert stories.pieces() == xs.pieces()
    llama = load(tmp_path, "llama")
    assert llama.fingerprint() != stories.fingerprint()
    first = next(
        i for i, (a, b) in enumerate(zip(llama.pieces(), xs.pieces(), strict=False)) if a != b
    )
    with pytest.raises(VocabularyMismatch) as caught:
        check_same_vocabulary(llama, xs)
    names = f"token {first} is {llama.pieces()[first]!r} to the target and {xs.pieces()[first]!r}"
    assert names in str(caught.value)


@pytest.mark.parametrize("padding", ["<pad>", "[PAD]", "<|reserved_7|>", "<unused3>", "[PAD151]"])
def test_padding_is_no_difference(tmp_path: Path, padding: str) -> None:
    plain = load(tmp_path, "llama")
    padded = load(tmp_path, "llama", added_tokens={padding: 32000})
    assert check_same_vocabulary(plain, padded, 32000, 32064) == 32000
    assert check_same_vocabulary(padded, plain, 32064, 32000) == 32000
    assert check_same_vocabulary(padded, padded, 32064, 32064) == 32001
    real = load(tmp_path, "llama", added_tokens={padding: 32000, "<|im_start|>": 32001})
    with pytest.raises(VocabularyMismatch, match=r"token 32001 is nothing .* '<\|im_start\|>' to"):
        check_same_vocabulary(plain, real)
    with pytest.raises(VocabularyMismatch, match=r"token 32001 is '<\|im_start\|>' to the target"):
        check_same_vocabulary(real, plain)
    with pytest.raises(VocabularyMismatch, match="token 32000 is"):
        check_same_vocabulary(load(tmp_path, "llama", added_tokens={"<x>": 32000}), padded)


def test_without_tokenizers_only_equal_sizes_go_together(tmp_path: Path) -> None:
    llama = load(tmp_path, "llama")
    assert check_same_vocabulary(None, None, 90, 90) == 90
    assert check_same_vocabulary(llama, None, 32000, 32000) == 32000
    for pair in ((None, None), (llama, None), (None, llama)):
        with pytest.raises(VocabularyMismatch, match="target has 32000 tokens and draft 32064"):
            check_same_vocabulary(*pair, 32000, 32064)
