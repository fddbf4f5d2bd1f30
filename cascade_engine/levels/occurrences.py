"""Where the end of a text occurs earlier in it: Max-Gram with several answers."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import NamedTuple

LONGEST = 8
"""Matches longer than this are not told apart."""
SEARCHED = 32
"""Occurrences of the last token that are looked at, the latest first."""


class Occurrence(NamedTuple):
    next: int
    """Index of the token after the occurrence."""
    matched: int
    """Tokens that agree, up to `LONGEST`."""

    @property
    def confidence(self) -> float:
        """A rough chance that the text goes on as it did there."""
        return 1.0 - 0.7 * 0.75 ** (self.matched - 1)


def occurrences(text: Sequence[int], count: int) -> list[Occurrence]:
    """Up to `count` earlier occurrences of suffixes of `text`, longest first, the latest
    first among equals."""
    memory = array("i", text).tobytes()
    last, size = memory[-4:], len(text)
    found: list[Occurrence] = []
    end = 4 * (size - 1)
    for _ in range(SEARCHED):
        at = memory.rfind(last, 0, end)
        while at % 4 and at >= 0:  # across two tokens
            at = memory.rfind(last, 0, at + 3)
        if at < 0:
            break
        matched, index = 1, at // 4
        while matched < min(LONGEST, index + 1) and text[index - matched] == text[-1 - matched]:
            matched += 1
        found.append(Occurrence(index + 1, matched))
        end = at
    found.sort(key=lambda o: (-o.matched, -o.next))
    return found[:count]
