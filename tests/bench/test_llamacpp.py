"""llama.cpp as a peer. What runs it needs the `bench` extra and is skipped without it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from bench import llamacpp, shapes
from bench.peers import TOLERANCE, Ours, PeerDisagreement, check_agreement
from cascade_engine.errors import ConfigError
from cascade_engine.models.config import RopeConfig, load_config

CONTEXT = 40
GROUPED = shapes.SHAPES["tiny"] | {"num_attention_heads": 4, "num_key_value_heads": 2}


@pytest.fixture(scope="module")
def grouped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Grouped queries and a head of its own."""
    shape = GROUPED | {"tie_word_embeddings": False, "rope_theta": 5000.0}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(shapes.SHAPES, "grouped", shape)
        return shapes.write_shape("grouped", "f32", tmp_path_factory.mktemp("grouped"))


def test_interleaved_halves_rotate_in_neighbouring_pairs() -> None:
    weight = torch.arange(8.0).view(8, 1)
    # Two heads of four rows: halves (0, 1), (2, 3) become pairs (0, 2), (1, 3).
    assert llamacpp.interleave_halves(weight, 2).flatten().tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_every_tensor_has_a_name(grouped: Path) -> None:
    names = [llamacpp.gguf_name(name) for name in load_config(grouped).tensor_shapes()]
    assert len(set(names)) == len(names)
    assert {name for name in names if not name.startswith("blk.")} == {
        "token_embd.weight",
        "output_norm.weight",
        "output.weight",
    }
    assert llamacpp.gguf_name("model.layers.1.mlp.up_proj.weight") == "blk.1.ffn_up.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rope": RopeConfig(type="linear", factor=2.0)}, "rope type linear"),
        ({"attention_bias": True}, "attention_bias True"),
        ({"mlp_bias": True}, "mlp_bias True"),
    ],
)
def test_what_is_not_written_is_refused(
    grouped: Path, change: dict[str, object], message: str
) -> None:
    config = load_config(grouped)
    llamacpp.check_writable(config)
    with pytest.raises(ConfigError, match=f"{message}: leave llamacpp out of --peers"):
        llamacpp.check_writable(dataclasses.replace(config, **change))


@pytest.fixture
def extra() -> None:
    for name in ("llama_cpp", "gguf"):
        pytest.importorskip(name, reason="needs the bench extra")


def difference(target: Path, path: Path, dtype: str, engine_dtype: str) -> float:
    llamacpp.write_gguf(target, path, dtype)
    ours = Ours(target, engine_dtype, 1, CONTEXT)
    peer = llamacpp.LlamaCpp(path, dtype, 1, CONTEXT)
    try:
        return check_agreement(ours, peer, "llamacpp", ours.vocab, TOLERANCE[dtype])
    finally:
        peer.close()


@pytest.mark.usefixtures("extra")
@pytest.mark.parametrize(("dtype", "name"), [("f32", "float32"), ("bf16", "bfloat16")])
def test_llama_cpp_computes_the_same_model(
    grouped: Path, tiny: Path, tmp_path: Path, dtype: str, name: str
) -> None:
    for target in (grouped, tiny):
        assert difference(target, tmp_path / "m.gguf", dtype, name) > 0


@pytest.mark.usefixtures("extra")
@pytest.mark.parametrize(("dtype", "name"), [("f32", "float32"), ("bf16", "bfloat16")])
def test_wrongly_rotated_weights_are_seen(
    grouped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, name: str
) -> None:
    monkeypatch.setattr(llamacpp, "interleave_halves", lambda weight, heads: weight)
    with pytest.raises(PeerDisagreement):
        difference(grouped, tmp_path / "m.gguf", dtype, name)


@pytest.mark.usefixtures("extra")
def test_passes_leave_the_context(tiny: Path, tmp_path: Path) -> None:
    llamacpp.write_gguf(tiny, tmp_path / "m.gguf", "f32")
    peer = llamacpp.LlamaCpp(tmp_path / "m.gguf", "f32", 1, CONTEXT)
    tokens = list(range(20))
    before = peer.logits(tokens, 4)
    for k in (1, 64, 8):
        peer.step(k)
    peer.prefill()
    assert torch.equal(peer.logits(tokens, 4), before)
    assert (peer.facts["weights"], peer.facts["cache"]) == ("F32", "F32")
    peer.close()
