"""A model of either family, by what its directory says it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from cascade_engine.models import llama, t5
from cascade_engine.models.checkpoint import Checkpoint
from cascade_engine.models.config import ModelConfig, load_config
from cascade_engine.models.cost import ModelCost, PackedBytes
from cascade_engine.models.llama import LlamaWeights
from cascade_engine.models.t5 import T5Weights
from cascade_engine.models.t5_config import T5Config
from cascade_engine.models.t5_cost import T5Cost
from cascade_engine.ops import CpuBackend, CudaBackend

ModelWeights = LlamaWeights | T5Weights


def open_model(directory: str | Path) -> tuple[ModelConfig, Checkpoint]:
    """The configuration of a model and its weight files' headers, nothing loaded yet. Raises
    ConfigError or CheckpointError."""
    config = load_config(directory)
    checkpoint = Checkpoint.open(directory)
    if isinstance(config, T5Config):
        config = config.stored_with(set(checkpoint.entries))
    return config, checkpoint


def model_cost(
    config: ModelConfig, dtype: torch.dtype, packed_bytes: PackedBytes
) -> ModelCost | T5Cost:
    """What the model costs in memory and operations."""
    if isinstance(config, T5Config):
        return T5Cost(config, dtype, packed_bytes)
    return ModelCost(config, dtype, packed_bytes)


def load_weights(
    checkpoint: Checkpoint,
    config: ModelConfig,
    backend: CpuBackend | CudaBackend,
    dtype: torch.dtype,
    progress: Callable[[int, int], None] | None = None,
    compress: bool = False,
) -> ModelWeights:
    """The weights in the backend's layout; `progress(done, total)` counts layers. `compress`: see
    `CpuBackend.compress`. Raises CheckpointError."""
    if isinstance(config, T5Config):
        return t5.load_weights(checkpoint, config, backend, dtype, progress, compress)
    return llama.load_weights(checkpoint, config, backend, dtype, progress, compress)
