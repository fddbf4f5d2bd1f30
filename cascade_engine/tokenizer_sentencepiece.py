"""SentencePiece models (tokenizer.model of LLaMA, spiece.model of T5)."""

from __future__ import annotations

import re
from pathlib import Path

import sentencepiece

from cascade_engine.detokenizer import BYTES, MARK, TEXT, Surfaces
from cascade_engine.errors import TokenizerError
from cascade_engine.tokenizer_files import BYTE_PIECE, AddedToken, TokenizerFiles, Vocabulary

SPACE = "\u2581"
# normalizer_spec { add_dummy_prefix: false } as protobuf. Appended to a model it overrides that
# one setting, because a message field that occurs twice is merged.
NO_DUMMY_PREFIX = bytes([0x1A, 0x02, 0x18, 0x00])
T5_EXTRA_IDS = 100


def load(files: TokenizerFiles) -> Vocabulary:
    """The vocabulary of a SentencePiece file and the tokens added to it. Raises TokenizerError."""
    path = files.sentencepiece
    assert path is not None
    data, processor = _read(path)
    size = processor.get_piece_size()
    pieces = [processor.id_to_piece(i) for i in range(size)]
    added = _added_tokens(files, pieces)
    surfaces = _surfaces(processor, pieces, added)
    pieces += [token.content for token in added]
    is_t5 = path.name == "spiece.model"
    bos = _named_id(files, "bos_token", pieces, processor.bos_id())
    eos = _named_id(files, "eos_token", pieces, processor.eos_id())
    adds_bos, adds_eos = files.flag("add_bos_token"), files.flag("add_eos_token")
    specials = {pieces[i]: i for i in range(size) if processor.is_control(i)}
    specials[pieces[processor.unk_id()]] = processor.unk_id()
    specials.update((token.content, token.id) for token in added if token.special)
    encoder = _Encoder(data, processor, specials, added, bool(files.flag("legacy")))
    return Vocabulary(
        pieces=pieces,
        surfaces=surfaces,
        specials=specials,
        bos_id=bos,
        eos_ids=() if eos is None else (eos,),
        adds_bos=(bos is not None and not is_t5) if adds_bos is None else adds_bos,
        adds_eos=is_t5 if adds_eos is None else adds_eos,
        encode=encoder.plain,
        encode_special=encoder.special,
    )


def _read(path: Path) -> tuple[bytes, sentencepiece.SentencePieceProcessor]:
    try:
        data = path.read_bytes()
        processor = sentencepiece.SentencePieceProcessor(model_proto=data)
        size = processor.get_piece_size()
    except (OSError, RuntimeError, ValueError) as error:
        raise TokenizerError(f"{path} is not a SentencePiece model: {error}") from None
    if size < 1:
        raise TokenizerError(f"{path} is not a SentencePiece model: it has no pieces")
    return data, processor


def _named_id(files: TokenizerFiles, key: str, pieces: list[str], own: int) -> int | None:
    """The id of the token that the directory's settings name, else the model's own."""
    name = files.named_piece(key)
    if name is not None:
        if name not in pieces:
            raise TokenizerError(f"{files.directory}: {key} {name!r} is not in the vocabulary")
        return pieces.index(name)
    return own if own >= 0 else None


def _added_tokens(files: TokenizerFiles, pieces: list[str]) -> list[AddedToken]:
    """Tokens after the model's own pieces, without a hole; T5's sentinels count down."""
    added = files.added_tokens()
    for token in added:
        if token.id < len(pieces) and pieces[token.id] != token.content:
            raise TokenizerError(
                f"{files.directory}: added token {token.id} is {token.content!r},"
                f" but the model file has {pieces[token.id]!r} there"
            )
    added = [token for token in added if token.id >= len(pieces)]
    is_t5 = files.sentencepiece is not None and files.sentencepiece.name == "spiece.model"
    if is_t5 and not added and "<extra_id_0>" not in pieces:
        count = files.config.get("extra_ids", T5_EXTRA_IDS)
        if type(count) is not int or not 0 <= count <= 10_000:
            raise TokenizerError(f"{files.directory}: extra_ids must be 0 to 10000, got {count!r}")
        added = [
            AddedToken(len(pieces) + i, f"<extra_id_{count - 1 - i}>", True) for i in range(count)
        ]
    for i, token in enumerate(added):
        if token.id != len(pieces) + i:
            raise TokenizerError(
                f"{files.directory}: added tokens must follow the model file's {len(pieces)}"
                f" pieces without a hole, got {token.id} for {token.content!r}"
            )
    return added


