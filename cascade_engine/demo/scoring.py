"""Greedy answers through transformers, and the scores computed from them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from sentencepiece import SentencePieceProcessor

from .corpus import Document
from .formats import parse_final_number, parse_skeleton
from .presets import PAD_ID
from .tokenizer import BOS_ID, EOS_ID


@torch.inference_mode()
def greedy_answers(
    model: Any,
    tokenizer: SentencePieceProcessor,
    prompts: Sequence[str],
    max_new_tokens: int = 320,
    batch_size: int = 64,
) -> list[list[int]]:
    """The ids each prompt is answered with, EOS included when it was reached.

    Prompts are batched by length; a T5 model reads `prompt + EOS`, a LLaMA model `BOS + prompt`.
    """
    is_t5 = model.config.is_encoder_decoder
    encoded = [
        [*tokenizer.encode(p), EOS_ID] if is_t5 else [BOS_ID, *tokenizer.encode(p)] for p in prompts
    ]
    order = sorted(range(len(prompts)), key=lambda i: len(encoded[i]))
    answers: list[list[int]] = [[] for _ in prompts]
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        longest = max(len(encoded[i]) for i in chosen)
        pads = [[PAD_ID] * (longest - len(encoded[i])) for i in chosen]
        if is_t5:
            ids = torch.tensor([encoded[i] + pad for i, pad in zip(chosen, pads, strict=True)])
        else:
            ids = torch.tensor([pad + encoded[i] for i, pad in zip(chosen, pads, strict=True)])
        out = model.generate(
            input_ids=ids,
            attention_mask=(ids != PAD_ID).long(),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            pad_token_id=PAD_ID,
            eos_token_id=EOS_ID,
        )
        for i, row in zip(chosen, out[:, 1 if is_t5 else longest :].tolist(), strict=True):
            answers[i] = row[: row.index(EOS_ID) + 1] if EOS_ID in row else row
    return answers


def parsed_points(document: Document, text: str) -> list[str]:
    """The points of an answer to an advice or skeleton request; empty when it is no list."""
    return parse_skeleton(text, prompt_has_first_number=document.task == "skeleton")


def is_correct(document: Document, text: str) -> bool:
    """Arithmetic: the final number; advice and skeletons: a list of the right length; else the text."""
    if document.answer_number is not None:
        return parse_final_number(text) == document.answer_number
    if document.points is not None:
        return len(parsed_points(document, text)) == document.points
    return text.strip() == document.answer.strip()


def score(
    documents: Sequence[Document], tokenizer: SentencePieceProcessor, answers: list[list[int]]
) -> dict[str, float]:
    """Shares in 0..1: `correct` (see `is_correct`), `stopped` (EOS reached), `same_text` as the corpus.

    For lists also `parsed`: a numbered list of 3 to 8 points, whatever number was asked for.
    """
    texts = [tokenizer.decode([t for t in ids if t != EOS_ID]) for ids in answers]
    count = len(documents)
    lists = [(d, t) for d, t in zip(documents, texts, strict=True) if d.points is not None]
    parsed = [3 <= len(parsed_points(d, t)) <= 8 for d, t in lists]
    same = sum(t.strip() == d.answer.strip() for t, d in zip(texts, documents, strict=True))
    result = {
        "count": count,
        "correct": sum(map(is_correct, documents, texts)) / count,
        "stopped": sum(bool(ids) and ids[-1] == EOS_ID for ids in answers) / count,
        "same_text": same / count,
    }
    return result | ({"parsed": sum(parsed) / count} if lists else {})
