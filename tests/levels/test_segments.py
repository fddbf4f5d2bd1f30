"""A neural level drafting with statistics below it leaves what a call for each proposal and review
leaves: tokens, probabilities, distributions, caches, counts."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
import torch

from cascade_engine import _C
from cascade_engine.levels import (
    NeuralLevel,
    Proposal,
    Rejection,
    ReviewItem,
    SegmentDrafted,
    SegmentItem,
    Segments,
    StatisticalLevel,
    TokenRows,
)
from cascade_engine.levels import neural as neural_module
from cascade_engine.models.llama import LlamaWeights
from cascade_engine.ops import CpuBackend, NgramTable
from tests.levels.test_draft_loop import CAPACITY, GREEDY, VOCAB, ends, random_sampler
from tests.ops.support import BF16, F32, assert_same_bits, random_weights
from tests.ops.test_drafter import small_table


class Pair:
    """A level with statistics below it, over rows of their own."""

    def __init__(
        self, weights: LlamaWeights, table: NgramTable | None, threads: int = 1, tokens: int = 800
    ) -> None:
        backend = CpuBackend(threads)
        self.rows = TokenRows(4, CAPACITY, VOCAB)
        self.level = NeuralLevel("draft", weights, backend, self.rows, CAPACITY, tokens, VOCAB)
        self.statistical = StatisticalLevel(backend, self.rows, table)
        segments = Segments.of(self.level, self.statistical)
        assert segments is not None
        self.segments = segments

    def one_by_one(self, item: SegmentItem, lenience: float) -> SegmentDrafted:
        """The row alone, with a call for each proposal and each review."""
        begin = length = item.length
        accepted, asked, proposed = [], 0, []
        while length - begin < min(item.tokens, item.most):
            probs = self.rows.read_probs(item.slot, begin, length)
            if math.prod(probs) < item.min_confidence:
                break
            drafted, room = 0, item.most - (length - begin) - 1
            while drafted < room:
                width = min(item.width, room - drafted)
                proposal = Proposal(item.slot, length + drafted, width, item.prediction)
                (found,) = self.statistical.propose([proposal])
                asked, drafted = asked + 1, drafted + found
                if found == 0 or drafted >= item.least:
                    break
            proposed.append(drafted)
            rejects = item.sampler.rejects
            number = item.reviews + len(accepted)
            rejection = Rejection(number, True, drafted) if rejects else None
            review = ReviewItem(
                item.slot, length, length + drafted, item.sampler, rejection=rejection
            )
            (verdict,) = self.level.review([review], lenience)
            accepted.append(verdict.num_accepted)
            length += verdict.num_accepted + 1
            self.level.truncate(item.slot, length - 1)
            written = enumerate(self.rows.read(item.slot, begin, length), begin)
            if any(ends(item.sampler, token, position) for position, token in written):
                break
        return SegmentDrafted(proposed, accepted, asked)


@pytest.mark.parametrize("seed", range(12))
def test_segments_are_what_calls_leave(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of all kinds together, against each row alone. Breaks when a row goes on past its end,
    leaves another room, is fed or numbered wrongly, or lenience is not the call's."""
    rng = random.Random(seed)
    monkeypatch.setattr(neural_module, "PREFILL_TOKENS", rng.choice([5, 256]))
    weights = random_weights(seed, rng.choice([F32, BF16]))
    table = rng.choice([None, small_table(rng, VOCAB)])
    together, single = Pair(weights, table, threads=rng.choice([1, 2])), Pair(weights, table)
    together.level.left_padded = rng.random() < 0.3
    lenience, rejection = rng.choice([1.0, 1.0, 4.0, 1e6]), rng.random() < 0.4
    items, lag = [], 0
    for slot in rng.sample(range(4), rng.randint(1, 4)):
        row = [rng.randrange(9) for _ in range(rng.randint(1, 60))]
        cached = rng.randrange(len(row))
        if len(row) - cached <= neural_module.PREFILL_TOKENS:
            lag += len(row) - 1 - cached
        for pair in (together, single):
            pair.rows.write(slot, row)
            pair.level.prefill(slot, cached)
        prediction = torch.tensor(row[-3:] + row[:20], dtype=torch.int32)
        items.append(
            SegmentItem(
                slot,
                len(row),
                tokens=rng.randint(1, 15),
                most=rng.randint(1, 30),
                width=rng.randint(1, 8),
                least=rng.randint(1, 12),
                sampler=random_sampler(rng, rejection),
                reviews=rng.randrange(9),
                prediction=rng.choice([None, prediction]),
                min_confidence=rng.choice([0.0, 1e-6, 1e-3, 1.0]),
            )
        )
    assert together.segments.fits(items)
    found = together.segments.draft(items, lenience)
    assert found.rows == [single.one_by_one(item, lenience) for item in items]
    assert sum(each.rows for each in found.proposals) == sum(row.asked for row in found.rows)
    given = sum(sum(row.proposed) for row in found.rows)
    assert sum(each.tokens for each in found.proposals) == given
    reviews = sum(len(row.accepted) for row in found.rows)
    assert sum(each.rows for each in found.reviews) == reviews
    assert sum(each.tokens for each in found.reviews) == lag + reviews + given
    assert len(found.reviews) == max(len(row.accepted) for row in found.rows)
    assert all(each.seconds > 0.0 and each.passes == 1 for each in found.reviews)
    for item, (_, accepted, _) in zip(items, found.rows, strict=True):
        end = item.length + sum(accepted) + len(accepted)
        slot, first = item.slot, item.length
        assert together.level.pages.length[slot] == end - 1
        for read in (TokenRows.read, TokenRows.read_probs):
            assert read(together.rows, slot, 0, end) == read(single.rows, slot, 0, end)
        for position in range(first, end) if item.sampler.rejects else ():
            laws = [p.rows.distributions.read(slot, position) for p in (together, single)]  # type: ignore[union-attr]
            assert laws[0] == laws[1]
        ours = [pair.level.score(slot, end, 1) for pair in (together, single)]
        assert_same_bits(ours[0], ours[1], "logits behind the segment")
    together.level.pages.check_integrity()