def _surfaces(
    processor: sentencepiece.SentencePieceProcessor, pieces: list[str], added: list[AddedToken]
) -> Surfaces:
    kinds, raw, first = [], [], {}
    words = [i for i, piece in enumerate(pieces) if _is_word(processor, i, piece)]
    # What a text's leading spaces become is a setting of the model, seen by decoding.
    drops = bool(words) and not processor.decode([words[0]]).startswith(" ")
    drops_all = False
    if drops and SPACE in pieces:
        drops_all = not processor.decode([pieces.index(SPACE), words[0]]).startswith(" ")
    for i, piece in enumerate(pieces):
        byte = BYTE_PIECE.fullmatch(piece) if processor.is_byte(i) else None
        if byte:
            kinds.append(BYTES)
            raw.append(bytes([int(byte[1], 16)]))
        elif processor.is_unknown(i) or processor.is_control(i):
            text = processor.decode([i])
            kinds.append(TEXT if text else MARK)
            raw.append(text.encode())
        else:
            kinds.append(TEXT)
            raw.append(piece.replace(SPACE, " ").encode())
            if drops and piece.startswith(SPACE):
                first[i] = raw[-1][1:]
    for token in added:
        kinds.append(MARK if token.special else TEXT)
        raw.append(b"" if token.special else token.content.encode())
    return Surfaces(kinds, raw, first, invisible_starts=drops_all)


def _is_word(processor: sentencepiece.SentencePieceProcessor, i: int, piece: str) -> bool:
    special = processor.is_control(i) or processor.is_unknown(i) or processor.is_byte(i)
    return len(piece) > 1 and piece[0] == SPACE and piece[1] != SPACE and not special


class _Encoder:
    """Encodes text, with special tokens in it or not."""

    def __init__(
        self,
        data: bytes,
        processor: sentencepiece.SentencePieceProcessor,
        specials: dict[str, int],
        added: list[AddedToken],
        legacy: bool,
    ) -> None:
        self._processor = processor
        self._inner = processor
        if not legacy:  # a text after a special token gets no space of its own
            self._inner = sentencepiece.SentencePieceProcessor(model_proto=data + NO_DUMMY_PREFIX)
        self._ids = {**specials, **{token.content: token.id for token in added}}
        self._ids.pop("", None)
        swallow = {token.content: (token.lstrip, token.rstrip) for token in added}
        patterns = []
        for content in sorted(self._ids, key=len, reverse=True):
            left, right = swallow.get(content, (False, False))
            before, after = r"\s*" * left, r"\s*" * right
            patterns.append(f"{before}({re.escape(content)}){after}")
        self._pattern = re.compile("|".join(patterns))

    def plain(self, text: str) -> list[int]:
        return list(self._processor.encode(text))

    def special(self, text: str) -> list[int]:
        ids: list[int] = []
        position = 0
        for match in self._pattern.finditer(text):
            ids += self._segment(text, position, match.start())
            ids.append(self._ids[match[match.lastindex or 0]])
            position = match.end()
        return ids + self._segment(text, position, len(text))

    def _segment(self, text: str, start: int, end: int) -> list[int]:
        if start == end:
            return []
        processor = self._inner if start else self._processor
        return list(processor.encode(text[start:end]))
