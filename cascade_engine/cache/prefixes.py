"""What a page holds, as a key: the digest of all tokens up to the page's end."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence

from cascade_engine.cache.pages import PAGE_TOKENS

NO_TOKENS = bytes(16)
"""Key of the empty prefix."""


def prefix_key(parent: bytes, tokens: Sequence[int]) -> bytes:
    """Key of the prefix `parent` followed by at most a page of tokens.

    Keys are chained 128-bit BLAKE2b digests and are compared whole: equal keys mean equal tokens
    from the row's beginning on (a collision would take about 2^64 prompts made for it).
    """
    return hashlib.blake2b(parent + array("i", tokens).tobytes(), digest_size=16).digest()


def extend_keys(keys: list[bytes], tokens: Sequence[int], root: bytes = NO_TOKENS) -> None:
    """Adds the keys of the next whole pages, whose tokens are `tokens`, behind the prefix `root`; a
    rest is left out."""
    parent = keys[-1] if keys else root
    for begin in range(0, len(tokens) - PAGE_TOKENS + 1, PAGE_TOKENS):
        parent = prefix_key(parent, tokens[begin : begin + PAGE_TOKENS])
        keys.append(parent)


def tail_keys(parent: bytes, tokens: Sequence[int]) -> list[bytes]:
    """Keys of the partly filled pages that `tokens` (from behind `parent`) could start with, the
    fullest first."""
    longest = min(len(tokens), PAGE_TOKENS - 1)
    return [prefix_key(parent, tokens[:count]) for count in range(longest, 0, -1)]
