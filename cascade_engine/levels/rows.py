"""The token rows that all levels share, and one row's part in a review."""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from cascade_engine.levels.tree import TokenTree
from cascade_engine.ops import (
    CpuBackend,
    CudaBackend,
    DeviceDistributions,
    DraftDistributions,
    Sampler,
)


class TokenRows:
    """One row of tokens per running request, in memory that native code reads and writes.

    `tokens` int32 `[rows, capacity]`; `draft_probs` float32 of the same shape: the probability that
    the level which wrote a token gave it (1 for tokens from tables), or, after a review with
    lenience or by the rejection rule, the level that kept it; for lenience and confidence;
    `sources` int32 `[rows]`: how many tokens at a row's beginning an encoder reads;
    `distributions`: all that tokens under review were drawn from, for rows that go by the rejection
    rule: float32 `[vocab_size]` for each token that a neural level drafted since the row's last
    target review, where `backend` computes (None: on the host). Without `vocab_size` there are
    none, and no such rows.
    """

    def __init__(
        self,
        rows: int,
        capacity: int,
        vocab_size: int = 0,
        backend: CpuBackend | CudaBackend | None = None,
    ) -> None:
        self.capacity = capacity
        self.distributions: DraftDistributions | DeviceDistributions | None = None
        if vocab_size:
            make = DraftDistributions if backend is None else backend.distributions
            self.distributions = make(rows, vocab_size)
        self.tokens = torch.zeros((rows, capacity), dtype=torch.int32)
        self.draft_probs = torch.ones((rows, capacity), dtype=torch.float32)
        self.sources = torch.zeros(rows, dtype=torch.int32)
        self.starts = [0] * rows
        """How often each row was started over."""
        self.address, self.probs_address = self.tokens.data_ptr(), self.draft_probs.data_ptr()
        # Reading a few tokens through the tensor costs microseconds, through its memory a tenth.
        memory = (ctypes.c_int32 * self.tokens.numel()).from_address(self.tokens.data_ptr())
        self._memory = memoryview(memory).cast("B").cast("i")
        probs = (ctypes.c_float * self.tokens.numel()).from_address(self.draft_probs.data_ptr())
        lengths = (ctypes.c_int32 * rows).from_address(self.sources.data_ptr())
        self._source_memory = memoryview(lengths).cast("B").cast("i")
        self._probs: memoryview[float] = memoryview(probs).cast("B").cast("f")

    def write(self, slot: int, token_ids: Sequence[int], source: int = 0) -> None:
        """Starts a row over with `token_ids`, of which an encoder reads the first `source`."""
        self._source_memory[slot] = source
        self.starts[slot] += 1
        first = slot * self.capacity
        self._memory[first : first + len(token_ids)] = array("i", token_ids)

    def append(
        self, slot: int, length: int, token_ids: Sequence[int], probs: Sequence[float]
    ) -> None:
        """Writes tokens and their `draft_probs` behind the row's leading `length` tokens."""
        first = slot * self.capacity + length
        for i, (token, prob) in enumerate(zip(token_ids, probs, strict=True)):
            self._memory[first + i] = token
            self._probs[first + i] = prob

    def source(self, slot: int) -> int:
        """How many tokens at the row's beginning an encoder reads."""
        return self._source_memory[slot]

    def forget(self, slot: int, length: int = 0) -> None:
        """Drops what the row's tokens from `length` on were drawn from."""
        if self.distributions is not None:
            if length:
                self.distributions.truncate(slot, length)
            else:
                self.distributions.clear(slot)

    def read(self, slot: int, begin: int, end: int) -> list[int]:
        """Tokens begin..end-1 of a row."""
        first = slot * self.capacity
        return self._memory[first + begin : first + end].tolist()

    def probs(self, slot: int) -> Sequence[float]:
        """`draft_probs` of a row as they are at any time, without a copy."""
        return self._probs[slot * self.capacity : (slot + 1) * self.capacity]

    def read_probs(self, slot: int, begin: int, end: int) -> list[float]:
        """`draft_probs` of tokens begin..end-1 of a row."""
        first = slot * self.capacity
        return list(self._probs[first + begin : first + end])


