"""Random models on disk, small enough for a test."""

from __future__ import annotations

import random
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM


def random_llama(directory: Path, seed: int, **overrides: object) -> LlamaForCausalLM:
    """Writes a LLaMA with random weights large enough for distinct logits; returns it in eval mode.

    Without overrides, the seed also chooses the shape."""
    rng = random.Random(seed)
    heads_per_kv, kv_heads = rng.choice([1, 2, 3]), rng.choice([1, 2])
    heads = heads_per_kv * kv_heads
    head_dim = rng.choice([4, 8, 16, 20, 32, 64])
    rope: dict[str, object] = rng.choice(
        [
            {"rope_type": "default"},
            {"rope_type": "linear", "factor": 2.0},
            {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        ]
    )
    options: dict[str, object] = {
        "vocab_size": rng.choice([97, 128, 301]),
        "hidden_size": rng.choice([head_dim * heads, 48, 84]),
        "intermediate_size": rng.choice([33, 64, 100]),
        "num_hidden_layers": rng.choice([1, 2, 3]),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "attention_bias": rng.random() < 0.3,
        "mlp_bias": rng.random() < 0.3,
        "tie_word_embeddings": rng.random() < 0.5,
        "rope_parameters": {"rope_theta": rng.choice([500.0, 10000.0]), **rope},
        "rms_norm_eps": rng.choice([1e-5, 1e-6]),
        "max_position_embeddings": 256,
        "initializer_range": 0.2,
    }
    options.update(overrides)
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(**options)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "norm" in name:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(directory)
    return model
