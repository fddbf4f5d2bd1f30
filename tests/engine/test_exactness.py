"""Promise 1: with any cascade, decoding returns the very tokens that plain decoding returns."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from cascade_engine import (
    AutoCascade,
    Engine,
    FixedCascade,
    PlainDecoding,
    SamplingParams,
    build_info,
)
from cascade_engine.levels import NeuralLevel, TokenRows, neural
from cascade_engine.ops import CpuBackend
from tests.data import data_path
from tests.models.support import random_llama
from tests.ops.support import assert_same_bits, cached

PROMPTS = [
    "Once upon a time, there was a little girl named Lily.",
    "Tom and Sam went to the park. They saw a big dog.",
    "One day, a cat",
    "The sun was hot and the sky was blue. A bird sang in the tree. " * 4,
]


@pytest.fixture(scope="module")
def drafters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Directories by name; all share the 512 pieces of stories260k."""
    random_weights = tmp_path_factory.mktemp("random")
    random_llama(random_weights, 1, vocab_size=512, tie_word_embeddings=True)
    short = tmp_path_factory.mktemp("short")
    random_llama(short, 2, vocab_size=512, max_position_embeddings=64)
    return {
        "llama2xs": data_path("llama2xs"),
        "random": random_weights,
        "short context": short,
        "all-knowing": data_path("stories260k"),
    }


@dataclass(frozen=True)
class Case:
    drafts: tuple[str, ...]
    policy: FixedCascade | AutoCascade
    params: list[SamplingParams]
    prompts: list[str]
    dtype: str
    isa: str
    threads: int
    prefill: int
    padding: str | None


def random_case(seed: int) -> Case:
    rng = random.Random(seed)
    count = rng.choice([0, 1, 1, 2, 3])
    names = ["llama2xs", "random", "short context", "all-knowing"]
    n = count + 1
    k = [[rng.choice([0, 1, 3, 8]) if j >= i else 0 for j in range(n)] for i in range(n)]
    k[-1][-1] = rng.choice([1, 4, 10])
    rows = rng.choice([1, 1, 3])
    return Case(
        drafts=tuple(rng.choice(names) for _ in range(count)),
        policy=random_policy(rng, k),
        params=[random_params(rng) for _ in range(rows)],
        prompts=[rng.choice(PROMPTS) for _ in range(rows)],
        dtype=rng.choice(["float32", "bfloat16", "int8"]),
        isa=rng.choice(build_info()["cpu_supported"]),
        threads=rng.choice([1, 2]),
        prefill=rng.choice([3, 16, 50, 512]),
        padding=rng.choice([None, None, None, "left"]),
    )


def random_policy(rng: random.Random, k_matrix: list[list[int]]) -> FixedCascade | AutoCascade:
    """A third finds its own setting; of the others half are with trees, of the target alone or of
    drafting levels too."""
    if rng.random() < 0.33:
        return AutoCascade(cache=None, trees=rng.random() < 0.8)
    lenience = rng.choice([1.0, 1.0, 2.0, 5.0])
    least = rng.choice([0.0, 0.0, 0.3, 0.7])
    if rng.random() < 0.5:
        return FixedCascade(k_matrix, lenience, min_confidence=least)
    tree = [rng.choice([1, 5, 16, 32, 64]), *(rng.choice([0, 4, 20]) for _ in k_matrix[1:])]
    return FixedCascade(k_matrix, lenience, tree, rng.choice([0, 1, 3]), least)


def random_params(rng: random.Random) -> SamplingParams:
    return SamplingParams(
        max_tokens=rng.randint(1, 60),
        temperature=rng.choice([0.0, 0.0, 0.7, 1.0, 1.5]),
        top_k=rng.choice([0, 0, 5, 40]),
        top_p=rng.choice([1.0, 1.0, 0.9, 0.5]),
        seed=rng.randrange(2**64),
        ignore_eos=rng.random() < 0.5,
    )


