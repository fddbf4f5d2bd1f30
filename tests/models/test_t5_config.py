"""T5 configurations and checkpoints: read as transformers reads them, refused where they cannot be
served."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import T5Config as Reference
from transformers import T5ForConditionalGeneration

from cascade_engine.errors import CheckpointError, ConfigError
from cascade_engine.models import llama, t5
from cascade_engine.models.config import load_config
from cascade_engine.models.cost import PassCost
from cascade_engine.models.family import open_model
from cascade_engine.models.t5_config import T5Config
from cascade_engine.models.t5_cost import T5Cost
from cascade_engine.ops import CpuBackend
from cascade_engine.ops.ceilings import packed_bytes
from tests.data import data_path
from tests.models.support import random_t5

BASE: dict[str, Any] = {
    "architectures": ["T5ForConditionalGeneration"],
    "model_type": "t5",
    "vocab_size": 320,
    "d_model": 48,
    "d_kv": 16,
    "d_ff": 100,
    "num_layers": 3,
    "num_heads": 5,
    "decoder_start_token_id": 0,
}
ACCEPTED: dict[str, dict[str, Any]] = {
    "v1.0": {},
    "old name": {"architectures": ["T5WithLMHeadModel"], "n_positions": 512},
    "v1.1": {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    "v1.1, act named": {"feed_forward_proj": "gated-gelu", "dense_act_fn": "gelu_new"},
    "v1.1 as transformers 5 writes it": {
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": True,
        "scale_decoder_outputs": False,
    },
    "fewer decoder layers": {"num_decoder_layers": 2},
    "buckets": {"relative_attention_num_buckets": 16, "relative_attention_max_distance": 40},
    "eps": {"layer_norm_epsilon": 1e-5},
    "several ends": {"eos_token_id": [5, 9], "pad_token_id": 3},
    "bfloat16": {"torch_dtype": "bfloat16"},
    "v1.0 in float16": {"dtype": "float16"},
}


def write(directory: Path, changes: dict[str, Any]) -> Path:
    values = {k: v for k, v in {**BASE, **changes}.items() if v != "absent"}
    (directory / "config.json").write_text(json.dumps(values))
    return directory


@pytest.mark.parametrize("changes", ACCEPTED.values(), ids=ACCEPTED.keys())
def test_parsed_as_transformers_does(tmp_path: Path, changes: dict[str, Any]) -> None:
    config = load_config(write(tmp_path, changes))
    assert isinstance(config, T5Config)
    reference = Reference.from_pretrained(tmp_path)
    ends = reference.eos_token_id
    assert config == T5Config(
        vocab_size=reference.vocab_size,
        hidden_size=reference.d_model,
        intermediate_size=reference.d_ff,
        num_encoder_layers=reference.num_layers,
        num_layers=reference.num_decoder_layers,
        num_heads=reference.num_heads,
        head_dim=reference.d_kv,
        num_buckets=reference.relative_attention_num_buckets,
        max_distance=reference.relative_attention_max_distance,
        rms_norm_eps=reference.layer_norm_epsilon,
        gated=reference.is_gated_act,
        scale_outputs=reference.scale_decoder_outputs,
        tie_word_embeddings=changes.get("tie_word_embeddings", True),
        stored_head_wins="scale_decoder_outputs" in changes,
        positions=512,
        pad_id=reference.pad_token_id,
        decoder_start_id=reference.decoder_start_token_id,
        eos_ids=tuple(ends) if isinstance(ends, list) else (ends,),
        dtype=reference.dtype,
    )


@pytest.mark.parametrize("seed", range(4))
def test_tensor_shapes_are_those_of_transformers(tmp_path: Path, seed: int) -> None:
    model = random_t5(tmp_path, seed)
    config, checkpoint = open_model(tmp_path)
    expected = {name: tuple(p.shape) for name, p in model.named_parameters()}
    assert config.tensor_shapes() == expected
    checkpoint.expect(config.tensor_shapes(), config.tied_tensors())


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"model_type": "mt5"}, "model_type 'mt5' is not supported; of the T5 family 't5' is"),
    ({"model_type": "bart"}, "model_type 'bart' is not supported; 'llama' and 't5' are"),
    ({"architectures": ["T5EncoderModel"]}, r"architectures must be \['T5ForCond.*supported"),
    ({"architectures": []}, "architectures must be"),
    ({"is_encoder_decoder": False}, "is_encoder_decoder must be true: encoders alone"),
    ({"feed_forward_proj": ["relu"]}, r"feed_forward_proj must be 'relu' .*, got \['relu'\]"),
    ({"feed_forward_proj": "gated-silu"}, r"feed_forward_proj must be 'relu' \(v1.0\) or 'gated"),
    ({"dense_act_fn": "gelu"}, "dense_act_fn must be 'relu' as feed_forward_proj 'relu' says"),
    ({"quantization_config": {"bits": 8}}, "quantization_config must be absent"),
    (
        {"feed_forward_proj": "gated-gelu", "torch_dtype": "float16"},
        "float16 is not supported for T5 v1.1 / FLAN.*65504.*use the float32 or bfloat16",
    ),
    ({"relative_attention_num_buckets": 3}, r"num_buckets must be an integer in \[4, "),
    ({"relative_attention_max_distance": 16}, "max_distance must be greater than 16, got 16"),
    ({"d_kv": 0}, "d_kv must be"),
    ({"num_heads": "absent"}, "num_heads must be .*, got nothing"),
    ({"decoder_start_token_id": 320}, r"decoder_start_token_id must be in \[0, 319\]"),
    ({"eos_token_id": [1, -1]}, "eos_token_id must be in"),
    ({"scale_decoder_outputs": "yes"}, "scale_decoder_outputs must be true or false"),
]


@pytest.mark.parametrize(("changes", "words"), REFUSED, ids=[str(c) for c, _ in REFUSED])
def test_what_cannot_be_served_is_refused(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        load_config(write(tmp_path, changes))


def test_the_published_small_model() -> None:
    config = load_config(data_path("tokenizers", "t5"))
    assert isinstance(config, T5Config)
    cost = T5Cost(config, torch.float32, packed_bytes)
    assert cost.parameters == 60_506_624  # t5-small
    assert (config.gated, config.scale_outputs, config.eos_ids) == (False, True, (1,))


def edited(directory: Path, change: Any, config: dict[str, Any] | None = None) -> Path:
    """The checkpoint with its tensors changed."""
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    tensors = {name: t.contiguous().clone() for name, t in tensors.items()}
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    if config is not None:
        values = json.loads((directory / "config.json").read_text())
        values = {k: v for k, v in {**values, **config}.items() if v is not None}
        (directory / "config.json").write_text(json.dumps(values))
    return directory


def load(directory: Path) -> t5.T5Weights:
    config, checkpoint = open_model(directory)
    assert isinstance(config, T5Config)
    return t5.load_weights(checkpoint, config, CpuBackend(1), torch.float32)


def test_left_overs_and_copies_of_older_exports(tmp_path: Path) -> None:
    """The embedding under three names, an unused bias table, a tied head written out."""
    random_t5(tmp_path, 0)

    def add(tensors: dict[str, torch.Tensor]) -> None:
        shared = tensors["shared.weight"]
        tensors["encoder.embed_tokens.weight"] = tensors["decoder.embed_tokens.weight"] = shared
        tensors["lm_head.weight"] = shared
        name = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
        tensors[name] = torch.randn(32, 2)

    weights = load(edited(tmp_path, add, {"scale_decoder_outputs": None}))
    assert weights.embedding is weights.head
    edited(tmp_path, lambda tensors: tensors["encoder.embed_tokens.weight"].add_(1))
    with pytest.raises(CheckpointError, match=r"encoder.embed_tokens.*same values as shared"):
        load(tmp_path)


def test_which_head_is_read(tmp_path: Path) -> None:
    """Transformers 5 writes tie_word_embeddings true whatever the file holds; older files mean
    it."""
    own = {"lm_head.weight": torch.randn(97, 24)}
    random_t5(tmp_path, 0, vocab_size=97, d_model=24)
    edited(tmp_path, lambda tensors: tensors.update(own))
    weights = load(tmp_path)
    assert weights.embedding is not weights.head
    edited(tmp_path, lambda tensors: None, {"scale_decoder_outputs": None})
    with pytest.raises(CheckpointError, match=r"lm_head.*tie_word_embeddings false"):
        load(tmp_path)
    edited(tmp_path, lambda tensors: tensors.pop("lm_head.weight"), {"tie_word_embeddings": False})
    with pytest.raises(CheckpointError, match=r"lm_head.weight.*shape \[97, 24\], found nothing"):
        load(tmp_path)


def test_float16_of_version_1_1_is_refused(tmp_path: Path) -> None:
    """By the tensors, where the configuration says nothing; version 1.0 becomes float32."""

    def halve(tensors: dict[str, torch.Tensor]) -> None:
        tensors.update({name: t.half() for name, t in tensors.items()})

    (tmp_path / "old").mkdir()
    random_t5(tmp_path / "old", 0)
    load(edited(tmp_path / "old", halve, {"dtype": None}))
    random_t5(tmp_path, 1)
    with pytest.raises(CheckpointError, match=r"float16 in .* is not supported for T5 v1.1.*65504"):
        load(edited(tmp_path, halve, {"dtype": None}))


def test_shards(tmp_path: Path) -> None:
    """Sharded weights are the single file's."""
    model = random_t5(tmp_path / "one", 1)
    model.save_pretrained(tmp_path / "many", max_shard_size="20KB")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 2
    for one, many in zip(
        llama.tensors_of(load(tmp_path / "one")),
        llama.tensors_of(load(tmp_path / "many")),
        strict=True,
    ):
        assert torch.equal(one, many)


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.int8], ids=["f32", "bf16", "i8"]
)
@pytest.mark.parametrize("seed", range(4))
def test_cost_is_that_of_the_loaded_model(seed: int, dtype: torch.dtype, tmp_path: Path) -> None:
    model = random_t5(tmp_path, seed)
    config, checkpoint = open_model(tmp_path)
    assert isinstance(config, T5Config)
    cost = T5Cost(config, dtype, packed_bytes)
    assert cost.parameters == sum(p.numel() for p in model.parameters())
    weights = t5.load_weights(checkpoint, config, CpuBackend(1), dtype)
    assert cost.weight_bytes == weights.num_bytes()
    kept = weights.activation_dtype.itemsize
    assert cost.cache_bytes_per_token == 2 * config.num_layers * config.attention_width * kept


