"""Scores of the demo models by plain transformers decoding on the held-out test split.

`python -m cascade_engine.demo.reference_scores --family llama --json FILE` answers test questions with the
target and its drafts (greedy, bfloat16 weights as exported) and writes, per model and task, the shares of
`scoring.score`, and per draft `agreement`: the share of the target's own answer tokens that the draft would
have chosen in the same place.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from sentencepiece import SentencePieceProcessor

from cascade_engine.training.batches import Batch, padded
from cascade_engine.training.losses import forward_logits

from .corpus import Document, Task, distinct_documents
from .presets import PRESETS, load_model
from .scoring import greedy_answers, score
from .tokenizer import BOS_ID, EOS_ID, load_tokenizer

TASK_COUNTS: dict[Task, int] = {
    "arithmetic": 400,
    "fact": 150,
    "advice": 100,
    "skeleton": 200,
    "expansion": 100,
}
DRAFTS = {"llama": ("llama-middle", "llama-small"), "t5": ("t5-draft",)}


@torch.inference_mode()
def agreement(
    draft: Any,
    tokenizer: SentencePieceProcessor,
    documents: Sequence[Document],
    answers: Sequence[list[int]],
    rows: int = 32,
) -> float:
    """Share of the target's answer tokens that are the draft's argmax given the target's own prefix."""
    agreed = total = 0
    for start in range(0, len(answers), rows):
        prompts = [tokenizer.encode(d.prompt) for d in documents[start : start + rows]]
        batch = answer_batch(
            prompts, answers[start : start + rows], draft.config.is_encoder_decoder
        )
        chosen = forward_logits(draft, batch).argmax(-1)
        counted = batch.weights > 0
        agreed += int((chosen == batch.tokens)[counted].sum())
        total += int(counted.sum())
    return agreed / total


def answer_batch(
    prompts: Sequence[list[int]], answers: Sequence[list[int]], encoder_decoder: bool
) -> Batch:
    """A batch whose weights are 1 on the answers' tokens and 0 elsewhere."""
    if encoder_decoder:
        weights = [[1.0] * len(a) for a in answers]
        return Batch(padded(answers), padded(weights), padded([[*p, EOS_ID] for p in prompts]))
    heads = [[BOS_ID, *p] for p in prompts]
    rows = [h + a for h, a in zip(heads, answers, strict=True)]
    weights = [[0.0] * len(h) + [1.0] * len(a) for h, a in zip(heads, answers, strict=True)]
    return Batch(padded(rows), padded(weights))


def family_scores(family: str, folder: Path, tokenizer: SentencePieceProcessor) -> dict[str, Any]:
    """Scores of a family's target and of those of its drafts that exist in `folder`."""
    target_name = f"{family}-target"
    names = [target_name, *(n for n in DRAFTS[family] if (folder / n / "config.json").exists())]
    models = {n: load_model(folder / n, PRESETS[n].family, torch.bfloat16) for n in names}
    results: dict[str, Any] = {n: {} for n in names}
    agreed: dict[str, list[tuple[float, int]]] = {n: [] for n in names[1:]}
    for task, count in TASK_COUNTS.items():
        items = distinct_documents("test", task, count)
        prompts = [d.prompt for d in items]
        target_answers = greedy_answers(models[target_name], tokenizer, prompts)
        results[target_name][task] = score(items, tokenizer, target_answers)
        for name in names[1:]:
            answers = greedy_answers(models[name], tokenizer, prompts)
            share = agreement(models[name], tokenizer, items, target_answers)
            results[name][task] = score(items, tokenizer, answers) | {"agreement": share}
            agreed[name].append((share, sum(map(len, target_answers))))
        print(task, {n: results[n][task] for n in names}, flush=True)
    for name, parts in agreed.items():
        results[name]["agreement"] = sum(s * n for s, n in parts) / sum(n for _, n in parts)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description="score the demo models on the test split")
    parser.add_argument("--family", choices=sorted(DRAFTS), required=True)
    parser.add_argument(
        "--models", type=Path, default=Path(__file__).parent, help="exported models"
    )
    parser.add_argument("--json", type=Path, required=True)
    args = parser.parse_args()
    tokenizer = load_tokenizer(args.models / f"{args.family}-target" / "tokenizer.model")
    results = family_scores(args.family, args.models, tokenizer)
    args.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
