"""A neural level drafting on its own leaves what reviewing token by token leaves: tokens,
probabilities, distributions, caches."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cascade_engine import _C, Engine, FixedCascade, PlainDecoding, SamplingParams
from cascade_engine.levels import DraftItem, NeuralLevel, Rejection, ReviewItem, TokenRows
from cascade_engine.levels import neural as neural_module
from cascade_engine.models.llama import LlamaWeights
from cascade_engine.ops import CpuBackend, Sampler
from cascade_engine.policy import Action, Draft, Review, RowState
from tests.models.support import random_llama
from tests.ops.support import BF16, F32, I8, assert_same_bits, random_weights

VOCAB, CAPACITY = 130, 200
GREEDY = Sampler(temperature=0.0)


def make_level(
    weights: LlamaWeights, tokens: int = 800, threads: int = 1, context: int = CAPACITY
) -> NeuralLevel:
    rows = TokenRows(4, CAPACITY, VOCAB)
    return NeuralLevel("level", weights, CpuBackend(threads), rows, context, tokens, VOCAB)


STOP_IDS, PROMPT = [3, 4, 5], 4


def random_sampler(
    rng: random.Random, rejection: bool, stop_ids: Sequence[int] = STOP_IDS
) -> Sampler:
    return Sampler(
        temperature=rng.choice([0.0, 0.7, 1.3]),
        top_k=rng.choice([0, 5]),
        top_p=rng.choice([1.0, 0.8]),
        min_p=rng.choice([0.0, 0.05]),
        repetition_penalty=rng.choice([1.0, 1.4]),
        presence_penalty=rng.choice([0.0, 0.5]),
        logit_bias=rng.choice([[], [(7, 3.0), (9, -2.0)]]),
        min_tokens=rng.choice([0, 6]),
        stop_ids=list(stop_ids),
        seed=rng.randrange(2**63),
        sample_index=rng.randrange(3),
        prompt_length=PROMPT,
        rejection=rejection,
    )


def by_reviews(level: NeuralLevel, items: list[DraftItem]) -> list[list[int]]:
    """The tokens of as many reviews of nothing, each row in passes of its own."""
    tokens = []
    for item in items:
        for drafted in range(item.tokens):
            end = item.length + drafted
            rejects = item.sampler.rejects
            rejection = Rejection(item.reviews + drafted, True, 0) if rejects else None
            level.review([ReviewItem(item.slot, end, end, item.sampler, rejection=rejection)], 1.0)
            level.truncate(item.slot, end)
            if ends(item.sampler, level.rows.read(item.slot, end, end + 1)[0], end):
                break
        tokens.append(level.rows.read(item.slot, 0, end + 1))
    return tokens


def ends(sampler: Sampler, token: int, position: int) -> bool:
    """Whether a row's drafts end with this token, because its request would."""
    blocked = position < PROMPT + sampler.params["min_tokens"]
    return token in STOP_IDS and not blocked and not sampler.rejects


