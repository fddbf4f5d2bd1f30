"""Drafters by name for bench.replay: what they see is the prompt and the answer so far."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from cascade_engine import _C
from cascade_engine.ops import NgramTable

LEARN_TOKENS = 1 << 18
LOOKUP_NGRAM = 3
LOOKUP_TOKENS = 10
MAX_MATCH = 32

Tree = tuple[list[int], list[int]]
"""Tokens and parents (-1: the row's last token)."""


class Drafter(Protocol):
    learns: bool

    def begin(self, prompt: list[int]) -> None: ...
    def propose(self) -> Tree: ...
    def extend(self, tokens: list[int]) -> None: ...
    def finish(self) -> None: ...


def chain_tree(tokens: list[int]) -> Tree:
    return tokens, list(range(-1, len(tokens) - 1))


def prompt_lookup(text: Sequence[int], ngram: int, count: int) -> list[int]:
    """The rule of prompt lookup decoding: for the last `ngram` tokens, then fewer, what followed
    their first occurrence before the end of the text, up to `count` tokens."""
    length = len(text)
    for size in range(min(ngram, length - 1), 0, -1):
        suffix = text[length - size :]
        for start in range(length - size):
            if text[start : start + size] == suffix:
                return list(text[start + size : start + size + count])
    return []


class PromptLookup:
    learns = False

    def __init__(self, ngram: int = LOOKUP_NGRAM, tokens: int = LOOKUP_TOKENS) -> None:
        self._ngram, self._count = ngram, tokens
        self._text: list[int] = []

    def begin(self, prompt: list[int]) -> None:
        self._text = list(prompt)

    def propose(self) -> Tree:
        return chain_tree(prompt_lookup(self._text, self._ngram, self._count))

    def extend(self, tokens: list[int]) -> None:
        self._text += tokens

    def finish(self) -> None:
        pass


class _Row:
    """A row of tokens in native memory."""

    def __init__(self, capacity: int) -> None:
        self.context = _C.CpuContext(1, "")
        self.tokens = torch.zeros(capacity, dtype=torch.int32)
        memory = (ctypes.c_int32 * capacity).from_address(self.tokens.data_ptr())
        self.memory = memoryview(memory).cast("B").cast("i")
        self.address, self.capacity, self.length = self.tokens.data_ptr(), capacity, 0

    def append(self, tokens: list[int]) -> None:
        for token in tokens:
            self.memory[self.length] = token
            self.length += 1


class MaxGram:
    """Max-Gram's chain, filled up from a table where there is one."""

    learns = False

    def __init__(self, capacity: int, tokens: int, table: NgramTable | None) -> None:
        self._row = _Row(capacity + tokens)
        self._count, self._table = tokens, table

    def begin(self, prompt: list[int]) -> None:
        self._row.length = 0
        self._row.append(prompt)

    def propose(self) -> Tree:
        row = self._row
        (count,) = _C.propose(
            row.context, row.address, row.capacity, 0, [0], [row.length], [self._count],
            MAX_MATCH, self._table,
        )  # fmt: skip
        return chain_tree(row.memory[row.length : row.length + count].tolist())

    def extend(self, tokens: list[int]) -> None:
        self._row.append(tokens)

    def finish(self) -> None:
        pass


class Statistical:
    """Trees and chains of the statistical drafter."""

    def __init__(
        self,
        capacity: int,
        budget: int,
        chain: bool,
        table: NgramTable | None,
        depth: int = 0,
        least: float = 0.0,
    ) -> None:
        self.learns = False
        self._row = _Row(capacity)
        self._budget, self._chain, self._least = budget, chain, least
        self._depth = depth or budget
        self.drafter = _C.Drafter(1, table, LEARN_TOKENS)
        self._out = torch.zeros(3, budget, dtype=torch.int32)
        addresses = [row.data_ptr() for row in self._out]
        self._addresses = (*addresses, budget)
        views = [(ctypes.c_int32 * budget).from_address(address) for address in addresses[:2]]
        self._tokens, self._parents = (memoryview(view).cast("B").cast("i") for view in views)

    def begin(self, prompt: list[int]) -> None:
        self._row.length = 0
        self._row.append(prompt)
        self.drafter.begin(0, prompt)

    def propose(self) -> Tree:
        row = self._row
        (count,) = self.drafter.propose(
            row.context, row.address, row.capacity, [0], [row.length], [self._budget],
            [self._depth], self._chain, self._least, *self._addresses,
        )  # fmt: skip
        return self._tokens[:count].tolist(), self._parents[:count].tolist()

    def extend(self, tokens: list[int]) -> None:
        self._row.append(tokens)
        self.drafter.extend(0, tokens)

    def finish(self) -> None:
        if self.learns:
            self.drafter.finish(0)


def make_drafter(name: str, table: NgramTable | None, capacity: int) -> Drafter:
    """A drafter from `NAME[:NUMBER][,option=value ...]`; capacity: of the longest row. Raises
    ValueError for an unknown name or option."""
    head, *pairs = name.split(",")
    kind, _, number = head.partition(":")
    options: dict[str, float] = {}
    for pair in pairs:
        key, _, value = pair.partition("=")
        options[key] = float(value)
    if number:
        options["tokens"] = int(number)
    depth, least = int(options.get("depth", 0)), options.get("least", 0.0)
    makers: dict[str, tuple[set[str], Callable[[int], Drafter]]] = {
        "prompt-lookup": ({"tokens", "ngram"}, lambda n: PromptLookup(
            int(options.get("ngram", LOOKUP_NGRAM)), n)),
        "max-gram": ({"tokens"}, lambda n: MaxGram(capacity, n, None)),
        "max-gram+bigram": ({"tokens"}, lambda n: MaxGram(capacity, n, table)),
        "chain": ({"tokens", "least"}, lambda n: Statistical(
            capacity, n, True, table, least=least)),
        "tree": ({"tokens", "depth", "least"}, lambda n: Statistical(
            capacity, n, False, table, depth, least)),
    }  # fmt: skip
    if kind not in makers:
        raise ValueError(f"drafter must be one of {', '.join(makers)}, got {kind!r}")
    known, make = makers[kind]
    if unknown := set(options) - known:
        raise ValueError(f"{kind} has no option {sorted(unknown)[0]!r}; it has {sorted(known)}")
    return make(int(options.get("tokens", 32 if kind == "tree" else LOOKUP_TOKENS)))
