"""Encoder-decoders in the engine: promise 1, ragged encoders in a batch, refusals."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from transformers import T5ForConditionalGeneration

from cascade_engine import Engine, FixedCascade, PlainDecoding, SamplingParams, build_info
from cascade_engine.errors import CapacityError, ConfigError, VocabularyMismatch
from cascade_engine.levels import EncoderDecoderLevel, Proposal, neural
from tests.engine.t5_support import VOCAB, Counting, random_prompt, t5_models
from tests.engine.test_exactness import random_params, random_policy
from tests.models.support import random_llama, random_t5


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return t5_models(tmp_path_factory.mktemp("models"))


@dataclass(frozen=True)
class Case:
    target: str
    drafts: tuple[str, ...]
    policy: FixedCascade
    params: list[SamplingParams]
    prompts: list[list[int]]
    dtype: str
    isa: str
    threads: int
    prefill: int
    padding: str | None


def random_case(seed: int) -> Case:
    rng = random.Random(seed)
    target = rng.choice(["v1.0", "v1.1"])
    count = rng.choice([0, 1, 1, 2])
    k = [
        [rng.choice([0, 1, 3, 8]) if j >= i else 0 for j in range(count + 1)]
        for i in range(count + 1)
    ]
    k[-1][-1] = rng.choice([1, 4, 10])
    rows = rng.choice([1, 1, 3, 8])
    return Case(
        target=target,
        drafts=tuple(rng.choice([target, f"{target} near", "other"]) for _ in range(count)),
        policy=random_policy(rng, k),
        params=[random_params(rng) for _ in range(rows)],
        prompts=[random_prompt(rng) for _ in range(rows)],
        dtype=rng.choice(["float32", "bfloat16", "float32", "bfloat16", "int8"]),
        isa=rng.choice(build_info()["cpu_supported"]),
        threads=rng.choice([1, 2]),
        prefill=rng.choice([3, 16, 50, 512]),
        padding=rng.choice([None, None, None, "left"]),
    )


@pytest.mark.parametrize("seed", range(100))
def test_cascade_equals_plain(
    seed: int, models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Breaks when a rollback reaches into the source, a companion's source is read, a distance is
    taken by slot in a tree, or any bit depends on the batch."""
    case = random_case(seed)
    monkeypatch.setenv("CASCADE_CPU", case.isa)
    plain = Engine.load(
        models[case.target], dtype=case.dtype, policy=PlainDecoding(), threads=1, max_rows=1
    )
    expected = [
        plain.generate(prompt, params)[0].token_ids
        for prompt, params in zip(case.prompts, case.params, strict=True)
    ]
    monkeypatch.setattr(neural, "PREFILL_TOKENS", case.prefill)
    engine = Engine.load(
        models[case.target],
        [models[name] for name in case.drafts],
        dtype=case.dtype,
        policy=case.policy,
        threads=case.threads,
        padding=case.padding,
        prefill_tokens=case.prefill,
        max_rows=8,
    )
    results = engine.generate(case.prompts, case.params)
    assert [result.token_ids for result in results] == expected
    engine.check_integrity()
    assert all(level.table.available_pages == level.table.pages for level in engine.neural)


def test_a_cascade_is_at_work(models: dict[str, Path]) -> None:
    """A draft that is the target itself saves passes, from the first one on: that one reads the
    prompt and reviews drafts as well."""
    params = SamplingParams(max_tokens=80, temperature=1.0, seed=5, ignore_eos=True)
    policy = FixedCascade([[7, 0], [0, 0]])
    engine = Engine.load(models["v1.1"], [models["v1.1"]], policy=policy)
    assert engine.generate([5, 6, 7], params)[0].stats.target_calls == 10


