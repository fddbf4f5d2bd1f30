"""Text from tokens, also while they arrive: never half a character, never a text twice.

Every vocabulary is brought to one form, a surface per token, so that a token costs the same
wherever it stands and `decode` of a whole is by construction what a stream of its parts gives.
"""

from __future__ import annotations

import codecs
import dataclasses
from collections.abc import Iterable, Sequence
from typing import cast

from cascade_engine.errors import TokenizerError

REPLACEMENT = "\ufffd"
# What a token is in a text. A run of bytes is text only once it is UTF-8; text and marks end a
# run, hidden tokens do not.
TEXT, BYTES, MARK, HIDDEN = 0, 1, 2, 3


def _replace_one_byte(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return REPLACEMENT, error.start + 1


# SentencePiece's rule for invalid UTF-8: each byte that begins no character becomes U+FFFD.
# The other rule, "replace", is what byte-level tokenizers use: a cut-off character becomes one.
PER_BYTE = "cascade_engine.replace_one_byte"
codecs.register_error(PER_BYTE, _replace_one_byte)


@dataclasses.dataclass(frozen=True)
class Surfaces:
    """How each token of a vocabulary appears.

    kinds[id]     TEXT, BYTES, MARK (invisible) or HIDDEN (as if it were not there)
    raw[id]       its UTF-8; of BYTES tokens any bytes
    first[id]     the same at the beginning of a text, where it differs (a leading space dropped)
    invisible_starts   whether a text still begins after a token whose `first` is empty
    errors        the codec error rule for invalid UTF-8
    """

    kinds: Sequence[int]
    raw: Sequence[bytes]
    first: dict[int, bytes]
    invisible_starts: bool = False
    errors: str = PER_BYTE
    texts: dict[int, str] = dataclasses.field(default_factory=dict, init=False, repr=False)
    """Of TEXT tokens seen so far, not at the beginning of a text."""


class StreamDecoder:
    """Turns tokens into text as they come.

    The pieces that `push` returns, and at last `flush`, concatenate to `decode` of all tokens.
    With `continues`, the text follows another one and keeps its leading space.
    """

    def __init__(self, surfaces: Surfaces, continues: bool = False) -> None:
        self._surfaces = surfaces
        self._at_start = not continues
        self._bytes = codecs.getincrementaldecoder("utf-8")(surfaces.errors)
        self._in_run = False

    def push(self, token_ids: Iterable[int]) -> str:
        """The text that these tokens complete."""
        return "".join([self.text(token) for token in token_ids])

    def texts(self, token_ids: Sequence[int]) -> list[str]:
        """`text` of each of these tokens."""
        if not self._at_start and not self._in_run:
            known = [*map(self._surfaces.texts.get, token_ids)]
            if None not in known:
                return cast(list[str], known)
        return [self.text(token) for token in token_ids]

    def text(self, token: int) -> str:
        """The text that the next token completes. A cut-off character is kept back until the next
        token shows what it is; ids past the vocabulary (padding rows) show as U+FFFD."""
        surfaces = self._surfaces
        if not self._at_start and not self._in_run:
            known = surfaces.texts.get(token)
            if known is not None:
                return known
        if not 0 <= token < len(surfaces.raw):
            return self._unknown(token)
        kind = surfaces.kinds[token]
        if kind == HIDDEN:
            return ""
        before = self._end_run() if self._in_run and kind != BYTES else ""
        raw = surfaces.raw[token]
        if self._at_start:
            shown = surfaces.first.get(token, raw)
            self._at_start = not (shown if surfaces.invisible_starts else raw)
            raw = shown
        if not raw:
            return before
        self._in_run = kind == BYTES
        text = self._bytes.decode(raw)
        if kind == TEXT and raw is surfaces.raw[token]:
            surfaces.texts[token] = text
        return before + text

    def flush(self) -> str:
        """The rest at the end of the tokens: U+FFFD for a character that was cut off."""
        return self._end_run()

    def _end_run(self) -> str:
        self._in_run = False
        text = self._bytes.decode(b"", True)
        self._bytes.reset()
        return text

    def _unknown(self, token: int) -> str:
        if token < 0:
            raise TokenizerError(f"token id must be >= 0, got {token}")
        self._at_start = False
        return self._end_run() + REPLACEMENT


def decode(surfaces: Surfaces, token_ids: Iterable[int], continues: bool = False) -> str:
    """The text of a whole sequence of tokens."""
    decoder = StreamDecoder(surfaces, continues)
    return decoder.push(token_ids) + decoder.flush()
