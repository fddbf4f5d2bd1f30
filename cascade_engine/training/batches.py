"""Training batches: whole examples packed into rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch

PAD_ID = 0
PROMPT_WEIGHT = 0.02
"""Loss weight of a prompt's tokens: little, they are not what a draft is asked for."""
_BUFFER_ROWS = 16

TopTokens = Sequence[tuple[int, float]]
"""A teacher's most likely tokens with their natural-log probabilities."""


@dataclass(frozen=True)
class Batch:
    """One optimizer step's tokens.

    `tokens` int64 [rows, length]: what the decoder produces; `weights` float32 [rows, length]: the
    loss weight of each (0 for padding and BOS, PROMPT_WEIGHT inside prompts, 1 in answers).
    `inputs` int64 [rows, input length]: the encoder's ids (T5 only), padded with PAD_ID.
    `top_ids` int64 and `top_logprobs` float32 [rows, length, k]: what a teacher held most likely at
    each token; where it was not asked, all of `top_logprobs` is -inf.
    """

    tokens: torch.Tensor
    weights: torch.Tensor
    inputs: torch.Tensor | None = None
    top_ids: torch.Tensor | None = None
    top_logprobs: torch.Tensor | None = None


@dataclass(frozen=True)
class Example:
    """A prompt with its answer, for a decoder-only model. `top`: of each answer token, a teacher's
    most likely tokens; empty where it was not asked."""

    prompt: Sequence[int]
    answer: Sequence[int]
    top: Sequence[TopTokens] = field(default=())

    def __len__(self) -> int:
        return len(self.prompt) + len(self.answer)

    def weights(self) -> list[float]:
        return [0.0] + [PROMPT_WEIGHT] * (len(self.prompt) - 1) + [1.0] * len(self.answer)


def packed(examples: Iterable[Example], rows: int, length: int, top: int = 0) -> Iterator[Batch]:
    """Batches of whole examples laid end to end, none split. `top`: tokens of a teacher to each.

    An example goes to the fullest open row that still has room; when too many rows are open, the
    fullest one closes. Raises ValueError for an example longer than a row.
    """
    open_rows: list[list[Example]] = []
    closed: list[list[Example]] = []
    for example in examples:
        if len(example) > length:
            raise ValueError(f"an example of {len(example)} tokens does not fit a row of {length}")
        fitting = [row for row in open_rows if sum(map(len, row)) + len(example) <= length]
        if fitting:
            row = max(fitting, key=lambda r: sum(map(len, r)))
        else:
            row = []
            open_rows.append(row)
        row.append(example)
        if len(open_rows) > _BUFFER_ROWS:
            fullest = max(range(len(open_rows)), key=lambda i: sum(map(len, open_rows[i])))
            closed.append(open_rows.pop(fullest))
        if len(closed) == rows:
            yield batch_of(closed, top)
            closed = []


def batch_of(rows: Sequence[Sequence[Example]], top: int = 0) -> Batch:
    """A batch of the examples of each row, end to end."""
    tokens = padded([[t for e in row for t in (*e.prompt, *e.answer)] for row in rows])
    weights = padded([[w for e in row for w in e.weights()] for row in rows])
    if not top:
        return Batch(tokens, weights)
    ids = torch.zeros((*tokens.shape, top), dtype=torch.int64)
    logprobs = torch.full((*tokens.shape, top), float("-inf"))
    for i, row in enumerate(rows):
        at = 0
        for example in row:
            at += len(example.prompt)
            for j, pairs in enumerate(example.top):
                found, values = zip(*pairs[:top], strict=True)
                ids[i, at + j, : len(found)] = torch.tensor(found)
                logprobs[i, at + j, : len(found)] = torch.tensor(values)
            at += len(example.answer)
    return Batch(tokens, weights, None, ids, logprobs)


def padded(sequences: Sequence[list[int]] | Sequence[list[float]]) -> torch.Tensor:
    """Rows of one length, [rows, longest], filled up with PAD_ID = 0 (a weight of 0)."""
    length = max(len(s) for s in sequences)
    return torch.tensor([[*s, *([PAD_ID] * (length - len(s)))] for s in sequences])
