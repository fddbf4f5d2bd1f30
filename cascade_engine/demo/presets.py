"""The shapes and training settings of the five demo models.

The T5 models use the LLaMA tokenizer's ids: eos = 2; id 0 (<unk>, which byte fallback never produces)
is both the padding and the decoder's start token; the encoder reads `prompt + EOS` without BOS.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from cascade_engine.training.loop import require_transformers

from .tokenizer import BOS_ID, EOS_ID, UNK_ID, VOCAB_SIZE

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MAX_POSITIONS = 1024
PAD_ID = UNK_ID


@dataclass(frozen=True)
class Preset:
    """Model shape (keyword arguments of the Hugging Face config) and training settings.

    `batch_tokens`: tokens in a batch; `parts`: batches in one optimizer step; `matrix_lr`: Muon, for the matrices inside the
    layers; `other_lr`: AdamW, for embeddings, norms and the output layer.
    """

    family: str
    shape: dict[str, Any]
    steps: int
    batch_tokens: int = 4096
    parts: int = 1
    matrix_lr: float = 3e-3
    other_lr: float = 3e-3


PRESETS: dict[str, Preset] = {
    "llama-target": Preset(
        "llama",
        {
            "hidden_size": 256,
            "intermediate_size": 768,
            "num_hidden_layers": 6,
            "num_attention_heads": 4,
        },
        steps=4400,
    ),
    "llama-middle": Preset(
        "llama",
        {
            "hidden_size": 128,
            "intermediate_size": 384,
            "num_hidden_layers": 4,
            "num_attention_heads": 2,
        },
        steps=4000,
        matrix_lr=4e-3,
        other_lr=4e-3,
    ),
    "llama-small": Preset(
        "llama",
        {
            "hidden_size": 64,
            "intermediate_size": 192,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
        },
        steps=6000,
        matrix_lr=6e-3,
        other_lr=6e-3,
    ),
    "t5-target": Preset(
        "t5",
        {
            "d_model": 256,
            "d_kv": 64,
            "d_ff": 512,
            "num_heads": 4,
            "num_layers": 3,
            "num_decoder_layers": 3,
        },
        steps=4000,
        batch_tokens=1280,
        parts=4,
    ),
    "t5-draft": Preset(
        "t5",
        {
            "d_model": 96,
            "d_kv": 32,
            "d_ff": 192,
            "num_heads": 3,
            "num_layers": 1,
            "num_decoder_layers": 1,
        },
        steps=5000,
        batch_tokens=1280,
        parts=4,
        matrix_lr=5e-3,
        other_lr=5e-3,
    ),
}


def build_model(name: str) -> PreTrainedModel:
    """A randomly initialised model of a preset, in float32; torch's seed decides its weights."""
    if name not in PRESETS:
        raise ValueError(f"model must be one of {', '.join(PRESETS)}, got {name!r}")
    transformers = require_transformers()
    preset = PRESETS[name]
    if preset.family == "llama":
        config = transformers.LlamaConfig(
            vocab_size=VOCAB_SIZE,
            max_position_embeddings=MAX_POSITIONS,
            rms_norm_eps=1e-5,
            tie_word_embeddings=True,
            bos_token_id=BOS_ID,
            eos_token_id=EOS_ID,
            pad_token_id=PAD_ID,
            **preset.shape,
        )
        return transformers.LlamaForCausalLM(config)
    config = transformers.T5Config(
        vocab_size=VOCAB_SIZE,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        dropout_rate=0.0,
        pad_token_id=PAD_ID,
        eos_token_id=EOS_ID,
        decoder_start_token_id=PAD_ID,
        **preset.shape,
    )
    model = transformers.T5ForConditionalGeneration(config)
    # The library draws embeddings and the output layer with unit variance, for logits of the size of
    # d_model; at a few million parameters unlearning that would take a third of the training.
    with torch.no_grad():
        model.lm_head.weight.mul_(config.d_model**-0.5)
        model.shared.weight.mul_(0.05)
    return model


def load_model(folder: Path, family: str, dtype: torch.dtype) -> Any:
    """A trained model of a family ("llama" or "t5") in evaluation mode."""
    transformers = require_transformers()
    kinds = {"llama": transformers.LlamaForCausalLM, "t5": transformers.T5ForConditionalGeneration}
    return kinds[family].from_pretrained(folder, dtype=dtype).eval()
