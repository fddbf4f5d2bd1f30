"""Random checkpoints of named shapes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bench.shapes import SHAPES, vocabulary_of, write_shape
from cascade_engine.models.checkpoint import Checkpoint
from cascade_engine.models.config import load_config


def test_a_shape_is_a_checkpoint_whose_passes_stay_in_scale(tiny: Path) -> None:
    config, checkpoint = load_config(tiny), Checkpoint.open(tiny)
    checkpoint.expect(config.tensor_shapes(), config.tied_tensors())
    for name in config.tensor_shapes():
        tensor = checkpoint.tensor(name)
        if "norm" in name:
            assert tensor.mean() == pytest.approx(1.0, abs=0.02), name
        elif "q_proj" in name or "k_proj" in name:
            # Queries and keys of normed states (64 wide) get a standard deviation of 0.9.
            assert tensor.std() == pytest.approx(0.9 / 8, rel=0.1), name
        else:
            assert tensor.std() == pytest.approx(0.02, rel=0.1), name


def test_a_shape_has_its_vocabulary_and_dtype(tmp_path: Path) -> None:
    assert (vocabulary_of("tiny"), vocabulary_of("110m")) == (512, 32000)
    assert list(SHAPES) == ["7b", "110m", "15m", "tiny"]
    config = load_config(write_shape("tiny", "bf16", tmp_path))
    assert (config.vocab_size, config.dtype) == (512, torch.bfloat16)
    assert config.tie_word_embeddings
