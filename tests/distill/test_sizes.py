"""Sizes of drafts: names, keys, fractions."""

from __future__ import annotations

import dataclasses

import pytest

from cascade_engine.demo.family import llama_family
from cascade_engine.distill.sizes import NAMED, Shape, build, parse_size
from cascade_engine.errors import RequestError
from cascade_engine.models.config import LlamaConfig, load_config


@pytest.fixture(scope="module")
def target() -> LlamaConfig:
    config = load_config(llama_family().target)
    assert isinstance(config, LlamaConfig)
    return config


def layer_weights(shape: Shape) -> int:
    kv = shape.hidden // shape.heads * shape.kv_heads
    attention = 2 * shape.hidden * (shape.hidden + kv)
    return shape.layers * (attention + 3 * shape.hidden * shape.intermediate)


def test_names_weigh_what_they_say(target: LlamaConfig) -> None:
    for name in NAMED:
        shape = parse_size(name, target)
        embedding = 32000 * shape.hidden
        assert (layer_weights(shape) + embedding) / 1e6 == pytest.approx(int(name[:-1]), rel=0.03)


def test_keys_have_defaults(target: LlamaConfig) -> None:
    assert parse_size("hidden=64,layers=2", target) == Shape(64, 2, 2, 2, 192)
    assert parse_size("hidden=288,layers=3", target) == Shape(288, 3, 9, 9, 768)
    given = "hidden=96,layers=1,heads=6,kv_heads=3,intermediate=100"
    assert parse_size(given, target) == Shape(96, 1, 6, 3, 100)


@pytest.mark.parametrize("share", [0.02, 0.1, 0.5])
def test_fractions_are_of_the_layers(target: LlamaConfig, share: float) -> None:
    big = dataclasses.replace(target, hidden_size=2048, num_layers=24)
    whole = Shape(2048, 24, 32, 32, 5472)
    found = layer_weights(parse_size(str(share), big)) / layer_weights(whole)
    assert found == pytest.approx(share, rel=0.15)


def test_smaller_drafts_learn_faster() -> None:
    assert Shape(256, 1, 4, 4, 64).learning_rate == pytest.approx(3e-3)
    assert Shape(64, 1, 2, 2, 64).learning_rate == pytest.approx(6e-3)


def test_the_draft_has_the_targets_vocabulary(target: LlamaConfig) -> None:
    pytest.importorskip("transformers")
    model = build(Shape(32, 1, 2, 1, 64), target, 300)
    assert model.config.vocab_size == target.vocab_size
    assert model.config.max_position_embeddings == 300
    assert model.config.eos_token_id == list(target.eos_ids)
    assert model.config.tie_word_embeddings


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("16m", "--size must be one of 15m, 42m"),
        ("hidden=64", "lacks layers"),
        ("hidden=64,layers=two", "--size must be one of"),
        ("hidden=64,layers=2,depth=3", "keys: hidden, layers, heads, kv_heads, intermediate"),
        ("hidden=64,layers=0", "layers must be >= 1, got 0"),
        ("hidden=66,layers=1,heads=4", "hidden=66 must be an even multiple of heads=4"),
        ("hidden=20,layers=1,heads=4", "hidden=20 must be an even multiple of heads=4"),
        ("hidden=64,layers=1,heads=4,kv_heads=3", "kv_heads=3 must divide heads=4"),
        ("1.5", "a fraction must be between 0 and 1, got 1.5"),
        ("0", "a fraction must be between 0 and 1"),
    ],
)
def test_what_is_no_size_is_named(target: LlamaConfig, text: str, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        parse_size(text, target)
