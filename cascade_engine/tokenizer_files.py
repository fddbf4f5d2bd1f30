"""What the tokenizer files of a model directory have in common, whichever format they are in."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cascade_engine.detokenizer import Surfaces
from cascade_engine.errors import TokenizerError

SENTENCEPIECE_NAMES = ("tokenizer.model", "spiece.model")
TOKENIZER_FILES = (
    *SENTENCEPIECE_NAMES,
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
"""All that may belong to a model's tokenizer."""
BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
MAX_ADDED_TOKENS = 100_000


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """A loaded tokenizer: pieces and how they show, special tokens, and how to encode.

    `encode` takes any text as plain characters, `encode_special` finds special tokens in it;
    neither adds begin or end tokens, which `adds_bos` and `adds_eos` say are customary.
    """

    pieces: Sequence[str]
    surfaces: Surfaces
    specials: dict[str, int]
    bos_id: int | None
    eos_ids: tuple[int, ...]
    adds_bos: bool
    adds_eos: bool
    encode: Callable[[str], list[int]]
    encode_special: Callable[[str], list[int]]


@dataclasses.dataclass(frozen=True)
class AddedToken:
    """A token beside the trained vocabulary. lstrip, rstrip: it swallows the spaces there."""

    id: int
    content: str
    special: bool
    lstrip: bool = False
    rstrip: bool = False


@dataclasses.dataclass(frozen=True)
class TokenizerFiles:
    """Paths of the tokenizer files of a directory, and the settings beside them."""

    directory: Path
    sentencepiece: Path | None
    json: Path | None
    config: dict[str, Any]
    special_tokens: dict[str, Any]

    @classmethod
    def read(cls, directory: Path) -> TokenizerFiles:
        names = [directory / name for name in SENTENCEPIECE_NAMES]
        model = next((path for path in names if path.is_file()), None)
        json_file = directory / "tokenizer.json"
        return cls(
            directory=directory,
            sentencepiece=model,
            json=json_file if json_file.is_file() else None,
            config=_read_object(directory / "tokenizer_config.json"),
            special_tokens=_read_object(directory / "special_tokens_map.json"),
        )

    def flag(self, key: str) -> bool | None:
        """A switch of tokenizer_config.json; None when it is not there."""
        value = self.config.get(key)
        if value is not None and not isinstance(value, bool):
            where = self.directory / "tokenizer_config.json"
            raise TokenizerError(f"{where}: {key} must be true or false, got {value!r}")
        return value

    def named_piece(self, key: str) -> str | None:
        """The piece called e.g. "bos_token", a string or an object with its content."""
        for values in (self.config, self.special_tokens):
            value = values.get(key)
            if isinstance(value, dict):
                value = value.get("content")
            if isinstance(value, str):
                return value
        return None

    def added_tokens(self) -> list[AddedToken]:
        """Tokens beside the trained vocabulary, by id."""
        where = self.directory / "tokenizer_config.json"
        tokens = {}
        for content, number in _read_object(self.directory / "added_tokens.json").items():
            token = AddedToken(
                _token_id(self.directory / "added_tokens.json", number), content, True
            )
            tokens[token.id] = token
        decoder = self.config.get("added_tokens_decoder") or {}
        if not isinstance(decoder, dict):
            raise TokenizerError(
                f"{where}: added_tokens_decoder must be an object, got {type(decoder).__name__}"
            )
        for key, value in decoder.items():
            if not isinstance(value, dict) or not isinstance(value.get("content"), str):
                raise TokenizerError(f"{where}: added_tokens_decoder[{key!r}] must have a content")
            number = _token_id(where, int(key) if key.isdecimal() and len(key) <= 10 else key)
            flags = [bool(value.get(name)) for name in ("special", "lstrip", "rstrip")]
            tokens[number] = AddedToken(number, value["content"], *flags)
        if len(tokens) > MAX_ADDED_TOKENS:
            raise TokenizerError(
                f"{where}: at most {MAX_ADDED_TOKENS} added tokens, got {len(tokens)}"
            )
        return [tokens[number] for number in sorted(tokens)]


def _token_id(where: Path, value: object) -> int:
    if type(value) is not int or not 0 <= value < 2**31:
        raise TokenizerError(f"{where}: token id must be an integer in [0, 2^31), got {value!r}")
    return value


def _read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty when there is no file."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise TokenizerError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(values, dict):
        raise TokenizerError(f"{path} must hold a JSON object, got {type(values).__name__}")
    return values
