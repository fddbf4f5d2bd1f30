"""Nothing is drafted behind a token that ends its request."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cascade_engine import Engine, FixedCascade, PlainDecoding, SamplingParams
from tests.data import data_path

PROMPT = "Once upon a time"


@pytest.fixture(scope="module")
def engine() -> Engine:
    """Its draft is the target itself: every token of the draft's own is accepted."""
    target = data_path("stories260k")
    return Engine.load(target, [target], policy=PlainDecoding(), reuse_cache=False, threads=1)


def stopping(engine: Engine, min_tokens: int = 0, **options: Any) -> SamplingParams:
    """A request that ends with a token which also stands in its first `min_tokens`."""
    engine.set_policy(PlainDecoding())
    (free,) = engine.generate(PROMPT, SamplingParams(max_tokens=80, ignore_eos=True, **options))
    tokens = free.token_ids
    end = next(
        token
        for i, token in enumerate(tokens)
        if i >= max(min_tokens, 5)
        and (i + 1) % 21 > 1
        and (token in tokens[:min_tokens]) == (min_tokens > 0)
        and token not in tokens[min_tokens:i]
    )
    return SamplingParams(
        max_tokens=80, stop_token_ids=[end], min_tokens=min_tokens, ignore_eos=True, **options
    )


@pytest.mark.parametrize("watched", [False, True])
@pytest.mark.parametrize(
    "policy",
    [FixedCascade([[20, 0], [0, 0]]), FixedCascade([[20, 0], [0, 3]])],
    ids=["alone", "vertical"],
)
@pytest.mark.parametrize("min_tokens", [0, 12])
def test_drafts_end_with_the_request(
    engine: Engine, policy: FixedCascade, watched: bool, min_tokens: int, tmp_path: Path
) -> None:
    """A review may write one token behind an accepted end. Breaks when a loop goes on, when the
    policy is asked for more, or when min_tokens does not count."""
    params = stopping(engine, min_tokens)
    (plain,) = engine.generate(PROMPT, params)
    engine.set_policy(policy)
    if watched:
        with engine.trace(tmp_path / "trace.jsonl"):
            (result,) = engine.generate(PROMPT, params)
    else:
        (result,) = engine.generate(PROMPT, params)
    assert result.token_ids == plain.token_ids
    assert result.finish_reason == "stop"
    assert len(plain.token_ids) % 21 > 1, "the end is a draft's last token anyway"
    draft = result.stats.levels[1]
    assert draft.drafted - draft.accepted <= (1 if policy.k_matrix[1][1] else 0)


def test_by_the_rejection_rule_drafts_go_on(engine: Engine) -> None:
    """Who reviews a token must not depend on it."""
    params = stopping(engine, temperature=1.0, seed=3, acceptance="rejection")
    engine.set_policy(FixedCascade([[20, 0], [0, 0]]))
    (result,) = engine.generate(PROMPT, params)
    assert result.stats.levels[1].drafted % 20 == 0
