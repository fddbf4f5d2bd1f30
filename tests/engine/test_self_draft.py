"""Drafts "self:N": the target's first layers with its weights and its cache."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from cascade_engine import Engine, FixedCascade, PlainDecoding, SamplingParams
from cascade_engine.cache import pages_for
from cascade_engine.errors import RequestError
from cascade_engine.levels import NeuralLevel, TokenRows
from cascade_engine.models.llama import leading_layers
from cascade_engine.ops import CpuBackend
from tests.levels.test_neural import review
from tests.models.support import random_llama, random_t5
from tests.ops.support import F32, assert_same_bits, random_weights

VOCAB, LAYERS = 97, 4
DRAFTS = [["self:2"], ["self:3", "self:1"], ["draft", "self:2"], ["self:1", "draft"]]
SHAPE = {"num_key_value_heads": 1, "num_attention_heads": 2, "head_dim": 16}
TOKEN_BYTES = LAYERS * 2 * 16 * 4


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    target, draft = tmp_path_factory.mktemp("target"), tmp_path_factory.mktemp("draft")
    sizes: dict[str, Any] = {"vocab_size": VOCAB, "max_position_embeddings": 200, **SHAPE}
    model = random_llama(target, 1, num_hidden_layers=LAYERS, **sizes)
    random_llama(draft, 2, num_hidden_layers=LAYERS, **sizes)
    knowing = tmp_path_factory.mktemp("knowing")
    with torch.no_grad():  # behind its second layer it adds nothing
        for layer in model.model.layers[2:]:
            for matrix in (layer.self_attn.o_proj, layer.mlp.down_proj):
                for parameter in matrix.parameters():
                    parameter.zero_()
    model.save_pretrained(knowing)
    return {"target": target, "draft": draft, "knowing": knowing}


def random_policy(rng: random.Random, levels: int) -> FixedCascade:
    k = [[rng.choice([0, 1, 3, 6]) if j >= i else 0 for j in range(levels)] for i in range(levels)]
    k[-1][-1] = rng.choice([1, 4])
    lenience = rng.choice([1.0, 3.0])
    if rng.random() < 0.5:
        return FixedCascade(k, lenience)
    tree = [rng.choice([5, 16, 40]), *(rng.choice([0, 4, 20]) for _ in k[1:])]
    return FixedCascade(k, lenience, tree, rng.choice([0, 2]))


@pytest.mark.parametrize("seed", range(20))
def test_tokens_are_those_of_plain_decoding(seed: int, models: dict[str, Path]) -> None:
    """Alone, beside each other and beside another draft, with statistics below; several samples,
    forks, prefixes that are shared, rows that give way, every form of batch. Breaks when a page is
    let go of that a draft is ahead in, when a draft writes into a page that another row reads, or
    believes a rejected token's keys."""
    rng = random.Random(seed)
    drafts = rng.choice(DRAFTS)
    target = models[rng.choice(["target", "knowing"])]
    dtype = rng.choice(["float32", "bfloat16", "int8"])
    common = [rng.randrange(3, VOCAB) for _ in range(rng.choice([0, 20, 33]))]
    prompts = [common + [rng.randrange(3, VOCAB) for _ in range(rng.randint(1, 9))] for _ in "abc"]
    params = [
        SamplingParams(
            max_tokens=rng.randint(20, 70),
            temperature=t,
            n=n,
            seed=rng.randrange(99),
            ignore_eos=True,
        )
        for t, n in rng.choices([(0.0, 1), (0.9, 1), (0.9, 2)], k=3)
    ]
    plain = Engine.load(target, policy=PlainDecoding(), dtype=dtype)
    expected = [g.token_ids for g in plain.generate(prompts, params)]
    models_in_cache = 2 if "draft" in drafts else 1
    item = 4 if dtype == "float32" else 2
    tokens = rng.choice([120, 176, 1000])
    engine = Engine.load(
        target,
        [models.get(name, name) for name in drafts],
        policy=random_policy(rng, len(drafts) + 1),
        dtype=dtype,
        max_rows=4,
        kv_cache_bytes=tokens * models_in_cache * TOKEN_BYTES * item // 4,
        reuse_cache=rng.random() < 0.7,
        padding=rng.choice([None, "left"]),
        prefill_tokens=rng.choice([7, 512]),
    )
    for _ in range(2):
        for prompt, each in zip(prompts, params, strict=True):
            engine.add_request(prompt, each)
        while engine.has_work():
            engine.step()
            engine.check_integrity()
        assert [g.token_ids for g in engine.generate(prompts, params)] == expected
        engine.set_policy(random_policy(rng, len(drafts) + 1))
    engine.clear_cache()
    table = engine.neural[0].table
    assert table.free_pages == table.pages


def test_rows_gave_way_and_pages_were_shared_in_those_cases(models: dict[str, Path]) -> None:
    """Guards the test above."""
    engine = Engine.load(
        models["knowing"],
        ["self:2"],
        policy=FixedCascade([[6, 0], [0, 0]]),
        max_rows=4,
        kv_cache_bytes=112 * TOKEN_BYTES,
    )
    params = SamplingParams(max_tokens=70, temperature=0.9, n=3, ignore_eos=True)
    results = engine.generate([5, 6, 7], params)
    assert engine.stats()["requests"]["preempted"] > 0
    assert engine.stats()["levels"][1]["passes"] > 0
    assert sum(result.stats.levels[1].accepted for result in results) > 100


