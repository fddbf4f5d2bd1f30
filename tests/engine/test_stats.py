"""Counts of a request and of the engine, by level and draft position."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest

from cascade_engine import Engine, FixedCascade, SamplingParams
from cascade_engine.engine.stats import NOTED, EngineStats, ReviewCounts
from tests.data import data_path

PROMPTS = ["Once upon a time, there was a little girl", "Tom and Sam went to the park. Tom"]


def test_a_review_by_hand() -> None:
    """A tree of five nodes at positions 0 0 1 1 2, of levels 1 and 2, of which the path 1, 3 is
    kept; then a chain of two of which none is."""
    counts = ReviewCounts(3)
    assert counts.tokens_per_review == 0.0
    counts.add([1, 2, 1, 2, 2], [0, 0, 1, 1, 2], [1, 3])
    counts.add([1, 1], range(2), range(0))
    assert counts.tokens_per_pass == [1, 0, 1]
    assert counts.tokens_per_review == 2.0
    drafted, accepted = zip(*((c.drafted, c.accepted) for c in counts.levels), strict=True)
    assert drafted == ([], [2, 2], [1, 1, 1])
    assert accepted == ([], [], [1, 1])


def test_what_is_noted_is_counted_once() -> None:
    """Breaks when reviews are lost or counted twice where notes become too many, or between two
    looks at the counts."""
    counts = ReviewCounts(2)
    for i in range(2 * NOTED + 5):
        counts.add([1, 1], range(2), range(i % 3))
        if i == NOTED + 2:
            assert counts.levels[1].drafted == [i + 1, i + 1]
    reviews = 2 * NOTED + 5
    assert counts.levels[1].drafted == [reviews, reviews]
    assert counts.levels[1].accepted == [reviews - (reviews + 2) // 3, reviews // 3]
    assert sum(counts.tokens_per_pass) == reviews


def test_a_reset_forgets_all() -> None:
    stats = EngineStats(["a", "b"])
    fresh = stats.snapshot()
    stats.count_pass(1, 2, 0.5)
    stats.reviews.add([1], [0], [0])
    stats.requests["added"] += 1
    counted = stats.snapshot()
    assert counted["levels"][1] == {
        "name": "b", "passes": 1, "rows": 2, "seconds": 0.5, "drafted": [1], "accepted": [1]
    }  # fmt: skip
    assert counted["tokens_per_pass"] == [0, 1]
    stats.reset()
    assert stats.snapshot() == fresh


@pytest.mark.parametrize("tree", [0, 24])
def test_the_requests_add_up_to_the_engine(tree: int) -> None:
    """Breaks when a review is counted for another request, level or position, or not at all."""
    policy = FixedCascade([[4, 3], [0, 6]], tree=tree, siblings=2 if tree else 0)
    engine = Engine.load(data_path("stories260k"), [data_path("llama2xs")], policy=policy)
    params = SamplingParams(max_tokens=40, temperature=1.0, seed=3, n=2, ignore_eos=True)
    results = engine.generate(PROMPTS, params)
    reports = [result.stats.as_dict() for result in results]
    total = engine.stats()
    assert_sums(total, "tokens_per_pass", [r["tokens_per_pass"] for r in reports])
    for i, level in enumerate(total["levels"]):
        levels = [r["levels"][i] for r in reports]
        assert_sums(level, "drafted", [each["reviewed_by_position"] for each in levels])
        assert_sums(level, "accepted", [each["accepted_by_position"] for each in levels])
    assert sum(total["levels"][2]["drafted"][1:]) > 0
    for report in reports:
        assert sum(report["tokens_per_pass"]) == report["target_calls"]
        reviewed = sum((k + 1) * n for k, n in enumerate(report["tokens_per_pass"]))
        assert reviewed == report["new_tokens"] == 40
        kept = sum(sum(level["accepted_by_position"]) for level in report["levels"])
        assert kept + report["target_calls"] == 40
        for position in range(10):
            accepted = sum(
                sum(level["accepted_by_position"][position : position + 1])
                for level in report["levels"]
            )
            assert accepted == sum(report["tokens_per_pass"][position + 1 :])
        for level in report["levels"]:
            pairs = zip(level["accepted_by_position"], level["reviewed_by_position"], strict=False)
            assert all(accepted <= reviewed for accepted, reviewed in pairs)
            assert len(level["accepted_by_position"]) <= len(level["reviewed_by_position"])
        assert json.loads(json.dumps(report)) == report


def assert_sums(whole: dict[str, Any], key: str, parts: list[list[int]]) -> None:
    sums: Counter[int] = Counter()
    for part in parts:
        sums.update(dict(enumerate(part)))
    assert whole[key] == [sums[i] for i in range(len(whole[key]))]
    assert sum(whole[key]) == sum(map(sum, parts))


@pytest.mark.parametrize("inner", [0, 6])
def test_early_stops_save_drafts_and_few_tokens(inner: int) -> None:
    """Of a draft that is mostly wrong: it writes far less where it may stop, on its own and in
    reviews of a table's drafts, and nearly all that it leaves out would have been rejected."""
    target, found = data_path("stories260k"), []
    params = SamplingParams(max_tokens=120, ignore_eos=True)
    for least in (0.0, 0.05):
        policy = FixedCascade([[8, 0], [0, inner]], min_confidence=least)
        engine = Engine.load(target, [data_path("llama2xs")], policy=policy, max_rows=4)
        results = engine.generate(PROMPTS, params)
        levels = [sum(r.stats.levels[1].drafted for r in results)]
        calls = sum(r.stats.target_calls for r in results)
        found.append(([r.token_ids for r in results], levels[0], calls))
    (tokens, drafted, calls), (same, fewer, more) = found
    assert same == tokens
    assert fewer < 0.6 * drafted
    assert calls <= more < 1.07 * calls


def test_a_request_knows_nothing_of_others() -> None:
    """An all-knowing draft of 7: one review for the prompt, then ten of 7 + 1 tokens."""
    target = data_path("stories260k")
    engine = Engine.load(target, [target], policy=FixedCascade([[7, 0], [0, 0]]), max_rows=2)
    params = SamplingParams(max_tokens=81, ignore_eos=True)
    for result in engine.generate(PROMPTS, params):
        report = result.stats.as_dict()
        assert report["tokens_per_pass"] == [1, 0, 0, 0, 0, 0, 0, 10]
        assert report["levels"][1]["reviewed_by_position"] == [10] * 7
        assert report["levels"][1]["accepted_by_position"] == [10] * 7
        assert report["levels"][2]["reviewed_by_position"] == []


def test_tokens_behind_a_stop_are_nobodys() -> None:
    """The all-knowing draft of 7, and a stop amid the second review: breaks when drafts that the
    target kept behind the stop count as emitted."""
    target = data_path("stories260k")
    engine = Engine.load(target, [target], policy=FixedCascade([[7, 0], [0, 0]]))
    (whole,) = engine.generate(PROMPTS[:1], SamplingParams(max_tokens=30, ignore_eos=True))
    stop = next(i for i in range(10, 15) if whole.token_ids[i] not in whole.token_ids[:i])
    params = SamplingParams(max_tokens=30, ignore_eos=True, stop_token_ids=[whole.token_ids[stop]])
    (result,) = engine.generate(PROMPTS[:1], params)
    assert result.token_ids == whole.token_ids[: stop + 1]
    accepted = [level.accepted for level in result.stats.levels]
    assert accepted == [result.sources.count(level) for level in range(3)]
