"""Random models on disk, small enough for a test."""

from __future__ import annotations

import random
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, T5Config, T5ForConditionalGeneration


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


def random_t5(directory: Path, seed: int, **overrides: object) -> T5ForConditionalGeneration:
    """Writes a T5 with random weights large enough for distinct logits, version 1.0 for even seeds
    and 1.1 for odd ones; returns it in eval mode.

    Without overrides, the seed also chooses the shape."""
    rng = random.Random(seed)
    gated = seed % 2 == 1
    heads, dim = rng.choice([1, 2, 3, 5]), rng.choice([2, 4, 10, 16, 32, 64])
    options: dict[str, object] = {
        "vocab_size": rng.choice([97, 128, 301]),
        "d_model": rng.choice([24, 45, 64]),
        "d_kv": dim,
        "d_ff": rng.choice([33, 64, 100]),
        "num_layers": rng.choice([1, 2, 3]),
        "num_decoder_layers": rng.choice([1, 2, 3]),
        "num_heads": heads,
        "relative_attention_num_buckets": rng.choice([8, 32, 32]),
        "relative_attention_max_distance": rng.choice([20, 64, 128]),
        "layer_norm_epsilon": rng.choice([1e-5, 1e-6]),
        "feed_forward_proj": "gated-gelu" if gated else "relu",
        "tie_word_embeddings": not gated,
        "decoder_start_token_id": 0,
    }
    own_head = overrides.pop("own_head", gated)
    options.update(overrides)
    torch.manual_seed(seed)
    model = T5ForConditionalGeneration(T5Config(**options)).eval()
    if own_head:
        model.lm_head.weight = torch.nn.Parameter(torch.empty_like(model.lm_head.weight))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "layer_norm" in name:
                parameter.copy_(1 + 0.2 * torch.randn_like(parameter))
            elif "relative_attention_bias" in name or parameter.shape[0] == model.config.vocab_size:
                parameter.copy_(torch.randn_like(parameter))
            else:
                scale = 0.5 if name.endswith((".q.weight", ".k.weight")) else 1.0
                parameter.copy_(torch.randn_like(parameter) * scale / parameter.shape[1] ** 0.5)
    model.save_pretrained(directory)
    return model


def raw_file(path: Path, header: bytes, data: bytes, length: int | None = None) -> None:
    """A safetensors file with this header, which says that it is `length` bytes long."""
    length = len(header) if length is None else length
    path.write_bytes(length.to_bytes(8, "little") + header + data)