@pytest.mark.parametrize("seed", range(120))
def test_cascade_equals_plain(
    seed: int, drafters: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    case = random_case(seed)
    monkeypatch.setenv("CASCADE_CPU", case.isa)
    target = data_path("stories260k")
    plain = Engine.load(target, dtype=case.dtype, policy=PlainDecoding(), threads=1)
    expected = [
        plain.generate(prompt, params)[0].token_ids
        for prompt, params in zip(case.prompts, case.params, strict=True)
    ]
    monkeypatch.setattr(neural, "PREFILL_TOKENS", case.prefill)
    engine = Engine.load(
        target,
        [drafters[name] for name in case.drafts],
        dtype=case.dtype,
        policy=case.policy,
        threads=case.threads,
        padding=case.padding,
    )
    results = engine.generate(case.prompts, case.params)
    assert [result.token_ids for result in results] == expected
    engine.check_integrity()
    engine.clear_cache()
    engine.check_integrity()
    for result in results:
        levels = result.stats.levels
        assert sum(level.accepted for level in levels) == len(result.token_ids)
        assert all(level.accepted <= level.drafted for level in levels)


def test_an_all_knowing_draft_saves_passes(drafters: dict[str, Path]) -> None:
    """The cascade is at work in these tests: it is not plain decoding under another name."""
    policy = FixedCascade([[7, 0], [0, 0]])
    engine = Engine.load(data_path("stories260k"), [drafters["all-knowing"]], policy=policy)
    for temperature in (0.0, 1.0):
        params = SamplingParams(max_tokens=81, temperature=temperature, seed=5, ignore_eos=True)
        stats = engine.generate(PROMPTS[0], params)[0].stats
        assert stats.target_calls == 11  # one for the prompt, then 8 tokens each


@pytest.mark.parametrize("k_matrix", [[[4, 3], [0, 5]], [[4, 0], [0, 0]]])
def test_a_draft_of_nan_costs_nothing_but_its_drafts(
    tmp_path: Path, k_matrix: list[list[int]]
) -> None:
    model = random_llama(tmp_path, 1, vocab_size=512, tie_word_embeddings=False)
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    model.save_pretrained(tmp_path)
    target = data_path("stories260k")
    params = SamplingParams(max_tokens=50, temperature=0.8, seed=9, ignore_eos=True)
    expected = Engine.load(target, policy=PlainDecoding()).generate(PROMPTS, params)
    engine = Engine.load(target, [tmp_path], policy=FixedCascade(k_matrix))
    results = engine.generate(PROMPTS, params)
    assert [r.token_ids for r in results] == [r.token_ids for r in expected]
    engine.check_integrity()


def test_lenience_lets_drafting_levels_keep_more(drafters: dict[str, Path]) -> None:
    """With lenience a drafting level keeps proposals it would not have made itself."""
    kept = {}
    for lenience in (1.0, 50.0):
        policy = FixedCascade([[6, 0], [0, 10]], lenience)
        engine = Engine.load(data_path("stories260k"), [drafters["llama2xs"]], policy=policy)
        stats = engine.generate(PROMPTS[3], SamplingParams(max_tokens=100))[0].stats
        kept[lenience] = stats.levels[1].calls
    assert kept[50.0] < kept[1.0]


def test_the_answer_ends_at_the_context(drafters: dict[str, Path]) -> None:
    for policy in (PlainDecoding(), FixedCascade([[10]])):
        engine = Engine.load(data_path("stories260k"), policy=policy, max_context=40)
        params = SamplingParams(max_tokens=1000, ignore_eos=True)
        result = engine.generate(PROMPTS[0], params)[0]
        assert result.finish_reason == "length"
        assert len(result.prompt_token_ids) + len(result.token_ids) == 40


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_every_cache_holds_the_row(drafters: dict[str, Path], temperature: float) -> None:
    """After each step the keys and values of all levels are those of the row's tokens. Breaks when
    a path that left the row's own drafts leaves another level with the tokens it replaced."""
    engine = Engine.load(
        data_path("stories260k"),
        [drafters["llama2xs"], drafters["random"]],
        policy=FixedCascade([[4, 0, 0], [0, 2, 0], [0, 0, 3]], tree=(40, 12), siblings=4),
        threads=1,
        max_rows=2,
        reuse_cache=False,
    )
    params = SamplingParams(max_tokens=40, temperature=temperature, seed=1, ignore_eos=True)
    for prompt in PROMPTS[:2]:
        engine.add_request(prompt, params)
    replaced = 0
    while engine.has_work():
        engine.step()
        for row in engine._cycle.roster.slots.running:
            replaced += sum(level == 1 for level in row.sources)
            for level in engine.neural:
                length = level.pages.length[row.slot]
                kept = cache_of(level, row.slot, length)
                tokens = level.rows.read(row.slot, 0, row.length)
                fresh = NeuralLevel(
                    "", level.weights, CpuBackend(1), TokenRows(1, 512), 256, 256, level.vocab_size
                )
                fresh.rows.write(0, tokens)
                fresh.prefill(0, length)
                assert_same_bits(kept, cache_of(fresh, 0, length), level.name)
    assert replaced


def cache_of(level: NeuralLevel, slot: int, length: int) -> torch.Tensor:
    return cached(level.storage.data, level.pages.block_table[slot], length, level.storage.kv_heads)


def test_trees_save_passes(drafters: dict[str, Path]) -> None:
    """They are at work in these tests, each source of branches by itself."""
    target = data_path("stories260k")
    params = SamplingParams(max_tokens=100, ignore_eos=True)

    def calls(drafts: list[Path], policy: FixedCascade, params: SamplingParams) -> int:
        engine = Engine.load(target, drafts, policy=policy)
        return sum(engine.generate(p, params)[0].stats.target_calls for p in PROMPTS)

    chain = calls([], FixedCascade([[10]]), params)
    tree = calls([], FixedCascade([[10]], tree=32), params)
    assert tree < chain
    sampled = SamplingParams(max_tokens=100, temperature=1.0, seed=3, ignore_eos=True)
    for each in (params, sampled):
        drafts, k_matrix = [drafters["llama2xs"]], [[4, 0], [0, 0]]
        without = calls(drafts, FixedCascade(k_matrix, tree=5), each)
        siblings = calls(drafts, FixedCascade(k_matrix, tree=24, siblings=3), each)
        assert siblings < 0.95 * without


def test_trees_reach_the_end_of_the_context_and_of_the_cache(drafters: dict[str, Path]) -> None:
    """The last tokens of a full context, in a cache that has no page to spare."""
    target = data_path("stories260k")
    for context in (31, 32, 33, 48):
        params = SamplingParams(max_tokens=1000, ignore_eos=True)
        plain = Engine.load(target, policy=PlainDecoding(), max_context=context)
        expected = plain.generate(PROMPTS[0], params)[0]
        policy = FixedCascade([[4, 0], [0, 4]], tree=(64, 20), siblings=3)
        engine = Engine.load(
            target, [drafters["all-knowing"]], policy=policy, max_context=context, max_rows=1
        )
        assert engine.neural[0].pages.pages == -(-context // 16)
        result = engine.generate(PROMPTS[0], params)[0]
        assert result.token_ids == expected.token_ids
        assert result.finish_reason == "length"
        engine.check_integrity()


def test_each_token_tells_who_drafted_it(drafters: dict[str, Path]) -> None:
    """An all-knowing draft's runners-up are never needed; its own tokens are its own."""
    policy = FixedCascade([[7, 0], [0, 0]], tree=20, siblings=1)
    engine = Engine.load(data_path("stories260k"), [drafters["all-knowing"]], policy=policy)
    result = engine.generate(PROMPTS[0], SamplingParams(max_tokens=81, ignore_eos=True))[0]
    levels = result.stats.levels
    assert [result.sources.count(level) for level in range(3)] == [each.accepted for each in levels]
    assert levels[1].accepted > 60
    stats = engine.stats()["levels"]
    assert sum(stats[1]["accepted"]) >= levels[1].accepted
    assert all(sum(each["accepted"]) <= sum(each["drafted"]) for each in stats)