def test_max_gram_searches_the_encoders_input(models: dict[str, Path]) -> None:
    """What follows the first token in the input is drafted behind it in the output."""
    engine = Engine.load(models["v1.0"], policy=FixedCascade([[4]]))
    source = list(range(1, VOCAB)) * 2  # each token is followed by the next one
    proposed: list[list[int]] = []
    level = engine.statistical
    propose = level.propose

    def noted(proposals: Sequence[Proposal]) -> list[int]:
        [count], [proposal] = propose(proposals), proposals
        last = proposal.length - 1
        proposed.append(level._rows.read(proposal.slot, last, last + 1 + count))
        return [count]

    level.propose = noted  # type: ignore[method-assign]
    engine.generate(source, SamplingParams(max_tokens=9, ignore_eos=True))
    assert proposed[0][0] == 0  # where the decoder begins, there is no token yet
    first = proposed[1][0]
    assert proposed[1] == [(first + i - 1) % (VOCAB - 1) + 1 for i in range(5)]


def test_prompts_that_begin_alike_share_nothing(models: dict[str, Path]) -> None:
    """An encoder looks both ways: what it leaves for a prefix belongs to one prompt alone. Breaks
    when a row starts from another one's cache."""
    common = list(range(1, 60))
    prompts = [[*common, *tail] for tail in ([70], [], [80, 81, 82], [0, 5])] + [common]
    params = SamplingParams(max_tokens=20, ignore_eos=True)
    alone = [
        Engine.load(models["v1.0"], policy=PlainDecoding()).generate(p, params)[0] for p in prompts
    ]
    engine = Engine.load(models["v1.0"], policy=PlainDecoding())
    for prompt, expected in zip(prompts, alone, strict=True):
        assert engine.generate(prompt, params)[0].token_ids == expected.token_ids
    together = engine.generate(prompts, params)
    assert [r.token_ids for r in together] == [r.token_ids for r in alone]


def test_a_source_is_told_from_an_answer(models: dict[str, Path]) -> None:
    """One row's input, start token and prefix are another one's input. Breaks when pages are found
    by their tokens alone."""
    rng = random.Random(6)
    tokens = [rng.randrange(1, VOCAB) for _ in range(48)]
    tokens[24] = 0  # the start token
    params = SamplingParams(max_tokens=20, ignore_eos=True)
    begun = replace(params, decoder_prefix=tokens[25:])
    expected = Engine.load(models["v1.0"]).generate(tokens, params)[0]
    engine = Engine.load(models["v1.0"])
    engine.generate(tokens[:24], begun)
    found = engine.generate(tokens, params)[0]
    assert found.token_ids == expected.token_ids
    assert found.stats.cached_tokens == 0


@pytest.mark.parametrize(("same", "cached"), [(0, 0), (8, 48)])
def test_equal_inputs_are_encoded_once(models: dict[str, Path], same: int, cached: int) -> None:
    """As far as whole pages reach: a source that is cached in part is of no use."""
    engine = Engine.load(models["v1.1"], policy=PlainDecoding())
    level, slots = engine.neural[0], []  # type: ignore[var-annotated]
    assert isinstance(level, EncoderDecoderLevel)
    level._encoder = Counting(level._encoder, slots)
    source = list(range(1, 40))
    params = SamplingParams(max_tokens=2 + 2 * same, ignore_eos=True)
    first = engine.generate(source, params)[0].token_ids
    prefix = [*first[:same], (first[same] + 1) % VOCAB]
    begun = replace(params, decoder_prefix=prefix)
    second = engine.generate(source, begun)[0]
    assert second.stats.cached_tokens == cached
    assert len(slots) == (1 if cached else 2)
    alone = Engine.load(models["v1.1"], policy=PlainDecoding(), reuse_cache=False)
    assert second.token_ids == alone.generate(source, begun)[0].token_ids
    engine.check_integrity()