def test_drafts_that_a_lenient_review_keeps_count() -> None:
    """With the probability that the level gave them."""
    pair = Pair(random_weights(1, F32), None)
    pair.rows.write(0, [5, 6, 7, 5, 6])
    item = SegmentItem(0, 5, tokens=20, most=40, width=3, least=1, sampler=GREEDY)
    ((_, accepted, _),) = pair.segments.draft([item], 1e6).rows
    assert accepted[0] > 0
    assert len(accepted) > 1
    probs = pair.rows.read_probs(0, 5, 6 + accepted[0])
    least = (math.prod(probs) + probs[-1]) / 2
    pair.level.truncate(0, 4)
    ((stopped, _, _),) = pair.segments.draft([item._replace(min_confidence=least)], 1e6).rows
    assert stopped == accepted[:1]


def test_segments_must_fit_pages_and_context() -> None:
    """Six pages, of which two rows hold two each."""
    pair = Pair(random_weights(1, F32), None, tokens=96)
    for slot in (0, 1):
        pair.rows.write(slot, [slot + 1] * 30)
        pair.level.prefill(slot, 29)
    item = SegmentItem(0, 30, tokens=6, most=90, width=8, least=8, sampler=GREEDY)
    other = item._replace(slot=1)
    assert item.reach == 30 + 5 + 15
    assert pair.segments.fits([item, other._replace(most=3)])
    assert pair.segments.fits([item._replace(most=19), other._replace(most=19)])
    assert not pair.segments.fits([item, other])
    assert not pair.segments.fits([item._replace(tokens=90)])
    pair.level.row_tokens = 49
    assert not pair.segments.fits([item])


def test_logits_that_are_not_numbers_end_segments() -> None:
    """What reviews left before them stays; asked again it is an error, and the row as it was."""
    weights = random_weights(4, F32)
    item = SegmentItem(0, 3, tokens=9, most=90, width=2, least=1, sampler=GREEDY)
    clean = Pair(weights, None)
    clean.rows.write(0, [1, 2, 3])
    clean.segments.draft([item], 1.0)
    drafted = clean.rows.read(0, 3, 12)
    kept = next(i for i in range(1, 9) if drafted[i] not in (1, 2, 3, *drafted[:i])) + 1
    assert isinstance(weights.embedding, torch.Tensor)
    weights.embedding[drafted[kept - 1]] = torch.nan
    pair = Pair(weights, None)
    pair.rows.write(0, [1, 2, 3])
    ((_, accepted, _),) = pair.segments.draft([item], 1.0).rows
    end = 3 + sum(accepted) + len(accepted)
    assert 3 < end <= 3 + kept
    assert pair.rows.read(0, 3, end) == drafted[: end - 3]
    assert pair.level.pages.length[0] == end - 1
    with pytest.raises(ValueError, match="are all NaN"):
        pair.segments.draft([item._replace(length=end)], 1.0)
    pair.level.truncate(0, end - 1)
    pair.level.pages.check_integrity()


def test_what_the_loop_refuses() -> None:
    pair = Pair(random_weights(1, F32), None)
    pair.rows.write(0, [1, 2, 3])
    pair.level.reserve([0], [20])

    def draft(changed: dict[int, Any], **options: Any) -> Any:
        row: list[Any] = [0, 0, 3, 4, 9, 4, 1, GREEDY, 0, 0, 0, 0.0]
        for i, value in changed.items():
            row[i] = value
        given = {**pair.level.loop_arguments([GREEDY]), "rows": [tuple(row)], **options}
        context = CpuBackend(1).context
        return _C.draft_segments(context, **{"lenience": 1.0, "max_match": 32, **given})

    for changed, words in (
        ({0: -1}, r"rows\[0\] must be >= 0"),
        ({1: 3}, r"cached\[0\] = 3 must be in 0..2"),
        ({3: 0}, "must be >= 1"),
        ({5: 0}, "must be >= 1"),
        ({4: 198}, "198 tokens do not fit behind 3 in rows of 200"),
        ({3: 90, 4: 90, 5: 60}, "page"),
        ({7: None}, r"rows\[0\] has no sampler"),
        ({10: 4}, r"rows\[0\] has 4 tokens of a corpus"),
        ({11: 1.5}, r"min_confidence must be in \[0, 1\], got 1.5"),
    ):
        with pytest.raises(ValueError, match=words):
            draft(changed)
    for options, words in (
        ({"tokens": 0}, "there are none"),
        ({"probs": 0, "rows": [(0, 0, 3, 4, 9, 4, 1, GREEDY, 0, 0, 0, 0.5)]}, "pass probs, or 0"),
        ({"lenience": 0.5}, "lenience must be >= 1"),
        ({"max_match": 0}, "max_match must be >= 1"),
    ):
        with pytest.raises(ValueError, match=words):
            draft({}, **options)
    ((proposed, accepted, asked),), proposals, reviews = draft({})
    assert sum(each[1] for each in proposals) == asked
    assert [each[:2] for each in reviews] == [(1, 1)] * len(accepted)
    assert all(kept <= given for kept, given in zip(accepted, proposed, strict=True))
