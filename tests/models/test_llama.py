"""The forward pass against transformers: the house tolerance, and greedy tokens."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cascade_engine import Engine, PlainDecoding, SamplingParams
from cascade_engine.engine.loading import load_model
from cascade_engine.errors import CheckpointError
from cascade_engine.models import llama
from cascade_engine.models.checkpoint import Checkpoint
from cascade_engine.ops import CpuBackend, ReferenceOps
from tests.models.support import random_llama
from tests.ops.support import assert_same_bits


def our_logits(directory: Path, token_ids: list[int], dtype: str, isa: str = "") -> torch.Tensor:
    engine = Engine.load(directory, dtype=dtype, max_rows=1)
    level = engine.neural[0]
    level.rows.write(0, token_ids)
    return level.score(0, len(token_ids), len(token_ids))


def worst_allowed(naive: torch.Tensor, exact: torch.Tensor) -> float:
    """Twice the largest error of a naive implementation in the same dtype, and never less than a
    few units in the last place of the largest value."""
    floor = 4 * torch.finfo(torch.float32).eps * exact.abs().max()
    return max(2 * (naive - exact).abs().max().item(), floor.item())


@pytest.mark.parametrize("seed", range(30))
def test_random_configurations(seed: int, tmp_path: Path) -> None:
    model = random_llama(tmp_path, seed)
    ids = torch.randint(0, model.config.vocab_size, (1, 150))
    with torch.no_grad():
        naive = model(ids).logits[0].double()
        exact = model.double()(ids).logits[0]
    ours = our_logits(tmp_path, ids[0].tolist(), "float32").double()
    assert (ours - exact).abs().max() <= worst_allowed(naive, exact)

    prompt = ids[0, :5].tolist()
    engine = Engine.load(tmp_path, dtype="float32", policy=PlainDecoding(), max_rows=1)
    params = SamplingParams(max_tokens=40, ignore_eos=True)
    tokens = engine.generate(prompt, params)[0].token_ids
    allowed = worst_allowed(naive, exact)
    assert_greedy(model, prompt, tokens, allowed)


def assert_greedy(
    model: torch.nn.Module, prompt: list[int], tokens: list[int], tolerance: float
) -> None:
    """Each token is the model's best, or within `tolerance` of it: then either choice is right."""
    row = torch.tensor([prompt + tokens])
    with torch.no_grad():
        logits = model(row).logits[0, len(prompt) - 1 : -1]
    chosen = logits.gather(1, torch.tensor(tokens)[:, None])[:, 0]
    assert (logits.max(-1).values - chosen).max() <= tolerance


@pytest.mark.parametrize("seed", range(6))
def test_bfloat16(seed: int, tmp_path: Path) -> None:
    model = random_llama(tmp_path, seed).bfloat16()
    model.save_pretrained(tmp_path)
    ids = torch.randint(0, model.config.vocab_size, (1, 100))
    with torch.no_grad():
        naive = model(ids).logits[0].double()
        exact = model.double()(ids).logits[0]
    ours = our_logits(tmp_path, ids[0].tolist(), "auto").double()
    assert (ours - exact).abs().max() <= worst_allowed(naive, exact)


@pytest.mark.parametrize("seed", range(4))
def test_reference_backend_agrees_with_transformers(seed: int, tmp_path: Path) -> None:
    model = random_llama(tmp_path, seed).double()
    token_ids = torch.randint(0, model.config.vocab_size, (60,)).tolist()
    weights = load_model(tmp_path, CpuBackend(1), torch.float32)
    ops = ReferenceOps(token_ids)
    config = weights.config
    caches = ops.caches(config.num_layers, config.num_kv_heads, config.head_dim)
    logits = llama.forward(ops, weights, caches)
    with torch.no_grad():
        exact = model(torch.tensor([token_ids])).logits[0]
    assert (logits - exact).abs().max() < 1e-5 * exact.abs().max()


@pytest.mark.parametrize("seed", range(8))
def test_int8(seed: int, tmp_path: Path) -> None:
    """As the model with the matrices that int8 stands for: transformers in bfloat16 is the naive
    implementation. Breaks when stacked rows take each other's scale, or a tied table another's."""
    model = random_llama(tmp_path, seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            table = name.endswith("embed_tokens.weight") and not model.config.tie_word_embeddings
            if parameter.dim() == 2 and not table:
                scale = parameter.abs().amax(1, keepdim=True) / 127
                parameter.copy_((parameter / scale).round() * scale)
    ids = torch.randint(0, model.config.vocab_size, (1, 100))
    with torch.no_grad():
        exact = model.double()(ids).logits[0]
        naive = model.bfloat16()(ids).logits[0].double()
    ours = our_logits(tmp_path, ids[0].tolist(), "int8").double()
    assert (ours - exact).abs().max() <= worst_allowed(naive, exact)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_a_checkpoint_read_in_pieces(
    dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Large tensors are packed a few rows at a time: breaks when a piece lands on another's rows or
    scales."""
    random_llama(tmp_path, 3)
    whole = load_model(tmp_path, CpuBackend(1), dtype)
    slices = Checkpoint.slices
    monkeypatch.setattr(Checkpoint, "slices", lambda self, name: slices(self, name, 5000))
    pieces = load_model(tmp_path, CpuBackend(1), dtype)
    for ours, theirs in zip(llama.tensors_of(pieces), llama.tensors_of(whole), strict=True):
        assert_same_bits(ours, theirs)


def test_int8_names_the_tensor_it_cannot_hold(tmp_path: Path) -> None:
    model = random_llama(tmp_path, 0)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[3, 2] = torch.inf
    model.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"layers\.0\.mlp\.up_proj\.weight: holds inf"):
        Engine.load(tmp_path, dtype="int8", max_rows=1)


def test_float16_becomes_float32_and_says_so(tmp_path: Path) -> None:
    random_llama(tmp_path, 0).half().save_pretrained(tmp_path)
    engine = Engine.load(tmp_path, max_rows=1)
    assert "float32 (checkpoint: float16)" in engine.report.lines[0]
    assert engine.neural[0].weights.dtype == torch.float32
