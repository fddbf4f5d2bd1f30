"""Log-probabilities against transformers; vocabularies that differ by padding alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    LlamaForCausalLM,
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from cascade_engine import Engine, FixedCascade, PlainDecoding, SamplingParams
from cascade_engine.errors import VocabularyMismatch
from tests.data import data_path

PROMPT = "Once upon a time, there was a little girl named Lily."
TOLERANCE = 2e-4


@pytest.mark.parametrize("processed", [False, True])
def test_logprobs_are_those_of_transformers(processed: bool) -> None:
    engine = Engine.load(
        data_path("stories260k"), [data_path("llama2xs")], policy=FixedCascade([[4, 4], [0, 6]])
    )
    params = SamplingParams(
        max_tokens=40,
        temperature=0.8,
        top_k=50,
        top_p=0.95,
        min_p=0.01,
        repetition_penalty=1.1,
        seed=4,
        logprobs=5,
        processed_logprobs=processed,
        ignore_eos=True,
    )
    result = engine.generate(PROMPT, params)[0]
    assert result.logprobs is not None
    model = LlamaForCausalLM.from_pretrained(data_path("stories260k"), dtype=torch.float32).eval()
    row = torch.tensor([result.prompt_token_ids + result.token_ids])
    with torch.no_grad():
        logits = model(row).logits[0]
    chain = LogitsProcessorList(
        [
            RepetitionPenaltyLogitsProcessor(1.1),
            TemperatureLogitsWarper(0.8),
            TopKLogitsWarper(50),
            TopPLogitsWarper(0.95),
            MinPLogitsWarper(0.01),
        ]
    )
    for i, (token, found) in enumerate(zip(result.token_ids, result.logprobs, strict=True)):
        position = len(result.prompt_token_ids) + i
        scores = logits[position - 1 : position].clone()
        if processed:
            scores = chain(row[:, :position], scores)
        expected = scores[0].log_softmax(-1)
        assert found.logprob == pytest.approx(expected[token].item(), abs=TOLERANCE)
        best = expected.topk(min(5, int((expected > -torch.inf).sum())))
        values = [value for _, value in found.top]
        assert values == pytest.approx(best.values.tolist(), abs=TOLERANCE)


def padded_copy(source: Path, target: Path, rows: int) -> Path:
    """The same model with `rows` embedding rows, the new ones never trained."""
    shutil.copytree(source, target)
    tensors = load_file(source / "model.safetensors")
    name = "model.embed_tokens.weight"
    extra = torch.randn(rows - len(tensors[name]), tensors[name].shape[1]) * 5
    tensors[name] = torch.cat([tensors[name], extra.to(tensors[name].dtype)])
    save_file(tensors, target / "model.safetensors", {"format": "pt"})
    config = json.loads((source / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**config, "vocab_size": rows}))
    return target


def test_padding_rows_make_no_difference(tmp_path: Path) -> None:
    small, large = data_path("llama2xs"), data_path("stories260k")
    params = SamplingParams(max_tokens=60, temperature=1.0, seed=2)
    expected = Engine.load(large, policy=PlainDecoding()).generate(PROMPT, params)[0].token_ids
    padded_draft = padded_copy(small, tmp_path / "draft", 576)
    padded_target = padded_copy(large, tmp_path / "target", 544)
    for target, draft in ((large, padded_draft), (padded_target, small)):
        engine = Engine.load(target, [draft], policy=FixedCascade([[4, 4], [0, 6]]))
        assert engine.generate(PROMPT, params)[0].token_ids == expected


def test_another_vocabulary_is_refused(tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(data_path("llama2xs"), other)
    shutil.copy(data_path("tokenizers", "llama", "tokenizer.model"), other / "tokenizer.model")
    with pytest.raises(VocabularyMismatch):
        Engine.load(data_path("stories260k"), [other])