def test_penalties_are_those_of_transformers(models: dict[str, Path]) -> None:
    """transformers penalises what the decoder has seen, its start token included, and not the
    encoder's input."""
    model = T5ForConditionalGeneration.from_pretrained(models["v1.1"]).eval()
    prompt = list(range(2, VOCAB))
    expected = model.generate(
        torch.tensor([prompt]),
        max_new_tokens=30,
        do_sample=False,
        repetition_penalty=3.0,
        eos_token_id=None,
    )[0, 1:].tolist()
    engine = Engine.load(models["v1.1"], [models["v1.1 near"]], dtype="float32")
    params = SamplingParams(max_tokens=30, repetition_penalty=3.0, ignore_eos=True)
    assert engine.generate(prompt, params)[0].token_ids == expected


def test_batches_of_transformers(models: dict[str, Path]) -> None:
    """Eight ragged inputs in one batch, padded and masked there, ragged here."""
    rng = random.Random(4)
    for name in ("v1.0", "v1.1"):
        model = T5ForConditionalGeneration.from_pretrained(models[name]).eval()
        prompts = [random_prompt(rng, 100) for _ in range(8)]
        longest = max(map(len, prompts))
        ids = torch.tensor([p + [0] * (longest - len(p)) for p in prompts])
        mask = torch.tensor([[1] * len(p) + [0] * (longest - len(p)) for p in prompts])
        expected = model.generate(
            ids, attention_mask=mask, max_new_tokens=30, do_sample=False, eos_token_id=None
        )[:, 1:].tolist()
        near = FixedCascade([[4, 0], [0, 5]])
        engine = Engine.load(models[name], [models[f"{name} near"]], dtype="float32", policy=near)
        params = SamplingParams(max_tokens=30, ignore_eos=True)
        assert [r.token_ids for r in engine.generate(prompts, params)] == expected


def test_what_does_not_go_together_is_refused(models: dict[str, Path], tmp_path: Path) -> None:
    random_llama(tmp_path / "llama", 1, vocab_size=VOCAB)
    words = "draft llama is a decoder-only LLaMA and target v1.0 an encoder-decoder T5: use a draft"
    with pytest.raises(ConfigError, match=words):
        Engine.load(models["v1.0"], [tmp_path / "llama"])
    with pytest.raises(ConfigError, match=r"draft v1.0 is an encoder-decoder T5 and target llama"):
        Engine.load(tmp_path / "llama", [models["v1.0"]])
    random_t5(tmp_path / "starts", 0, vocab_size=VOCAB, decoder_start_token_id=7)
    with pytest.raises(
        ConfigError, match=r"draft starts has decoder_start_token_id 7, target v1.0"
    ):
        Engine.load(models["v1.0"], [models["other"], tmp_path / "starts"])
    random_t5(tmp_path / "fewer", 0, vocab_size=VOCAB - 1)
    with pytest.raises(VocabularyMismatch, match=r"target has 150 tokens and draft 149"):
        Engine.load(models["v1.0"], [tmp_path / "fewer"])


def test_an_input_that_does_not_fit(models: dict[str, Path]) -> None:
    engine = Engine.load(models["v1.0"], max_context=50)
    engine.generate([5] * 48, SamplingParams(max_tokens=5))
    for length in (49, 80):
        words = (
            rf"encoder's input has {length} tokens.*in a row of 50.*shorten it or raise max_context"
        )
        with pytest.raises(CapacityError, match=words):
            engine.generate([5] * length)
    wide = Engine.load(models["v1.0"], max_context=3000, max_rows=1)
    assert wide.neural[0].context == 3000  # relative positions: no limit but the one asked for
    assert Engine.load(models["v1.0"], max_rows=1).neural[0].context == 1024
    assert len(wide.generate([5] * 1500, SamplingParams(max_tokens=3, ignore_eos=True))) == 1
    result = engine.generate([5] * 48, SamplingParams(max_tokens=5, ignore_eos=True))[0]
    assert (result.prompt_token_ids, result.stats.prompt_tokens) == ([5] * 48, 48)
    assert len(result.token_ids) == 1
    assert result.finish_reason == "length"
