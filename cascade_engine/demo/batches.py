"""Training batches: whole documents packed into rows for LLaMA, padded pairs for T5."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from sentencepiece import SentencePieceProcessor

from cascade_engine.training.batches import Batch, Example, packed, padded

from .corpus import Document
from .tokenizer import EOS_ID, encode_answer, encode_document

_POOL_DOCUMENTS = 1024


def packed_batches(
    stream: Iterable[Document], tokenizer: SentencePieceProcessor, rows: int, length: int
) -> Iterator[Batch]:
    """LLaMA batches: whole documents laid end to end, each with BOS and EOS, none split.

    Raises ValueError for a document longer than a row.
    """
    return packed((_example(document, tokenizer) for document in stream), rows, length)


def _example(document: Document, tokenizer: SentencePieceProcessor) -> Example:
    ids, prompt_length = encode_document(tokenizer, document.prompt, document.answer)
    return Example(ids[:prompt_length], ids[prompt_length:])


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
