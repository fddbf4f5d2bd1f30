"""A neural level against a second one that always starts over: catching up, rolling back, forking,
and the ends of its context and cache."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from cascade_engine import Engine, FixedCascade, PlainDecoding, SamplingParams
from cascade_engine.errors import CapacityError
from cascade_engine.levels import NeuralLevel, ReviewItem, TokenRows, TokenTree, neural
from cascade_engine.models.llama import LlamaWeights
from cascade_engine.ops import CpuBackend, Sampler
from tests.models.support import random_llama
from tests.ops.support import F32, assert_same_bits, random_weights

VOCAB, CAPACITY = 130, 200
GREEDY = Sampler(temperature=0.0)


@pytest.fixture(scope="module")
def weights() -> LlamaWeights:
    return random_weights(1, F32)


def make_level(
    weights: LlamaWeights, context: int = CAPACITY, tokens: int = 600, rows: int = 3
) -> NeuralLevel:
    storage = TokenRows(rows, CAPACITY)
    return NeuralLevel("level", weights, CpuBackend(1), storage, context, tokens, VOCAB)


class Oracle:
    """What the model says about a row, computed from its first token each time."""

    def __init__(self, weights: LlamaWeights) -> None:
        self._level = make_level(weights, rows=1)

    def logits(self, tokens: Sequence[int]) -> torch.Tensor:
        """`[len(tokens), vocab]`; row i predicts token i + 1."""
        self._level.truncate(0, 0)
        self._level.rows.write(0, list(tokens))
        return self._level.score(0, len(tokens), len(tokens))

    def verdict(self, tokens: Sequence[int], frontier: int) -> tuple[int, int]:
        """Greedy: drafted tokens kept behind the frontier, and the model's own token."""
        best = self.logits(tokens)[frontier - 1 :].argmax(-1).tolist()
        drafted = list(tokens[frontier:])
        kept = 0
        while kept < len(drafted) and drafted[kept] == best[kept]:
            kept += 1
        return kept, best[kept]


@pytest.fixture(scope="module")
def oracle(weights: LlamaWeights) -> Oracle:
    return Oracle(weights)


def random_tokens(rng: random.Random, count: int) -> list[int]:
    return [rng.randrange(VOCAB) for _ in range(count)]


def draft_behind(row: list[int], width: int, oracle: Oracle, rng: random.Random) -> list[int]:
    """A draft that the model itself would say, up to a random point."""
    draft: list[int] = []
    right = rng.randint(0, width)
    for i in range(width):
        own = oracle.verdict(row + draft, len(row) + len(draft))[1]
        draft.append(own if i < right else rng.randrange(VOCAB))
    return draft


def review(level: NeuralLevel, slot: int, tokens: list[int], frontier: int) -> tuple[int, int]:
    """Writes the row, reviews it and rolls the cache back to the row's new length."""
    level.rows.write(slot, tokens)
    [verdict] = level.review([ReviewItem(slot, frontier, len(tokens), GREEDY)], 1.0)
    kept, token = verdict.num_accepted, verdict.token
    assert level.rows.read(slot, 0, frontier + kept + 1) == [*tokens[: frontier + kept], token]
    level.truncate(slot, frontier + kept)
    level.pages.check_integrity()
    return kept, token


