"""T5's two passes against transformers: the house tolerance, and greedy tokens."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import T5ForConditionalGeneration

from cascade_engine import Engine, PlainDecoding, SamplingParams
from cascade_engine.engine.loading import load_model
from cascade_engine.levels import EncoderDecoderLevel
from cascade_engine.models import t5
from cascade_engine.ops import CpuBackend, ReferenceOps
from tests.models.support import random_t5
from tests.models.test_llama import worst_allowed


class Given:
    """Token ids for a model, and what transformers makes of them."""

    def __init__(self, model: T5ForConditionalGeneration, source: int, decoded: int) -> None:
        vocab = model.config.vocab_size
        self.source = torch.randint(1, vocab, (1, source))
        self.decoded = torch.randint(1, vocab, (1, decoded))
        self.decoded[0, 0] = model.config.decoder_start_token_id
        self.row = self.source[0].tolist() + self.decoded[0].tolist()

    @torch.no_grad()
    def run(self, model: T5ForConditionalGeneration) -> tuple[torch.Tensor, torch.Tensor]:
        """The encoder's output `[source, hidden]` and the logits `[decoded, vocab]`, float64."""
        out = model(input_ids=self.source, decoder_input_ids=self.decoded)
        return out.encoder_last_hidden_state[0].double(), out.logits[0].double()


@pytest.mark.parametrize("seed", range(6))
def test_reference_backend_agrees_with_transformers(seed: int, tmp_path: Path) -> None:
    """Breaks when a bucket, a projection, the scale of the outputs or a norm is another one."""
    model = random_t5(tmp_path, seed).double()
    given = Given(model, 150, 140)
    weights = load_model(tmp_path, CpuBackend(1), torch.float32)
    assert isinstance(weights, t5.T5Weights)
    config = weights.config
    caches = list(ReferenceOps([]).caches(config.num_layers, config.num_kv_heads, config.head_dim))
    source = len(given.source[0])
    hidden = t5.encode(ReferenceOps(given.row[:source], source=source), weights, caches)
    logits = []
    for start, stop in ((source, source + 1), (source + 1, source + 90), (source + 90, None)):
        ops = ReferenceOps(given.row[start:stop], start, source=source)
        logits.append(t5.decode(ops, weights, caches))
    expected_hidden, expected = given.run(model)
    assert (hidden - expected_hidden).abs().max() < 1e-5 * expected_hidden.abs().max()
    assert (torch.cat(logits) - expected).abs().max() < 1e-5 * expected.abs().max()


def our_outputs(directory: Path, given: Given, dtype: str) -> tuple[torch.Tensor, torch.Tensor]:
    """What `Given.run` returns, from the engine's level."""
    engine = Engine.load(directory, dtype=dtype, max_rows=1)
    level = engine.neural[0]
    assert isinstance(level, EncoderDecoderLevel)
    source = len(given.source[0])
    level.rows.write(0, given.row, source)
    logits = level.score(0, len(given.row), len(given.row) - source)
    hidden = level.encoder_output()
    return hidden.double(), logits.double()


@pytest.mark.parametrize("seed", range(20))
def test_random_configurations(seed: int, tmp_path: Path) -> None:
    """Encoder, decoder and greedy tokens. Inputs of up to more than a chunk of 256, so that the
    decoder begins anywhere in a page and a chunk."""
    model = random_t5(tmp_path, seed)
    given = Given(model, [3, 16, 255, 270, 300][seed % 5], 40 if seed % 5 else 300)
    naive = given.run(model)
    exact = given.run(model.double())
    ours = our_outputs(tmp_path, given, "float32")
    for mine, theirs, right in zip(ours, naive, exact, strict=True):
        assert (mine - right).abs().max() <= worst_allowed(theirs, right)

    engine = Engine.load(tmp_path, dtype="float32", policy=PlainDecoding(), max_rows=1)
    prompt = given.source[0].tolist()
    params = SamplingParams(max_tokens=40, ignore_eos=True)
    result = engine.generate(prompt, params)[0]
    assert result.prompt_token_ids == prompt
    assert_greedy(model, given.source, result.token_ids, worst_allowed(naive[1], exact[1]))
    engine.check_integrity()


def assert_greedy(
    model: T5ForConditionalGeneration, source: torch.Tensor, tokens: list[int], tolerance: float
) -> None:
    """Each token is the model's best, or within `tolerance` of it: then either choice is right."""
    row = torch.tensor([[model.config.decoder_start_token_id, *tokens[:-1]]])
    with torch.no_grad():
        logits = model(input_ids=source, decoder_input_ids=row).logits[0]
    chosen = logits.gather(1, torch.tensor(tokens)[:, None])[:, 0]
    assert (logits.max(-1).values - chosen).max() <= tolerance


@pytest.mark.parametrize("seed", range(6))
def test_bfloat16(seed: int, tmp_path: Path) -> None:
    model = random_t5(tmp_path, seed).bfloat16()
    model.save_pretrained(tmp_path)
    given = Given(model, 100, 60)
    naive = given.run(model)
    exact = given.run(model.double())
    ours = our_outputs(tmp_path, given, "auto")
    for mine, theirs, right in zip(ours, naive, exact, strict=True):
        assert (mine - right).abs().max() <= worst_allowed(theirs, right)
