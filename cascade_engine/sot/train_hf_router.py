"""Trains a router from a pretrained model after the paper's recipe (Ning et al., appendix).

    python -m cascade_engine.sot.train_hf_router --model roberta-base-dir --data DIR --out DIR

AdamW, weight decay 0.01, learning rate 5e-5 after a warm-up of 1%, then falling linearly; batches
of 32, two epochs, 512 tokens; Tversky loss with alpha 0.7 and beta 0.3, which holds a wrongly
suitable request for worse than the other error, over labels smoothed by 0.2. DIR of the data holds
lima_router.csv, and vicuna_router.csv and wizardlm_router.csv for the report.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cascade_engine.sot.hf_router import MAX_TOKENS, HfRouter
from cascade_engine.sot.train_router import Labelled, evaluate


@dataclass(frozen=True)
class Recipe:
    """The paper's values."""

    learning_rate: float = 5e-5
    weight_decay: float = 0.01
    warmup: float = 0.01
    batch: int = 32
    epochs: int = 2
    alpha: float = 0.7
    beta: float = 0.3
    smoothing: float = 0.2
    seed: int = 0


def tversky_loss(
    suits: torch.Tensor, labels: torch.Tensor, alpha: float, beta: float, smoothing: float
) -> torch.Tensor:
    """1 - TP / (TP + alpha FP + beta FN) over a batch (Salehi et al., arXiv 1706.05721).

    `suits`: probabilities `[batch]`; `labels` 0 or 1 `[batch]`, moved towards 1/2 by `smoothing`.
    """
    target = labels.to(suits) * (1.0 - smoothing) + 0.5 * smoothing
    hit = (suits * target).sum()
    false_alarm = (suits * (1.0 - target)).sum()
    missed = ((1.0 - suits) * target).sum()
    return 1.0 - hit / (hit + alpha * false_alarm + beta * missed + 1e-8)


def learning_rate_at(step: int, steps: int, warmup: float) -> float:
    """The share of the full learning rate at a step."""
    rising = max(1, round(warmup * steps))
    if step < rising:
        return (step + 1) / rising
    return max(0.0, (steps - step) / max(1, steps - rising))


def train(
    model: Any, tokenizer: Any, data: Labelled, recipe: Recipe, max_tokens: int = MAX_TOKENS
) -> list[float]:
    """Trains `model` in place; returns the loss of each step."""
    torch.manual_seed(recipe.seed)
    rng = random.Random(recipe.seed)
    order = list(range(len(data.requests)))
    per_epoch = -(-len(order) // recipe.batch)
    steps = per_epoch * recipe.epochs
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate_at(step, steps, recipe.warmup)
    )
    model.train()
    losses = []
    for _ in range(recipe.epochs):
        rng.shuffle(order)
        for begin in range(0, len(order), recipe.batch):
            batch = order[begin : begin + recipe.batch]
            losses.append(_step(model, tokenizer, data, batch, recipe, max_tokens))
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    model.eval()
    return losses


def _step(
    model: Any,
    tokenizer: Any,
    data: Labelled,
    batch: Sequence[int],
    recipe: Recipe,
    max_tokens: int,
) -> float:
    texts = [data.requests[i] for i in batch]
    inputs = tokenizer(
        texts, truncation=True, max_length=max_tokens, padding=True, return_tensors="pt"
    ).to(model.device)
    labels = torch.tensor(data.labels[list(batch)], device=model.device)
    suits = torch.softmax(model(**inputs).logits.float(), -1)[:, 1]
    loss = tversky_loss(suits, labels, recipe.alpha, recipe.beta, recipe.smoothing)
    loss.backward()
    return float(loss.detach())


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True, help="a pretrained model's directory")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--epochs", type=int, default=Recipe.epochs)
    parser.add_argument("--seed", type=int, default=Recipe.seed)
    args = parser.parse_args(argv)
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForSequenceClassification.from_pretrained(args.model, num_labels=2)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    tokens = min(MAX_TOKENS, getattr(model.config, "max_position_embeddings", MAX_TOKENS + 2) - 2)
    data = Labelled.read(args.data / "lima_router.csv")
    losses = train(model, tokenizer, data, Recipe(epochs=args.epochs, seed=args.seed), tokens)
    model.save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)
    report: dict[str, Any] = {"first_loss": losses[0], "last_loss": losses[-1]}
    router = HfRouter(args.out)
    for name in ("vicuna", "wizardlm"):
        path = args.data / f"{name}_router.csv"
        if path.is_file():
            report[name] = evaluate(router, Labelled.read(path))
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