def test_operations_are_those_of_transformers(tmp_path: Path) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    model = random_t5(tmp_path, 1, attn_implementation="eager")
    config, _ = open_model(tmp_path)
    assert isinstance(config, T5Config)
    cost = T5Cost(config, torch.float32, packed_bytes)
    source, decoded = torch.ones(1, 11, dtype=torch.long), torch.ones(1, 1, dtype=torch.long)
    with torch.no_grad():
        with FlopCounterMode(display=False) as counter:
            out = model(input_ids=source, decoder_input_ids=decoded, use_cache=True)
        first = counter.get_total_flops()
        encoded = (out.encoder_last_hidden_state,)
        with FlopCounterMode(display=False) as counter:
            model(
                encoder_outputs=encoded,
                decoder_input_ids=decoded,
                past_key_values=out.past_key_values,
                use_cache=True,
            )
    assert counter.get_total_flops() == 2 * cost.decode(1, 12).multiply_adds
    whole = cost.encode(11).multiply_adds + cost.decode(1, 11).multiply_adds
    assert first == 2 * whole
    assert isinstance(cost.encode(1), PassCost)


def test_one_model_in_both_spellings_is_one_model(tmp_path: Path) -> None:
    """What transformers 5 loads and what is computed here agree on whether outputs are scaled."""
    for tied, gated in ((True, False), (False, True)):
        directory = tmp_path / str(tied)
        model = random_t5(directory, int(gated), tie_word_embeddings=tied, own_head=not tied)
        again = T5ForConditionalGeneration.from_pretrained(directory)
        config, _ = open_model(directory)
        assert isinstance(config, T5Config)
        assert config.scale_outputs == again.config.scale_decoder_outputs == tied
        assert config.tie_word_embeddings == tied == (model.lm_head.weight is model.shared.weight)
