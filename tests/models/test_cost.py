"""What a model costs, against a model that is loaded and operations that are counted."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from cascade_engine.cache import bytes_per_token
from cascade_engine.models import llama
from cascade_engine.models.checkpoint import Checkpoint
from cascade_engine.models.config import load_config
from cascade_engine.models.cost import ModelCost, PassCost, predicted_seconds
from cascade_engine.ops import CpuBackend, activation_dtype
from cascade_engine.ops.ceilings import packed_bytes
from tests.models.support import random_llama


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.int8], ids=["f32", "bf16", "i8"]
)
@pytest.mark.parametrize("seed", range(6))
def test_memory_is_that_of_the_loaded_model(seed: int, dtype: torch.dtype, tmp_path: Path) -> None:
    model = random_llama(tmp_path, seed)
    config = load_config(tmp_path)
    cost = ModelCost(config, dtype, packed_bytes)
    assert cost.parameters == sum(p.numel() for p in model.parameters())
    weights = llama.load_weights(Checkpoint.open(tmp_path), config, CpuBackend(1), dtype)
    assert cost.weight_bytes == weights.num_bytes()
    cached = activation_dtype(dtype)
    per_token = bytes_per_token(config.num_layers, config.num_kv_heads, config.head_dim, cached)
    assert cost.cache_bytes_per_token == per_token


@pytest.mark.parametrize("seed", range(3))
def test_operations_are_those_of_transformers(seed: int, tmp_path: Path) -> None:
    model = random_llama(tmp_path, seed, attn_implementation="eager")
    cost = ModelCost(load_config(tmp_path), torch.float32, packed_bytes)
    with torch.no_grad():
        cache = model(torch.arange(9)[None], use_cache=True).past_key_values
        with FlopCounterMode(display=False) as counter:
            model(torch.tensor([[5]]), past_key_values=cache, use_cache=True)
    angles = model.config.head_dim  # transformers computes rotary angles as a matrix product
    assert abs(counter.get_total_flops() - 2 * cost.decode(1, 9).multiply_adds) <= angles


def test_a_review_reads_weights_and_cache_once(tmp_path: Path) -> None:
    random_llama(tmp_path, 0, tie_word_embeddings=False)
    config = load_config(tmp_path)
    cost = ModelCost(config, torch.float32, packed_bytes)
    singles = [cost.decode(1, 40 + i).multiply_adds for i in range(8)]
    assert cost.decode(8, 40).multiply_adds == sum(singles)
    row = 4 * config.hidden_size
    assert cost.decode(1, 0).bytes < cost.weight_bytes + cost.cache_bytes_per_token
    table = config.vocab_size * row
    assert cost.decode(1, 0).bytes == (cost.weight_bytes - table + row + cost.cache_bytes_per_token)
    assert cost.decode(8, 40).bytes - cost.decode(1, 0).bytes == (
        7 * row + 47 * cost.cache_bytes_per_token
    )


def test_time_is_the_larger_of_moving_and_multiplying() -> None:
    cost = PassCost(multiply_adds=100, bytes=10)
    assert predicted_seconds(cost, bandwidth=5.0, rate=1000.0) == 2.0
    assert predicted_seconds(cost, bandwidth=5.0, rate=10.0) == 10.0