@pytest.mark.parametrize("seed", range(12))
def test_the_loop_leaves_what_reviews_leave(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of all kinds together, against each row alone and token by token. Breaks when a row
    keeps drafting past its count, a number of a review or a position is off by one, or a row's
    lag is fed twice."""
    rng = random.Random(seed)
    monkeypatch.setattr(neural_module, "PREFILL_TOKENS", rng.choice([5, 256]))
    weights = random_weights(seed, rng.choice([F32, BF16, I8]))
    loop, single = make_level(weights, threads=rng.choice([1, 2])), make_level(weights)
    loop.left_padded = rng.random() < 0.3
    rejection = rng.random() < 0.4
    items = []
    for slot in rng.sample(range(4), rng.randint(1, 4)):
        row = [rng.randrange(VOCAB) for _ in range(rng.randint(1, 60))]
        cached = rng.randrange(len(row))
        for level in (loop, single):
            level.rows.write(slot, row)
            level.prefill(slot, cached)
        sampler = random_sampler(rng, rejection)
        items.append(DraftItem(slot, len(row), rng.randint(1, 20), sampler, rng.randrange(9)))
    counts, expected = loop.draft(items), by_reviews(single, items)
    for item, count, tokens in zip(items, counts, expected, strict=True):
        end = item.length + count
        assert end == len(tokens)
        assert loop.rows.read(item.slot, 0, end) == tokens
        assert loop.pages.length[item.slot] == end - 1
        probs = [level.rows.read_probs(item.slot, item.length, end) for level in (loop, single)]
        assert probs[0] == probs[1]
        if item.sampler.rejects:
            for position in range(item.length, end):
                law = [x.rows.distributions.read(item.slot, position) for x in (loop, single)]  # type: ignore[union-attr]
                assert law[0] == law[1] != []
        ours = [level.score(item.slot, end, 1) for level in (loop, single)]
        assert_same_bits(ours[0], ours[1], "logits behind the drafts")
    loop.pages.check_integrity()


@pytest.mark.parametrize("seed", range(8))
def test_a_row_stops_where_its_confidence_falls(seed: int) -> None:
    """Its tokens are the first of those without a limit, the last one the first with which the
    product of the probabilities is too low; nothing is written behind it, whoever goes on. Breaks
    when the token that ends a draft is left out, a row stops for another one's sake, or a stopped
    row is fed again."""
    rng = random.Random(seed)
    weights = random_weights(seed, F32)
    free, stopping = make_level(weights), make_level(weights)
    items, least = [], [0.0, 1e-4, 1e-9, 1.0]
    rng.shuffle(least)
    for slot in range(4):
        row = [rng.randrange(VOCAB) for _ in range(rng.randint(1, 30))]
        for level in (free, stopping):
            level.rows.write(slot, row)
            level.rows.tokens[slot, len(row) :] = -7
        sampler = random_sampler(rng, rejection=seed % 2 == 0, stop_ids=())
        items.append(DraftItem(slot, len(row), 12, sampler, 3))
    assert free.draft(items) == [12] * 4
    limited = [replace(item, min_confidence=c) for item, c in zip(items, least, strict=True)]
    counts = stopping.draft(limited)
    for item, count in zip(limited, counts, strict=True):
        begin, end = item.length, item.length + count
        probs = free.rows.read_probs(item.slot, begin, begin + 12)
        stops = (n for n in range(1, 12) if math.prod(probs[:n]) < item.min_confidence)
        assert count == next(stops, 12)
        assert stopping.rows.read(item.slot, 0, end) == free.rows.read(item.slot, 0, end)
        assert stopping.rows.read_probs(item.slot, begin, end) == probs[:count]
        assert set(stopping.rows.read(item.slot, end, CAPACITY)) == {-7}
        assert stopping.pages.length[item.slot] == end - 1
        if item.sampler.rejects:
            assert stopping.rows.distributions is not None
            assert stopping.rows.distributions.read(item.slot, end - 1)
            assert not stopping.rows.distributions.read(item.slot, end)
    assert counts[least.index(0.0)] == 12
    assert counts[least.index(1.0)] < 12
    stopping.pages.check_integrity()


def test_it_drafts_as_far_as_free_pages_and_context_reach() -> None:
    """Six pages: two rows hold two each, and the first to ask gets both of the others. Breaks when
    drafting takes more pages than there are, or none where some are free."""
    level = make_level(random_weights(1, F32), tokens=96, context=80)
    for slot in (0, 1):
        level.rows.write(slot, [slot + 1] * 30)
        level.prefill(slot, 29)
    items = [DraftItem(slot, 30, 50, GREEDY) for slot in (0, 1)]
    assert level.draft(items) == [35, 3]  # a row's last token takes no slot
    assert level.pages.length[:2] == [64, 32]
    level.pages.check_integrity()
    level.truncate(1, 0)
    assert level.draft([DraftItem(0, 65, 50, GREEDY)]) == [16]
    assert level.pages.length[0] == 80


def poisoned(weights: LlamaWeights, token: int) -> LlamaWeights:
    """Behind this token all logits are NaN."""
    level = make_level(weights)
    assert isinstance(level.weights.embedding, torch.Tensor)
    level.weights.embedding[token] = torch.nan
    return weights


def test_logits_that_are_not_numbers_end_the_loop() -> None:
    """What was drafted before them stays; asked again, it is an error, and the row as it was."""
    clean = make_level(random_weights(4, F32))
    clean.rows.write(0, [1, 2, 3])
    assert clean.draft([DraftItem(0, 3, 9, GREEDY)]) == [9]
    drafted = clean.rows.read(0, 3, 12)
    kept = next(i for i in range(1, 9) if drafted[i] not in (1, 2, 3, *drafted[:i])) + 1
    level = make_level(poisoned(random_weights(4, F32), drafted[kept - 1]))
    level.rows.write(0, [1, 2, 3])
    level.rows.write(1, [5, 6])
    assert level.draft([DraftItem(0, 3, 9, GREEDY), DraftItem(1, 2, 1, GREEDY)]) == [kept, 1]
    assert level.rows.read(0, 3, 3 + kept) == drafted[:kept]
    assert level.pages.length[:2] == [2 + kept, 2]
    with pytest.raises(ValueError, match=f"logits for position {3 + kept} are all NaN"):
        level.draft([DraftItem(0, 3 + kept, 2, GREEDY)])
    assert level.pages.length[0] == 2 + kept
    level.truncate(0, 2 + kept)
    level.pages.check_integrity()


def test_the_engine_drafts_with_one_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row without zeros goes through reviews, one of zeros through the loop, in the same steps
    and with the same tokens; a row whose request has functions to ask stays with reviews."""
    random_llama(tmp_path, 1, vocab_size=97, max_position_embeddings=128)
    engine = Engine.load(tmp_path, [tmp_path], max_rows=3)
    params = [
        SamplingParams(max_tokens=40, ignore_eos=True, temperature=0.8, seed=1),
        SamplingParams(max_tokens=31, ignore_eos=True, acceptance="rejection", seed=2),
        SamplingParams(max_tokens=20, ignore_eos=True, allowed_tokens=lambda ids: range(5, 90)),
    ]
    prompts: Any = [[1, 2, 3], [4, 5], [6]]
    calls: dict[str, list[int]] = {"draft": [], "review": []}
    draft = engine.neural[1]
    for name, noted in calls.items():
        original = getattr(draft, name)
        monkeypatch.setattr(
            draft,
            name,
            lambda items, *a, f=original, n=noted: (n.append(len(items)), f(items, *a))[1],
        )
    results = {}
    for policy in (PlainDecoding(), FixedCascade([[5, 0], [0, 0]])):
        engine.set_policy(policy)
        results[policy] = engine.generate(prompts, params)
        engine.check_integrity()
    plain, drafted = results.values()
    for i in (0, 2):
        assert drafted[i].token_ids == plain[i].token_ids
    assert max(calls["draft"]) == 2
    assert set(calls["review"]) == {1}
    for result, per_call in zip(drafted, (6, 6, 6), strict=True):
        calls_of = result.stats.levels
        assert result.stats.tokens_per_target_call > per_call - 1.5, (
            "it drafts what the target says"
        )
        assert calls_of[1].calls == calls_of[1].drafted
    passes = engine.stats()["levels"][1]
    assert passes["rows"] == sum(result.stats.levels[1].drafted for result in drafted)


class Eager(FixedCascade):
    """Asks the draft to go on behind tokens of the table that it has not judged."""

    def next_action(self, row: RowState) -> Action:
        if row.room <= 0 or row.length - row.frontier[0] > 6:
            return Review(0)
        if row.length == row.frontier[0] and not row.exhausted:
            return Draft(2, 2)
        return Draft(1, 3)


def test_tokens_behind_its_frontier_are_judged_first(tmp_path: Path) -> None:
    """A draft that the level would not have made ends there, as its review says."""
    random_llama(tmp_path, 1, vocab_size=97, max_position_embeddings=128)
    engine = Engine.load(tmp_path, [tmp_path], policy=Eager([[1, 0], [0, 0]]))
    params = SamplingParams(max_tokens=120, ignore_eos=True, temperature=1.0, seed=3)
    stats = engine.generate([1, 2, 3, 1, 2], params)[0].stats
    assert stats.levels[2].drafted > 10 > stats.levels[2].accepted
    kept, drafted = (getattr(stats.levels[1], name) for name in ("accepted", "drafted"))
    assert drafted - kept <= 8, "the draft is the target: only the limit cuts it short"


def test_what_the_loop_refuses() -> None:
    level = make_level(random_weights(1, F32))
    level.rows.write(0, [1, 2, 3])
    level.pages.reserve(0, 20, level.storage.copy_page)

    def draft(**changed: Any) -> list[int]:
        given: dict[str, Any] = {"rows": [0], "cached": [0], "lengths": [3], "counts": [2]}
        return _C.draft(
            CpuBackend(1).context,
            program=level._program,
            logits=level._logits,
            vocab=VOCAB,
            tokens=level.rows.tokens.data_ptr(),
            token_stride=CAPACITY,
            probs=0,
            **{**given, "samplers": [GREEDY], **changed},
        )

    for changed, words in (
        ({"counts": [0]}, r"counts\[0\] must be >= 1, got 0"),
        ({"cached": [3]}, r"cached\[0\] = 3 must be in 0..2"),
        ({"lengths": [0]}, r"cached\[0\] = 0 must be in"),
        ({"rows": [9]}, r"row"),
        ({"counts": [2, 2]}, "counts has 2 entries for 1 rows"),
        ({"samplers": [None]}, r"samplers\[0\] is None"),
        ({"counts": [40]}, "page"),
        ({"reviews": [1, 2]}, "reviews has 2 entries"),
        ({"min_confidences": [0.5, 0.5]}, "min_confidences has 2 entries"),
        ({"min_confidences": [1.5]}, r"min_confidences\[0\] must be in \[0, 1\], got 1.5"),
        ({"min_confidences": [math.nan]}, r"must be in \[0, 1\], got nan"),
        ({"min_confidences": [0.5]}, r"= 0.5 looks at probabilities: pass probs, or 0"),
    ):
        with pytest.raises(ValueError, match=words):
            draft(**changed)
    assert draft() == [2]
