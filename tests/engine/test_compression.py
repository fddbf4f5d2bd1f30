"""Engines whose weights are compressed: the tokens of the weights as they are, in less memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cascade_engine import Engine, FixedCascade, SamplingParams
from cascade_engine.errors import RequestError
from cascade_engine.ops import CpuBackend, cpu
from tests.models.support import random_llama, random_t5

BF16: dict[str, Any] = {"dtype": "bfloat16", "threads": 1}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tied head is also the embedding table; T5's own head is apart from it."""
    root = tmp_path_factory.mktemp("models")
    sizes = {"vocab_size": 301, "hidden_size": 64, "intermediate_size": 100}
    random_llama(root / "tied", 1, **sizes, tie_word_embeddings=True)
    random_llama(root / "untied", 2, **sizes, tie_word_embeddings=False)
    random_t5(root / "t5", 3, d_model=64, vocab_size=301)
    return {path.name: path for path in root.iterdir()}


@pytest.mark.parametrize("name", ["tied", "untied", "t5"])
def test_the_same_tokens_in_less_memory(models: dict[str, Path], name: str) -> None:
    """Greedy, sampled, drafted. Breaks when a matrix is not compressed, or another is."""
    found, sizes = [], []
    drafts, k_matrix = ([], [[4]]) if name == "t5" else (["self:1"], [[3, 4], [0, 4]])
    for compress in (False, True):
        engine = Engine.load(models[name], drafts, compress_weights=compress, **BF16)
        sizes.append(engine.report.weight_bytes)
        assert ("compressed bfloat16" in engine.report.lines[0]) == compress
        engine.set_policy(FixedCascade(k_matrix))
        params = [SamplingParams(max_tokens=40, seed=5, temperature=t) for t in (0.0, 1.0)]
        prompts = [list(range(3, 60)), [7, 8, 9] * 5]
        found.append([r.token_ids for r in engine.generate(prompts, params)])
    assert found[0] == found[1]
    assert all(len(tokens) > 10 for tokens in found[0])
    # Embeddings apart from the head, norms and the bias tables of T5 stay as they are.
    assert sizes[1] < (0.8 if name == "tied" else 0.9) * sizes[0]


def test_automatic(models: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks when what fits the caches is compressed, or what has another dtype."""

    def compressed(**options: Any) -> bool:
        engine = Engine.load(models["tied"], threads=1, **options)
        return "compressed" in engine.report.lines[0]

    assert not compressed(dtype="bfloat16")
    monkeypatch.setattr(cpu, "last_level_cache", lambda: 1000)
    gains = CpuBackend(1).gains_by_compression(10**6)
    assert compressed(dtype="bfloat16") == gains
    assert not compressed(dtype="float32")
    assert not compressed(dtype="int8")
    assert not compressed(dtype="bfloat16", compress_weights=False)


def test_refusals(models: dict[str, Path]) -> None:
    wrong: Any = "yes"
    with pytest.raises(RequestError, match="must be 'auto', True or False, got 'yes'"):
        Engine.load(models["tied"], compress_weights=wrong)
    with pytest.raises(RequestError, match="got dtype='int8' on 'cpu': leave it out"):
        Engine.load(models["tied"], dtype="int8", compress_weights=True)
    with pytest.raises(RequestError, match="tied is loaded as float32: pass dtype='bfloat16'"):
        Engine.load(models["tied"], compress_weights=True)
