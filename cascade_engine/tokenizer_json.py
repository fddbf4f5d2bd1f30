"""tokenizer.json files, read by the optional `tokenizers` package."""

from __future__ import annotations

import json
import threading
from typing import Any

from cascade_engine.detokenizer import BYTES, HIDDEN, PER_BYTE, TEXT, Surfaces
from cascade_engine.errors import TokenizerError
from cascade_engine.tokenizer_files import BYTE_PIECE, TokenizerFiles, Vocabulary

tokenizers: Any
try:
    import tokenizers
except ImportError:
    tokenizers = None

SPACE = "\u2581"
# The decoder of LLaMA's own tokenizer.json, with or without the last step.
LLAMA_STEPS = ["Replace", "ByteFallback", "Fuse", "Strip"]


def load(files: TokenizerFiles) -> Vocabulary:
    """The vocabulary of a tokenizer.json. Raises TokenizerError."""
    path = files.json
    assert path is not None
    if tokenizers is None:
        raise TokenizerError(
            f"{path} needs the tokenizers package: pip install 'cascade_engine[tokenizers]',"
            " or put the model's tokenizer.model beside it"
        )
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
        backend = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the package raises plain Exception
        raise TokenizerError(f"{path} is not a tokenizer: {error}") from None
    # A file may ask to cut or to fill every text to the length that training used.
    backend.no_truncation()
    backend.no_padding()
    numbers = backend.get_vocab(with_added_tokens=True)
    pieces = [""] * (max(numbers.values(), default=-1) + 1)
    for piece, number in numbers.items():
        pieces[number] = piece
    added = description.get("added_tokens") or []
    specials = {token["content"]: token["id"] for token in added if token["special"]}
    encoder = _Encoder(backend)
    around = backend.encode("", add_special_tokens=True).ids
    bos, eos = (_named_id(files, key, numbers) for key in ("bos_token", "eos_token"))
    adds_bos, adds_eos = files.flag("add_bos_token"), files.flag("add_eos_token")
    return Vocabulary(
        pieces=pieces,
        surfaces=_surfaces(files, description.get("decoder") or {}, pieces, specials),
        specials=specials,
        bos_id=bos,
        eos_ids=() if eos is None else (eos,),
        adds_bos=(bos is not None and bos in around[:1]) if adds_bos is None else adds_bos,
        adds_eos=(eos is not None and eos in around[-1:]) if adds_eos is None else adds_eos,
        encode=encoder.plain,
        encode_special=encoder.special,
    )


def _named_id(files: TokenizerFiles, key: str, numbers: dict[str, int]) -> int | None:
    name = files.named_piece(key)
    if name is None:
        return None
    if name not in numbers:
        raise TokenizerError(f"{files.directory}: {key} {name!r} is not in the vocabulary")
    return numbers[name]


def _surfaces(
    files: TokenizerFiles, decoder: dict[str, Any], pieces: list[str], specials: dict[str, int]
) -> Surfaces:
    """How tokens show under the file's decoder; raises for one that is not known here."""
    steps = decoder.get("decoders", []) if decoder.get("type") == "Sequence" else [decoder]
    kinds = [step.get("type") for step in steps]
    if kinds == ["ByteLevel"]:
        surfaces = _byte_level(pieces)
    elif kinds == ["Metaspace"] and steps[0].get("replacement") == SPACE:
        surfaces = _metaspace(pieces, steps[0].get("prepend_scheme") != "never")
    elif _is_llama(steps, kinds):
        surfaces = _llama(pieces, drops_space=kinds == LLAMA_STEPS)
    else:
        raise TokenizerError(
            f"{files.json}: decoder {decoder.get('type')!r} ({kinds}) is not supported; ByteLevel,"
            f" Metaspace and {LLAMA_STEPS} are"
        )
    hidden = set(specials.values())
    shown = [HIDDEN if i in hidden else kind for i, kind in enumerate(surfaces.kinds)]
    return Surfaces(shown, surfaces.raw, surfaces.first, errors=surfaces.errors)


def _is_llama(steps: list[dict[str, Any]], kinds: list[Any]) -> bool:
    if kinds not in (LLAMA_STEPS, LLAMA_STEPS[:3]):
        return False
    replace = steps[0].get("pattern") == {"String": SPACE} and steps[0].get("content") == " "
    strip = steps[3] if len(steps) > 3 else {"content": " ", "start": 1, "stop": 0}
    return replace and (strip.get("content"), strip.get("start"), strip.get("stop")) == (" ", 1, 0)


def _llama(pieces: list[str], drops_space: bool) -> Surfaces:
    kinds, raw, first = [], [], {}
    for i, piece in enumerate(pieces):
        byte = BYTE_PIECE.fullmatch(piece)
        kinds.append(BYTES if byte else TEXT)
        raw.append(bytes([int(byte[1], 16)]) if byte else piece.replace(SPACE, " ").encode())
        if drops_space and raw[-1][:1] == b" ":
            first[i] = raw[-1][1:]
    return Surfaces(kinds, raw, first, errors=PER_BYTE)


def _metaspace(pieces: list[str], drops_spaces: bool) -> Surfaces:
    raw = [piece.replace(SPACE, " ").encode() for piece in pieces]
    first = {
        i: piece.replace(SPACE, "").encode()
        for i, piece in enumerate(pieces)
        if drops_spaces and SPACE in piece
    }
    return Surfaces([TEXT] * len(pieces), raw, first)


def _byte_level(pieces: list[str]) -> Surfaces:
    """Pieces spell bytes in an alphabet of 256 printable characters (GPT-2's)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable}
    alphabet.update({chr(256 + i): byte for i, byte in enumerate(rest)})
    raw = []
    for piece in pieces:
        spelled = [alphabet.get(character) for character in piece]
        known = [byte for byte in spelled if byte is not None]
        raw.append(bytes(known) if len(known) == len(spelled) else piece.encode())
    return Surfaces([BYTES] * len(pieces), raw, {}, errors="replace")


class _Encoder:
    """Encodes text, with special tokens in it or not.

    The package keeps that choice as a setting of the tokenizer, so a call holds a lock.
    """

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self._lock = threading.Lock()

    def plain(self, text: str) -> list[int]:
        return self._encode(text, specials_are_text=True)

    def special(self, text: str) -> list[int]:
        return self._encode(text, specials_are_text=False)

    def _encode(self, text: str, specials_are_text: bool) -> list[int]:
        with self._lock:
            self._backend.encode_special_tokens = specials_are_text
            return list(self._backend.encode(text, add_special_tokens=False).ids)
