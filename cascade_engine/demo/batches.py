"""Training batches: whole documents packed into rows for LLaMA, padded pairs for T5."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from sentencepiece import SentencePieceProcessor

from .corpus import Document
from .presets import PAD_ID
from .tokenizer import EOS_ID, encode_answer, encode_document

PROMPT_WEIGHT = 0.02
_BUFFER_ROWS = 16
_POOL_DOCUMENTS = 1024


@dataclass(frozen=True)
class Batch:
    """One optimizer step's tokens.

    `tokens` int64 [rows, length]: what the decoder produces; `weights` float32 [rows, length]: the
    loss weight of each (0 for padding and BOS, PROMPT_WEIGHT inside prompts, 1 in answers).
    `inputs` int64 [rows, input length]: the encoder's ids (T5 only), padded with PAD_ID.
    """

    tokens: torch.Tensor
    weights: torch.Tensor
    inputs: torch.Tensor | None = None


def packed_batches(
    stream: Iterable[Document], tokenizer: SentencePieceProcessor, rows: int, length: int
) -> Iterator[Batch]:
    """LLaMA batches: whole documents laid end to end, each with BOS and EOS, none split.

    A document goes to the fullest open row that still has room; when too many rows are open, the
    fullest one closes. Raises ValueError for a document longer than a row.
    """
    open_rows: list[tuple[list[int], list[float]]] = []
    closed: list[tuple[list[int], list[float]]] = []
    for document in stream:
        ids, prompt_length = encode_document(tokenizer, document.prompt, document.answer)
        if len(ids) > length:
            raise ValueError(
                f"document of {len(ids)} tokens does not fit a row of {length}: {document.identity}"
            )
        weights = [0.0] + [PROMPT_WEIGHT] * (prompt_length - 1) + [1.0] * (len(ids) - prompt_length)
        fitting = [row for row in open_rows if len(row[0]) + len(ids) <= length]
        if fitting:
            row = max(fitting, key=lambda r: len(r[0]))
        else:
            row = ([], [])
            open_rows.append(row)
        row[0].extend(ids)
        row[1].extend(weights)
        if len(open_rows) > _BUFFER_ROWS:
            fullest = max(range(len(open_rows)), key=lambda i: len(open_rows[i][0]))
            closed.append(open_rows.pop(fullest))
        if len(closed) == rows:
            yield Batch(*(padded(part) for part in zip(*closed, strict=True)))
            closed = []


def padded(sequences: Sequence[list[int]] | Sequence[list[float]]) -> torch.Tensor:
    """Rows of one length, [rows, longest], filled up with PAD_ID = 0 (a weight of 0)."""
    length = max(len(s) for s in sequences)
    return torch.tensor([[*s, *([PAD_ID] * (length - len(s)))] for s in sequences])


def pair_batches(
    stream: Iterable[Document], tokenizer: SentencePieceProcessor, batch_tokens: int
) -> Iterator[Batch]:
    """T5 batches: (prompt, answer) pairs of similar length, up to `batch_tokens` padded tokens.

    Documents of one length are mostly of one kind, so an optimizer step should add up several
    batches; they come in random order.
    """
    order = torch.Generator().manual_seed(0)
    pool: list[tuple[list[int], list[int]]] = []
    for document in stream:
        prompt = [*tokenizer.encode(document.prompt), EOS_ID]
        pool.append((prompt, encode_answer(tokenizer, document.answer)))
        if len(pool) < _POOL_DOCUMENTS:
            continue
        pool.sort(key=lambda pair: (len(pair[1]), len(pair[0])))
        groups = _by_size(pool, batch_tokens)
        pool = []
        for index in torch.randperm(len(groups), generator=order).tolist():
            prompts, answers = zip(*groups[index], strict=True)
            weights = padded([[1.0] * len(a) for a in answers])
            yield Batch(padded(answers), weights, padded(prompts))


def _by_size(
    pairs: list[tuple[list[int], list[int]]], limit: int
) -> list[list[tuple[list[int], list[int]]]]:
    """Consecutive groups whose padded size, (longest prompt + longest answer) * rows, is <= limit."""
    groups: list[list[tuple[list[int], list[int]]]] = [[]]
    widest = [0, 0]
    for pair in pairs:
        wider = [max(widest[0], len(pair[0])), max(widest[1], len(pair[1]))]
        if groups[-1] and sum(wider) * (len(groups[-1]) + 1) > limit:
            groups.append([])
            wider = [len(pair[0]), len(pair[1])]
        groups[-1].append(pair)
        widest = wider
    return groups
