"""LLaMA shapes with random weights: right for times, meaningless as text."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file

from cascade_engine.models.checkpoint import SLICE_BYTES, Checkpoint
from cascade_engine.models.config import LlamaConfig, load_config

SHAPES = {
    "7b": {
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
    },
    "110m": {
        "hidden_size": 768,
        "intermediate_size": 2048,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
    },
    "15m": {
        "hidden_size": 288,
        "intermediate_size": 768,
        "num_hidden_layers": 6,
        "num_attention_heads": 6,
    },
    "tiny": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "vocab_size": 512,
    },
}
VOCABULARY = 32000
DTYPES = {"bf16": torch.bfloat16, "f32": torch.float32}
DEVIATION = 0.02
# Standard deviation of queries and keys: scores spread, so that attention is no plain average and a
# peer that computes it wrongly is seen, but not so far that rounding grows from layer to layer.
QUERY_DEVIATION = 0.9


def vocabulary_of(name: str) -> int:
    return SHAPES[name].get("vocab_size", VOCABULARY)


def write_config(name: str, dtype: str, directory: Path) -> LlamaConfig:
    """The configuration of a named shape (tied head, context 8192), written and read back."""
    directory.mkdir(parents=True, exist_ok=True)
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
        "hidden_act": "silu",
        "bos_token_id": 1,
        "eos_token_id": 2,
        "dtype": str(DTYPES[dtype]).removeprefix("torch."),
        **SHAPES[name],
    }
    (directory / "config.json").write_text(json.dumps(config))
    found = load_config(directory)
    assert isinstance(found, LlamaConfig)
    return found


def write_shape(name: str, dtype: str, directory: Path) -> Path:
    """A checkpoint of a named shape with random weights."""
    generator = torch.Generator().manual_seed(0)
    shapes = write_config(name, dtype, directory).tensor_shapes()
    tensors = {}
    for key, shape in shapes.items():
        part = key.split(".")[-2]
        queries = part in ("q_proj", "k_proj")
        deviation = QUERY_DEVIATION / math.sqrt(shape[-1]) if queries else DEVIATION
        values = torch.randn(shape, generator=generator) * deviation
        tensors[key] = (values + ("norm" in part)).to(DTYPES[dtype])
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    return directory


class RandomWeights(Checkpoint):
    """Random tensors of a configuration in place of files, cut from one block of numbers as they
    are asked for: a model of 7B takes no more memory than its packed weights."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(Path("random weights"), {})
        self._shapes = config.tensor_shapes()
        longest = max(shape[-1] for shape in self._shapes.values())
        count = max(SLICE_BYTES // 2, longest)
        generator = torch.Generator().manual_seed(0)
        self._block = (torch.randn(count, generator=generator) * DEVIATION).to(torch.bfloat16)

    def expect(
        self, shapes: Mapping[str, Sequence[int]], tied: Mapping[str, str] | None = None
    ) -> None:
        """Whatever is asked for is there."""

    def tensor(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        shape = self._shapes[name]
        if len(shape) == 1:
            return torch.ones(shape) if "norm" in name else torch.zeros(shape)
        rows = (shape[0] if stop is None else stop) - start
        return self._block[: rows * shape[1]].view(rows, shape[1])

    def slices(self, name: str, max_bytes: int = SLICE_BYTES) -> Iterator[tuple[int, torch.Tensor]]:
        rows, columns = self._shapes[name]
        step = len(self._block) // columns
        for start in range(0, rows, step):
            yield start, self.tensor(name, start, min(start + step, rows))
