"""Encoder-decoders and inputs that their tests share."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch

from tests.models.support import random_t5

VOCAB = 150
SHAPE: dict[str, object] = {
    "vocab_size": VOCAB,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 40,
    "num_heads": 3,
    "num_layers": 2,
    "num_decoder_layers": 2,
}


def t5_models(root: Path) -> dict[str, Path]:
    """Directories by name. A "near" model is the target with some noise: a draft that is often
    right."""
    for seed, version in ((0, "v1.0"), (1, "v1.1")):
        model = random_t5(root / version, seed, **SHAPE)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(parameter.std() * 0.05 * torch.randn_like(parameter))
        model.save_pretrained(root / f"{version} near")
    random_t5(root / "other", 3, vocab_size=VOCAB)
    return {path.name: path for path in root.iterdir()}


def random_prompt(rng: random.Random, longest: int = 300) -> list[int]:
    """Of a few tokens only, so that Max-Gram finds what it looks for."""
    alphabet = rng.sample(range(1, VOCAB), rng.choice([2, 6, VOCAB - 1]))
    length = rng.choice([1, 2, 15, 16, 17, rng.randint(1, longest)])
    return [rng.choice(alphabet) for _ in range(length)]


class Counting:
    """An encoder's program that notes which rows it runs."""

    def __init__(self, program: Any, slots: list[int]) -> None:
        self._program, self._slots = program, slots

    def run(self, slots: list[int], *rest: object) -> None:
        self._slots += slots
        self._program.run(slots, *rest)