@pytest.mark.parametrize("prefill", [1, 3, 16, 50, 512])
def test_a_level_that_lags_catches_up(
    prefill: int, weights: LlamaWeights, oracle: Oracle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However far behind, the verdict is the same, and no pass is longer than a prefill and a
    draft. Breaks when catching up skips or repeats a token."""
    monkeypatch.setattr(neural, "PREFILL_TOKENS", prefill)
    rng, level = random.Random(prefill), make_level(weights)
    passes: list[int] = []
    feed = level._feed

    def counted(slots: list[int], ends: list[int], logits: list[int]) -> None:
        passes.append(sum(e - level.pages.length[s] for s, e in zip(slots, ends, strict=True)))
        feed(slots, ends, logits)

    monkeypatch.setattr(level, "_feed", counted)
    for lag in (1, 2, 17, 64, 150):
        level.truncate(0, 0)
        row = random_tokens(rng, rng.randint(lag, 180))
        level.rows.write(0, row)
        level.prefill(0, len(row) - lag)
        draft = draft_behind(row, 6, oracle, rng)
        passes.clear()
        assert review(level, 0, row + draft, len(row)) == oracle.verdict(row + draft, len(row))
        assert sum(passes) == lag + 6
        assert max(passes) <= prefill + 6


def test_any_history_gives_the_bits_of_a_fresh_start(weights: LlamaWeights, oracle: Oracle) -> None:
    """Rows drafted, reviewed, cut back and continued differently at random. Breaks when a rolled
    back position is still believed to be cached, or a freed page is still read."""
    rng, level = random.Random(5), make_level(weights, tokens=420)
    rows = [random_tokens(rng, rng.randint(1, 60)) for _ in range(3)]
    for step in range(400):
        slot = rng.randrange(3)
        row = rows[slot]
        if len(row) > 120 or rng.random() < 0.2:  # a better level rejected some of it
            keep = rng.randint(1, len(row))
            rows[slot] = row[:keep] + random_tokens(rng, rng.randint(0, 4))
            level.truncate(slot, min(keep, len(rows[slot]) - 1))
        elif rng.random() < 0.2:
            level.rows.write(slot, row)
            start = min(level.pages.length[slot], len(row) - 1)
            level.truncate(slot, start)
            ours = level.score(slot, len(row), len(row) - start)
            assert_same_bits(ours, oracle.logits(row)[start:], f"step {step}")
            level.truncate(slot, len(row) - 1)
        else:
            drafted = row + draft_behind(row, rng.choice([0, 1, 3, 9]), oracle, rng)
            kept, token = review(level, slot, drafted, len(row))
            assert (kept, token) == oracle.verdict(drafted, len(row)), f"step {step}"
            rows[slot] = [*drafted[: len(row) + kept], token]
        level.pages.check_integrity()
        assert all(n <= len(r) - 1 for n, r in zip(level.pages.length, rows, strict=True))
    for slot in range(3):
        level.truncate(slot, 0)
    assert level.pages.free_pages == level.pages.pages


def test_rows_are_reviewed_together_as_alone(weights: LlamaWeights, oracle: Oracle) -> None:
    """Three rows, each with a lag and a draft of its own, in another order than their slots."""
    rng, level = random.Random(9), make_level(weights)
    rows = {slot: random_tokens(rng, length) for slot, length in ((2, 40), (0, 7), (1, 100))}
    items, expected = [], []
    for slot, row in rows.items():
        drafted = row + draft_behind(row, slot * 3, oracle, rng)
        level.rows.write(slot, drafted)
        level.prefill(slot, len(row) // 2)
        items.append(ReviewItem(slot, len(row), len(drafted), GREEDY))
        expected.append(oracle.verdict(drafted, len(row)))
    verdicts = level.review(items, 1.0)
    assert [(v.num_accepted, v.token) for v in verdicts] == expected


def test_a_draft_is_prefilled_when_it_is_first_asked(weights: LlamaWeights, oracle: Oracle) -> None:
    """Until then it holds no page."""
    level, row = make_level(weights), random_tokens(random.Random(1), 90)
    level.truncate(0, 89)  # what the engine does after each review by another level
    assert level.pages.free_pages == level.pages.pages
    assert level.pages.length == [0, 0, 0]
    assert review(level, 0, row, 90) == oracle.verdict(row, 90)
    assert level.pages.length == [90, 0, 0]


def test_a_fork_goes_its_own_way(weights: LlamaWeights, oracle: Oracle) -> None:
    """Rows that share pages up to the middle of one. Breaks when a shared page is written."""
    rng, level = random.Random(2), make_level(weights)
    row = random_tokens(rng, 45)
    level.rows.write(0, row)
    level.prefill(0, 45)
    level.fork(0, 1, 41)
    level.fork(0, 2, 45)
    for slot, shared in ((1, 41), (2, 45), (0, 45)):
        tokens = row[:shared] + random_tokens(rng, 20)
        level.rows.write(slot, tokens)
        ours = level.score(slot, len(tokens), 20)
        assert_same_bits(ours, oracle.logits(tokens)[-20:], f"slot {slot}")
        level.pages.check_integrity()


def test_the_context_ends_where_it_says(weights: LlamaWeights, oracle: Oracle) -> None:
    """A row may fill the context to the last token and not one more, and the refusal changes
    nothing."""
    rng, level = random.Random(3), make_level(weights, context=50)
    row = random_tokens(rng, 50)
    assert review(level, 0, row, 50) == oracle.verdict(row, 50)
    for tokens in (51, 70, 80):
        longer = random_tokens(rng, tokens)
        level.rows.write(1, longer)
        with pytest.raises(CapacityError, match=rf"{tokens} tokens do not fit a row of 50"):
            level.review([ReviewItem(1, tokens, tokens, GREEDY)], 1.0)
        level.pages.check_integrity()
        assert level.pages.length == [50, 0, 0]
    other = random_tokens(rng, 33)
    assert review(level, 1, other, 33) == oracle.verdict(other, 33)


def test_a_full_cache_is_an_error_and_not_the_end(weights: LlamaWeights, oracle: Oracle) -> None:
    rng, level = random.Random(4), make_level(weights, tokens=96)
    rows = [random_tokens(rng, 60), random_tokens(rng, 50)]
    assert review(level, 0, rows[0], 60) == oracle.verdict(rows[0], 60)
    level.rows.write(1, rows[1])
    with pytest.raises(CapacityError, match=r"the key/value cache is full: 4 pages .* 2 of 6 free"):
        level.review([ReviewItem(1, 50, 50, GREEDY)], 1.0)
    level.truncate(0, 0)
    assert review(level, 1, rows[1], 50) == oracle.verdict(rows[1], 50)


def test_an_unknown_token_leaves_the_cache_as_it_was(weights: LlamaWeights, oracle: Oracle) -> None:
    level, row = make_level(weights), random_tokens(random.Random(6), 40)
    level.rows.write(0, [*row[:30], VOCAB, *row[31:]])
    level.prefill(0, 20)
    with pytest.raises(ValueError, match=f"token id {VOCAB} is outside the vocabulary of {VOCAB}"):
        level.review([ReviewItem(0, 38, 40, GREEDY)], 1.0)
    assert level.pages.length[0] == 20
    assert review(level, 0, row, 38) == oracle.verdict(row, 38)


def test_a_draft_past_its_context_sleeps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine asks a draft up to its context and never past it; the answer goes on and is that
    of plain decoding."""
    random_llama(tmp_path / "target", 1, vocab_size=97, max_position_embeddings=128)
    random_llama(tmp_path / "draft", 2, vocab_size=97, max_position_embeddings=48)
    params = SamplingParams(max_tokens=100, ignore_eos=True)
    plain = Engine.load(tmp_path / "target", policy=PlainDecoding())
    expected = plain.generate([1, 2, 3], params)[0].token_ids
    engine = Engine.load(
        tmp_path / "target", [tmp_path / "draft"], policy=FixedCascade([[2, 2], [0, 3]])
    )
    lengths: list[int] = []
    draft_review = engine.neural[1].review

    def noted(items: Sequence[ReviewItem], lenience: float) -> object:
        lengths.extend(item.length for item in items)
        return draft_review(items, lenience)

    monkeypatch.setattr(engine.neural[1], "review", noted)
    assert engine.generate([1, 2, 3], params)[0].token_ids == expected
    assert 44 <= max(lengths) <= 48
    engine.check_integrity()


def test_a_tree_may_be_wider_than_the_context_but_not_deeper(
    weights: LlamaWeights, oracle: Oracle
) -> None:
    """Its nodes take slots past the context's end; the refusal of a deeper one changes nothing.
    Another row shares the pages that the accepted path is moved in, and keeps what is its own."""
    rng, level = random.Random(5), make_level(weights, context=50)
    row = random_tokens(rng, 45)
    own = oracle.verdict(row, 45)[1]
    level.rows.write(0, row)
    level.prefill(0, 44)
    level.fork(0, 1, 44)
    others = [token for token in range(VOCAB) if token != own][:40]
    after = oracle.verdict([*row, own], 46)[1]
    tokens, parents = [*others, own, after], [*[-1] * 41, 40]
    wide = TokenTree(tokens, parents, [1.0] * 42, [1] * 42)
    deep = TokenTree([1] * 6, list(range(-1, 5)), [1.0] * 6, [1] * 6)
    with pytest.raises(CapacityError, match="51 tokens do not fit a row of 50"):
        level.review([ReviewItem(0, 45, 45, GREEDY, tree=deep)], 1.0)
    assert level.pages.length[:2] == [44, 44]
    [verdict] = level.review([ReviewItem(0, 45, 45, GREEDY, tree=wide)], 1.0)
    assert (verdict.num_accepted, list(verdict.path), verdict.num_unmoved) == (2, [40, 41], 0)
    assert level.pages.length[0] == 47
    level.pages.check_integrity()
    grown = [*row, own, after, verdict.token]
    assert level.rows.read(0, 0, 48) == grown
    assert review(level, 0, grown, 48) == oracle.verdict(grown, 48)
    forked = [*row[:44], 7, 8, 9]
    assert review(level, 1, forked, 46) == oracle.verdict(forked, 46)
