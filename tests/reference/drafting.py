"""Drafting by statistics, by definition: Max-Gram by trying every suffix at every place, n-gram
tables as dictionaries of counts."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

Context = tuple[int, ...]


def longest_match(text: Sequence[int], tokens: Sequence[int], max_match: int) -> tuple[int, int]:
    """Length of the longest suffix of `tokens` that occurs in `text` with a token after it, and the
    index after its latest occurrence; (0, 0) when none occurs."""
    for length in range(min(max_match, len(tokens)), 0, -1):
        suffix = list(tokens[len(tokens) - length :])
        for start in range(len(text) - 1 - length, -1, -1):
            if list(text[start : start + length]) == suffix:
                return length, start + length
    return 0, 0


def max_gram(
    tokens: Sequence[int], count: int, max_match: int, corpus: Sequence[int] = ()
) -> list[int]:
    """Up to `count` drafted tokens. The row's own match is followed past the row's end into the
    drafted tokens; the corpus' match, preferred at equal length, ends with the corpus."""
    own, own_next = longest_match(tokens, tokens, max_match)
    other, other_next = longest_match(corpus, tokens, max_match)
    if other and other >= own:
        return list(corpus[other_next : other_next + count])
    row = list(tokens)
    for i in range(count if own else 0):
        row.append(row[own_next + i])
    return row[len(tokens) :]


def count_ngrams(documents: Sequence[Sequence[int]], order: int) -> dict[Context, Counter[int]]:
    """For each context of 1..order tokens inside a document, how often each token followed."""
    counts: dict[Context, Counter[int]] = defaultdict(Counter)
    for document in documents:
        for end in range(1, len(document)):
            for length in range(1, min(order, end) + 1):
                counts[tuple(document[end - length : end])][document[end]] += 1
    return counts


def prune(
    counts: dict[Context, Counter[int]], min_counts: Sequence[int], max_successors: int
) -> dict[Context, list[tuple[int, int]]]:
    """Successors by falling count, then rising id: those seen at least min_counts[order - 1] times
    and at most `max_successors` of them. A context goes when it or its suffix has none left."""
    table: dict[Context, list[tuple[int, int]]] = {}
    for context in sorted(counts, key=len):
        found = sorted(counts[context].items(), key=lambda item: (-item[1], item[0]))
        kept = [(t, n) for t, n in found if n >= min_counts[len(context) - 1]][:max_successors]
        if kept and (len(context) == 1 or context[1:] in table):
            table[context] = kept
    return table


def chain(
    table: dict[Context, list[tuple[int, int]]], tokens: Sequence[int], count: int, order: int
) -> list[int]:
    """Up to `count` tokens, each the most frequent successor of the longest known context."""
    row = list(tokens)
    for _ in range(count):
        known = [n for n in range(1, min(order, len(row)) + 1) if tuple(row[-n:]) in table]
        if not known:
            break
        row.append(table[tuple(row[-max(known) :])][0][0])
    return row[len(tokens) :]
