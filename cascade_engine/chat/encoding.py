"""Token ids of texts that do not stand alone."""

from __future__ import annotations

from cascade_engine.tokenizer import Tokenizer

ANCHORS = ("\n", ".", "x", "|")


def encode_inside(tokenizer: Tokenizer, text: str) -> list[int]:
    """Token ids of a text that continues another one, as plain characters.

    Many tokenizers put a space before a text. It is avoided by encoding the text behind a short
    one whose own tokens stay what they are, and leaving those out.
    """
    if not text:
        return []
    for anchor in ANCHORS:
        front = tokenizer.encode(anchor, add_bos=False, add_eos=False)
        whole = tokenizer.encode(anchor + text, add_bos=False, add_eos=False)
        ids = whole[len(front) :]
        if whole[: len(front)] == front and tokenizer.decode(ids, continues=True) == text:
            return ids
    return tokenizer.encode(text, add_bos=False, add_eos=False)