@dataclass(frozen=True, slots=True)
class LogprobRequest:
    """Log-probabilities of each emitted token and of the `top` most likely ones beside it."""

    top: int
    processed: bool


class TokenLogprobs(NamedTuple):
    """Natural-log probability of a token, and the most likely (token id, log-probability) pairs."""

    logprob: float
    top: list[tuple[int, float]]


class Rejection(NamedTuple):
    """What a review by the rejection rule knows of a row, beside its tokens."""

    number: int
    """Of the review among all of the row, by any level: no two share their noise."""
    keeps: bool
    """A better level will review what this one leaves."""
    trunk: int
    """Leading nodes of a tree that are the row's own drafts."""


class ReviewItem(NamedTuple):
    """One row in a review."""

    slot: int
    frontier: int
    """Leading tokens that the reviewing level need not judge."""
    length: int
    sampler: Sampler
    allowed: torch.Tensor | None = None
    """int32 `[drafted + 1, ceil(vocab / 32)]`: bits of the tokens allowed at each position from
    the frontier on."""
    logprobs: LogprobRequest | None = None
    tree: TokenTree | None = None
    """What is reviewed instead of the row's own tokens from the frontier on; the root is the token
    before it. `allowed` then has a mask for the root and one for each node."""
    siblings: int = 0
    """Runners-up that are wanted at each position that the review leaves."""
    unanswered: frozenset[int] = frozenset()
    """Drafted tokens behind which nobody knows what is allowed: see `cut`."""
    rejection: Rejection | None = None
    """Where the sampler rejects."""

    @property
    def drafted(self) -> int:
        """Tokens under review."""
        return self.length - self.frontier if self.tree is None else len(self.tree)

    @property
    def reach(self) -> int:
        """Tokens of the row at most if all are accepted, without the level's own."""
        return self.length if self.tree is None else self.frontier + self.tree.reach


@dataclass(frozen=True, slots=True)
class DraftItem:
    """One row that a neural level drafts for on its own."""

    slot: int
    length: int
    """All of its tokens are reviewed by this level or a better one."""
    tokens: int
    """Wanted, >= 1."""
    sampler: Sampler
    reviews: int = 0
    """`Rejection.number` of the first of these tokens, where the sampler rejects."""
    min_confidence: float = 0.0
    """In 0..1: drafting ends when the product of these tokens' `draft_probs` falls below."""


class Verdict(NamedTuple):
    """What a review decided for one row: drafted tokens kept, then the level's own token."""

    num_accepted: int
    token: int
    logprobs: tuple[TokenLogprobs, ...] = ()
    """Of the kept tokens and the own one, where asked for."""
    path: Sequence[int] = ()
    """Of a tree: the nodes kept."""
    num_unmoved: int = 0
    """Of the kept tokens: leading ones that stood in the row at these positions, so that other
    levels' caches hold them."""
    siblings: Sequence[Sequence[tuple[int, float]]] = ()
    """At the position of each kept token and of the own one, where asked for: tokens that the level
    would have chosen next, with their probabilities."""


def cut(item: ReviewItem, verdict: Verdict, tokens: TokenRows) -> Verdict:
    """The verdict up to the first accepted token behind which it is not known what is allowed: that
    one becomes the level's own, and what follows it is left to the next review."""
    accepted = range(verdict.num_accepted) if item.tree is None else verdict.path
    last = next((i for i, drafted in enumerate(accepted) if drafted in item.unanswered), None)
    if last is None:
        return verdict
    at = item.frontier + last
    return verdict._replace(
        num_accepted=last,
        token=tokens.read(item.slot, at, at + 1)[0],
        logprobs=verdict.logprobs[: last + 1],
        path=verdict.path[:last],
        num_unmoved=min(verdict.num_unmoved, last),
    )