def test_forks_go_their_own_way(models: dict[str, Path]) -> None:
    outputs = []
    for drafts, policy in (([], PlainDecoding()), (["self:2"], FixedCascade([[4, 0], [0, 0]]))):
        engine = Engine.load(models["target"], drafts, policy=policy)
        params = SamplingParams(max_tokens=40, temperature=0.0, ignore_eos=True, n=1)
        engine.add_request([1, 2, 3], params, "parent")
        tokens: dict[int, list[int]] = {0: []}
        while engine.has_work():
            for out in engine.step():
                tokens.setdefault(out.index, []).extend(piece.token_id for piece in out.pieces)
            if len(tokens) == 1 and len(tokens[0]) > 8:
                begin = len(tokens[0])
                for i in engine.fork("parent", 2):
                    tokens[i] = tokens[0][:begin]
            engine.check_integrity()
        outputs.append(tokens)
    assert outputs[0] == outputs[1]
    assert outputs[1][0] == outputs[1][1] == outputs[1][2], "greedy"


def test_a_target_that_ends_early_is_drafted_whole(models: dict[str, Path]) -> None:
    """Its first two layers say what it says: every draft stays, a pass gives k + 1 tokens."""
    params = SamplingParams(max_tokens=71, temperature=0.8, seed=3, ignore_eos=True)
    plain = Engine.load(models["knowing"], policy=PlainDecoding())
    engine = Engine.load(models["knowing"], ["self:2"], policy=FixedCascade([[6, 0], [0, 0]]))
    result = engine.generate([1, 2, 3], params)[0]
    assert result.token_ids == plain.generate([1, 2, 3], params)[0].token_ids
    assert result.stats.target_calls == 11  # one for the prompt, then 7 tokens each
    assert engine.level_names == [models["knowing"].name, "self:2", "max-gram"]


def test_it_takes_no_memory(models: dict[str, Path]) -> None:
    alone = Engine.load(models["target"])
    both = Engine.load(models["target"], ["self:3", "self:1"])
    assert both.report.weight_bytes == alone.report.weight_bytes
    assert both.report.cache_bytes == alone.report.cache_bytes
    target, *drafts = both.neural
    for draft in drafts:
        assert draft.storage is target.storage
        assert draft.weights.head is target.weights.head  # type: ignore[union-attr]
    assert target.table.pages == alone.neural[0].table.pages
    assert list(both.stats()["pages"]) == [target.name]
    assert any("self:3" in line and "no memory" in line for line in both.report.lines)


def test_its_verdicts_are_those_of_a_model_of_so_many_layers() -> None:
    """At any time, whatever its owner has cached: bits of a level with a cache of its own."""
    weights = random_weights(2, F32, num_layers=3)
    rows, backend = TokenRows(2, 160), CpuBackend(1)
    owner = NeuralLevel("target", weights, backend, rows, 160, 320, 130)
    sizes = 160, 320, 130
    first = leading_layers(weights, 2)
    draft = NeuralLevel("self:2", first, backend, rows, *sizes, owner=owner)
    oracle = NeuralLevel("oracle", first, CpuBackend(1), TokenRows(1, 160), *sizes)
    rng = random.Random(1)
    row = [rng.randrange(130) for _ in range(30)]
    for _ in range(25):
        if len(row) > 140 or rng.random() < 0.3:
            row = row[: rng.randint(20, len(row))]
            for level in (owner, draft):
                level.truncate(0, len(row) - 1)
        rows.write(0, row)
        if rng.random() < 0.3:  # the draft was not asked for long
            draft.truncate(0, 5)
        if rng.random() < 0.4:  # the owner reads on
            tokens = rng.randint(1, len(row) - 1)
            owner.prefill(0, tokens)
        drafted = row + [rng.randrange(130) for _ in range(rng.randint(0, 6))]
        oracle.truncate(0, 0)
        oracle.rows.write(0, drafted)
        expected = oracle.score(0, len(drafted), 1)
        start = draft.pages.length[0]
        assert start >= owner.pages.length[0], "it need not read what its owner has read"
        draft.rows.write(0, drafted)
        assert start <= len(row) - 1
        assert_same_bits(draft.score(0, len(drafted), 1), expected)
        draft.truncate(0, len(row) - 1)
        kept, token = review(draft, 0, drafted, len(row))
        row = [*drafted[: len(row) + kept], token]
        cached = draft.pages.length[0]
        assert owner.pages.length[0] <= cached == len(row) - 1
        assert owner.table.held(0) == pages_for(cached), "no page is kept for what was rejected"
        owner.table.check_integrity()


@pytest.mark.parametrize("name", ["self:0", "self:4", "self:-1", "self:", "self:two", "self:9999"])
def test_layers_out_of_range_are_refused(name: str, models: dict[str, Path]) -> None:
    with pytest.raises(RequestError, match=rf"draft '{name}': N of 'self:N' must be in 1..3"):
        Engine.load(models["target"], [name])


def test_a_t5_is_refused(tmp_path: Path) -> None:
    random_t5(tmp_path, 1)
    with pytest.raises(RequestError, match=r"draft 'self:1': .* is an encoder-decoder T5"):
        Engine.load(tmp_path, ["self:1"])
