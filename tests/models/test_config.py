"""Configurations: parsed as transformers parses them, and refused where they cannot be served."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from cascade_engine.errors import ConfigError
from cascade_engine.models.config import LlamaConfig, inv_freq, load_config
from tests.data import data_path

BASE: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 320,
    "hidden_size": 96,
    "intermediate_size": 200,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}

ACCEPTED: dict[str, dict[str, Any]] = {
    "plain": {},
    "theta outside": {"rope_theta": 500000.0},
    "theta as integer": {"rope_theta": 1000000},
    "null scaling": {"rope_theta": 5e5, "rope_scaling": None},
    "linear, old spelling": {"rope_theta": 2e4, "rope_scaling": {"type": "linear", "factor": 3}},
    "linear, new spelling": {
        "rope_parameters": {"rope_type": "linear", "factor": 2.5, "rope_theta": 7777.0}
    },
    "linear, new key, old name of type": {"rope_parameters": {"type": "linear", "factor": 2.0}},
    "theta inside wins": {
        "rope_theta": 5e5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 777.0},
    },
    "theta outside completes": {"rope_theta": 5e5, "rope_parameters": {"rope_type": "default"}},
    "llama3, old spelling": {"rope_theta": 5e5, "rope_scaling": LLAMA3},
    "llama3, new spelling": {"rope_parameters": {**LLAMA3, "rope_theta": 5e5}},
    "llama3 without its context": {
        "rope_theta": 5e5,
        "rope_scaling": {
            k: v for k, v in LLAMA3.items() if k != "original_max_position_embeddings"
        },
    },
    "llama3 with its context outside": {
        "rope_theta": 5e5,
        "original_max_position_embeddings": 64,
        "rope_scaling": LLAMA3,
    },
    "llama3, odd factor": {"head_dim": 256, "rope_scaling": {**LLAMA3, "factor": 6.7}},
    "llama3, wide head": {"head_dim": 128, "rope_theta": 5e5, "rope_scaling": LLAMA3},
    "head_dim apart": {"head_dim": 24},
    "head_dim null": {"head_dim": None},
    "as many kv heads as heads": {"num_key_value_heads": None},
    "biases and tied": {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    "torch_dtype": {"torch_dtype": "float16"},
    "dtype wins": {"dtype": "bfloat16", "torch_dtype": "float16"},
    "several ends": {"eos_token_id": [5, 9], "bos_token_id": 3},
    "no end": {"eos_token_id": None, "bos_token_id": None},
}


def write(directory: Path, changes: dict[str, Any], generation: Any = None) -> Path:
    values = {k: v for k, v in {**BASE, **changes}.items() if v != "absent"}
    (directory / "config.json").write_text(json.dumps(values))
    if generation is not None:
        (directory / "generation_config.json").write_text(json.dumps(generation))
    return directory


@pytest.mark.parametrize("changes", ACCEPTED.values(), ids=ACCEPTED.keys())
def test_parsed_as_transformers_does(tmp_path: Path, changes: dict[str, Any]) -> None:
    from transformers import LlamaConfig as Reference
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    config = load_config(write(tmp_path, changes))
    reference = Reference.from_pretrained(tmp_path)
    ends = reference.eos_token_id
    assert config == LlamaConfig(
        vocab_size=reference.vocab_size,
        hidden_size=reference.hidden_size,
        intermediate_size=reference.intermediate_size,
        num_layers=reference.num_hidden_layers,
        num_heads=reference.num_attention_heads,
        num_kv_heads=reference.num_key_value_heads,
        head_dim=reference.head_dim,
        rms_norm_eps=reference.rms_norm_eps,
        max_positions=reference.max_position_embeddings,
        rope=config.rope,
        attention_bias=reference.attention_bias,
        mlp_bias=reference.mlp_bias,
        tie_word_embeddings=reference.tie_word_embeddings,
        bos_id=reference.bos_token_id,
        eos_ids=() if ends is None else tuple(ends) if isinstance(ends, list) else (ends,),
        dtype=reference.dtype,
    )
    assert config.rope.type == reference.rope_parameters["rope_type"]
    expected = LlamaRotaryEmbedding(reference).inv_freq
    actual = inv_freq(config)
    assert actual.dtype == torch.float32
    assert torch.equal(actual.view(torch.int32), expected.view(torch.int32))


def test_tensor_shapes_are_those_of_transformers(tmp_path: Path) -> None:
    from transformers import LlamaConfig as Reference
    from transformers import LlamaForCausalLM

    for changes in ({}, {"head_dim": 24}, ACCEPTED["biases and tied"]):
        config = load_config(write(tmp_path, changes))
        with torch.device("meta"):
            model = LlamaForCausalLM(Reference.from_pretrained(tmp_path))
        expected = {name: tuple(p.shape) for name, p in model.named_parameters()}
        assert config.tensor_shapes() == expected


@pytest.mark.parametrize(
    ("config", "generation", "bos", "eos"),
    [
        ({}, None, 1, (2,)),
        ({"eos_token_id": 7}, None, 1, (7,)),
        ({"eos_token_id": 7}, {}, 1, (7,)),
        ({"eos_token_id": 7, "bos_token_id": 4}, {"eos_token_id": [8, 9, 8]}, 4, (8, 9)),
        ({"eos_token_id": [7, 3]}, {"bos_token_id": 6}, 6, (7, 3)),
        ({"eos_token_id": None}, {"eos_token_id": 5}, 1, (5,)),
        ({"eos_token_id": 5}, {"eos_token_id": None}, 1, (5,)),
    ],
)
def test_generation_config_overrides(
    tmp_path: Path, config: Any, generation: Any, bos: int, eos: tuple[int, ...]
) -> None:
    parsed = load_config(write(tmp_path, config, generation))
    assert (parsed.bos_id, parsed.eos_ids) == (bos, eos)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"model_type": "mistral"}, "model_type 'mistral' is not supported; 'llama' and 't5' are"),
    ({"model_type": "absent"}, "model_type None is not supported"),
    ({"architectures": ["LlamaForSequenceClassification"]}, "architectures must be"),
    ({"hidden_act": "gelu"}, "hidden_act must be 'silu', the one that is supported, got 'gelu'"),
    ({"pretraining_tp": 2}, "pretraining_tp must be 1"),
    ({"quantization_config": {"bits": 4}}, "quantization_config must be absent"),
    ({"sliding_window": 4096}, "sliding_window must be absent"),
    ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types must be"),
    ({"layer_types": 3}, "layer_types must be"),
    ({"num_local_experts": 8}, "num_local_experts must be absent"),
    ({"vocab_size": "320"}, "vocab_size must be an integer in [1, 2147483647], got '320'"),
    ({"vocab_size": True}, "vocab_size must be an integer"),
    ({"vocab_size": "absent"}, "vocab_size must be an integer in [1, 2147483647], got nothing"),
    ({"hidden_size": 0}, "hidden_size must be an integer in [1, 2147483647], got 0"),
    ({"hidden_size": 95}, "hidden_size must be a multiple of num_attention_heads = 6, got 95"),
    ({"hidden_size": 2**40}, "hidden_size must be an integer"),
    ({"num_hidden_layers": -1}, "num_hidden_layers must be"),
    ({"intermediate_size": 1.5}, "intermediate_size must be"),
    ({"num_key_value_heads": 4}, "num_key_value_heads must be a divisor of"),
    ({"head_dim": 15}, "head_dim must be even for rope, got 15"),
    ({"rms_norm_eps": 0}, "rms_norm_eps must be a finite number > 0, got 0"),
    ({"rms_norm_eps": float("nan")}, "rms_norm_eps must be a finite number > 0, got nan"),
    ({"max_position_embeddings": 0}, "max_position_embeddings must be"),
    ({"attention_bias": 1}, "attention_bias must be true or false, got 1"),
    ({"tie_word_embeddings": "yes"}, "tie_word_embeddings must be true or false"),
    ({"dtype": "float8_e4m3fn"}, "dtype must be float32 or float16 or bfloat16"),
    ({"torch_dtype": 16}, "torch_dtype must be float32 or float16 or bfloat16, got 16"),
    ({"eos_token_id": 320}, "eos_token_id must be in [0, 319] as vocab_size = 320 says, got 320"),
    ({"eos_token_id": [2, -1]}, "eos_token_id must be in [0, 319]"),
    ({"bos_token_id": [1, 2]}, "bos_token_id must be one id"),
    ({"bos_token_id": "<s>"}, "bos_token_id must be in [0, 319]"),
    ({"rope_theta": -1}, "rope_theta must be a finite number > 0, got -1"),
    ({"rope_theta": float("inf")}, "rope_theta must be a finite number > 0, got inf"),
    ({"rope_scaling": [1]}, "rope_scaling must be an object, got [1]"),
    ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "type must be one of default, linear"),
    ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "rope_type must be one of"),
    ({"rope_scaling": {"rope_type": ["linear"]}}, "rope_type must be one of"),
    ({"rope_scaling": {"type": "linear"}}, "rope_scaling.factor must be a finite number > 0"),
    ({"rope_scaling": {"type": "linear", "factor": 0}}, "rope_scaling.factor must be"),
    ({"rope_scaling": {"type": "linear", "factor": "2"}}, "rope_scaling.factor must be"),
    (
        {"rope_scaling": {"type": "linear", "rope_type": "default"}},
        "rope_scaling.type must be 'default' as rope_type says, got 'linear'",
    ),
    (
        {"rope_parameters": {"rope_type": "default", "factor": 2.0}},
        "rope_parameters.factor must be absent: rope type 'default' has no such parameter",
    ),
    (
        {"rope_scaling": {**LLAMA3, "high_freq_factor": 1.0}},
        "rope_scaling.high_freq_factor must be greater than low_freq_factor = 1.0",
    ),
    (
        {"rope_scaling": {**LLAMA3, "original_max_position_embeddings": 0}},
        "rope_scaling.original_max_position_embeddings must be an integer",
    ),
    (
        {
            "rope_scaling": {"type": "linear", "factor": 2.0},
            "rope_parameters": {"rope_type": "default"},
        },
        "rope_scaling must be absent or the same where rope_parameters is given",
    ),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor must be 1.0"),
    (
        {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
        "rope_parameters.partial_rotary_factor must be 1.0",
    ),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED, ids=[m[:40] for _, m in REFUSED])
def test_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, changes))
    text = str(caught.value)
    assert message in text
    assert str(tmp_path / "config.json") in text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not valid JSON"),
        (b"\xff\xfe", "is not valid JSON"),
        (b"[1]", "must hold a JSON object, got list"),
        (b"[" * 100_000, "is not valid JSON"),
        (b'{"vocab_size": ' + b"9" * 5000 + b"}", "is not valid JSON"),
    ],
)
@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_damaged_files(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    write(tmp_path, {})
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(tmp_path)
    assert str(tmp_path / name) in str(caught.value)


def test_missing_directory_and_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not a directory; name a Hugging Face"):
        load_config(tmp_path / "nothing")
    with pytest.raises(ConfigError, match=r"has no config\.json"):
        load_config(tmp_path)


@pytest.mark.parametrize("name", ["stories260k", "llama2xs"])
def test_real_models(name: str) -> None:
    config = load_config(data_path(name))
    assert (config.hidden_size, config.num_layers, config.head_dim) == (64, 5, 8)
    assert config.tie_word_embeddings
    assert config.eos_ids == (2,)
