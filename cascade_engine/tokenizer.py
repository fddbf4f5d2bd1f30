"""Tokenizers of model directories: text to tokens and back, and whether two number alike."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path

from cascade_engine import detokenizer, tokenizer_json, tokenizer_sentencepiece
from cascade_engine.detokenizer import StreamDecoder
from cascade_engine.errors import RequestError, TokenizerError, VocabularyMismatch
from cascade_engine.tokenizer_files import TokenizerFiles, Vocabulary

# Pieces that fill a vocabulary up to a round size; no text ever contains them.
PADDING_PIECE = re.compile(
    r"|[<\[]\|?_*(pad|unused|reserved|dummy|placeholder|extra)[\w ]*\|?[>\]]", re.IGNORECASE
)


class Tokenizer:
    """Text to token ids and back.

    bos_id, eos_ids   the ids of the tokenizer itself; a model's configuration may name others
    vocab_size        number of pieces; a model may have more rows (padding)
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self.bos_id = vocabulary.bos_id
        self.eos_ids = vocabulary.eos_ids
        self.vocab_size = len(vocabulary.pieces)

    @classmethod
    def load(cls, directory: str | Path) -> Tokenizer | None:
        """The tokenizer in a model directory: tokenizer.model (or T5's spiece.model), else
        tokenizer.json; None where there is none. Raises TokenizerError."""
        files = TokenizerFiles.read(Path(directory))
        if files.sentencepiece is not None:
            try:
                return cls(tokenizer_sentencepiece.load(files))
            except TokenizerError:
                # Some directories keep another format under the name tokenizer.model.
                if files.json is None:
                    raise
        return None if files.json is None else cls(tokenizer_json.load(files))

    def encode(
        self,
        text: str,
        add_bos: bool | None = None,
        add_eos: bool | None = None,
        parse_special: bool = False,
    ) -> list[int]:
        """Token ids of a text.

        add_bos, add_eos: whether to add the begin and the end token; None is the model's own
        convention. parse_special: whether "</s>" and its like in the text are the special tokens
        (for chat templates) or, by default, plain characters.
        Raises RequestError for text that is not valid Unicode, or an asked-for token that the
        vocabulary does not have.
        """
        vocabulary = self._vocabulary
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            message = f"text must be valid Unicode, got a lone surrogate at character {error.start}"
            raise RequestError(message) from None
        ids = vocabulary.encode_special(text) if parse_special else vocabulary.encode(text)
        if vocabulary.adds_bos if add_bos is None else add_bos:
            if self.bos_id is None:
                raise RequestError("add_bos must be False: this tokenizer has no begin token")
            ids = [self.bos_id, *ids]
        if vocabulary.adds_eos if add_eos is None else add_eos:
            if not self.eos_ids:
                raise RequestError("add_eos must be False: this tokenizer has no end token")
            ids = [*ids, self.eos_ids[0]]
        return ids

    def decode(self, token_ids: Sequence[int], continues: bool = False) -> str:
        """The text of tokens, special ones left out. With `continues`, it follows another text
        and keeps its leading space."""
        return detokenizer.decode(self._vocabulary.surfaces, token_ids, continues)

    def stream_decoder(self, continues: bool = False) -> StreamDecoder:
        """Decodes tokens as they arrive; the parts concatenate to `decode` of all of them."""
        return StreamDecoder(self._vocabulary.surfaces, continues)

    def pieces(self) -> list[str]:
        """Every piece, by id, as the vocabulary spells it."""
        return list(self._vocabulary.pieces)

    def special_ids(self) -> dict[str, int]:
        """The tokens that mark instead of spell, by their piece."""
        return dict(self._vocabulary.specials)

    def fingerprint(self) -> str:
        """SHA-256 of all pieces in order: equal where token ids mean the same."""
        return hashlib.sha256(json.dumps(self._vocabulary.pieces).encode()).hexdigest()


def check_same_vocabulary(
    target: Tokenizer | None,
    draft: Tokenizer | None,
    target_rows: int | None = None,
    draft_rows: int | None = None,
) -> int:
    """How many leading token ids mean the same to two models, when the rest is padding.

    `target_rows` and `draft_rows` are the models' own vocabulary sizes, which may exceed the
    tokenizers'. Where a tokenizer is missing only these can be compared, and must be equal.
    Raises VocabularyMismatch.
    """
    rows = [size for size in (target_rows, draft_rows) if size is not None]
    if target is None or draft is None:
        if len(set(rows)) > 1:
            raise VocabularyMismatch(
                f"target has {target_rows} tokens and draft {draft_rows}, and without a tokenizer"
                " in both directories the difference cannot be seen to be padding; add them"
            )
        return rows[0] if rows else 0
    pieces, others = target.pieces(), draft.pieces()
    shared = min(len(pieces), len(others))
    for index in range(max(len(pieces), len(others))):
        if index < shared and pieces[index] == others[index]:
            continue
        longer = (pieces if len(pieces) > len(others) else others)[index]
        if index >= shared and PADDING_PIECE.fullmatch(longer):
            continue
        found = [repr(p[index]) if index < len(p) else "nothing" for p in (pieces, others)]
        raise VocabularyMismatch(
            f"token {index} is {found[0]} to the target and {found[1]} to the draft;"
            " use a draft with the target's vocabulary"
        )
    return min([shared, *rows])
