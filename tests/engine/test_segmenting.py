"""Segments drafted in one call: the engine's tokens, counts and caches are those of a call for each
proposal and review."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from cascade_engine import Engine, FixedCascade, SamplingParams
from cascade_engine.engine.segmenting import Segmenting
from cascade_engine.levels import Segments
from cascade_engine.policy.plans import Plan
from tests.data import data_path
from tests.models.support import random_llama


class Planned(Plan):
    """A plan as a policy."""

    lenience = 1.0

    def check(self, drafting_levels: int) -> None:
        pass


@pytest.fixture(scope="module")
def drafts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    short = tmp_path_factory.mktemp("short")
    random_llama(short, 2, vocab_size=512, max_position_embeddings=64)
    return {"llama2xs": data_path("llama2xs"), "short": short}


def counts(stats: dict[str, Any]) -> Any:
    """Statistics without times."""
    if isinstance(stats, dict):
        return {k: counts(v) for k, v in stats.items() if "second" not in k}
    return [counts(v) for v in stats] if isinstance(stats, list) else stats


def random_params(rng: random.Random) -> SamplingParams:
    return SamplingParams(
        max_tokens=rng.randint(60, 100),
        temperature=rng.choice([0.0, 0.0, 0.8]),
        seed=rng.randrange(9999),
        acceptance=rng.choice(["exact", "exact", "rejection"]),
        ignore_eos=True,
        stop_token_ids=rng.sample(range(3, 512), rng.choice([0, 40])),
        min_tokens=rng.choice([0, 30]),
    )


@pytest.mark.parametrize("seed", range(8))
def test_statistics_and_tokens_are_those_of_single_calls(
    seed: int, drafts: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Breaks when a source, a count of drafts, calls, passes or rows, or a frontier is not what the
    calls would have left."""
    rng = random.Random(seed)
    names = rng.choice([["llama2xs"], ["llama2xs", "short"], ["short", "llama2xs"]])
    n = 3 if seed == 0 else len(names) + 1
    k = [[rng.choice([0, 2, 6]) if j >= i else 0 for j in range(n)] for i in range(n)]
    k[0][rng.randrange(n - 1)], k[-1][-1] = 6, rng.choice([2, 8])
    if seed == 0:  # the first draft falls asleep in the midst of what is drafted for it
        names, k = ["short", "llama2xs"], [[4, 0, 0], [0, 6, 0], [0, 0, 8]]
    least = 0.3 * (seed % 2)
    policy: Any = FixedCascade(k, rng.choice([1.0, 3.0]), rng.choice([0, 0, 12]), 0, least)
    if seed and rng.random() < 0.3:
        policy = Planned(drafter=n - 1, tokens=5, width=rng.choice([1, 6]), tail=rng.choice([0, 2]))
    engine = Engine.load(
        data_path("stories260k"),
        [drafts[name] for name in names],
        policy=policy,
        max_rows=3,
        threads=1,
        reuse_cache=False,
    )
    params = [random_params(rng) for _ in range(4)]
    prompts = ["Once upon a time", "Tom and Sam went to the park. " * 2, "One day", "A bird sang"]
    taken: list[bool] = []
    takes = Segmenting.takes
    found = []
    for whole in (True, False):

        def noted(self: Segmenting, rows: Any, whole: bool = whole) -> Any:
            part = takes(self, rows) if whole else None
            taken.append(part is not None)
            return part

        monkeypatch.setattr(Segmenting, "takes", noted)
        engine.reset_stats()
        results = engine.generate(prompts, params)
        engine.check_integrity()
        rows = [(r.token_ids, r.sources, counts(r.stats.as_dict())) for r in results]
        stats = counts(engine.stats())
        for level in stats["levels"]:
            del level["passes"]  # near their ends rows share others
        found.append((rows, stats))
    assert any(taken), "no segment was drafted in one call"
    assert found[0] == found[1]


def test_a_request_with_functions_to_ask_drafts_in_single_calls(
    drafts: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its masks are asked for token by token; what is watched is seen pass by pass."""
    policy = FixedCascade([[4, 0], [0, 4]])
    engine = Engine.load(data_path("stories260k"), [drafts["llama2xs"]], policy=policy)
    calls: list[int] = []
    draft = Segments.draft
    monkeypatch.setattr(Segments, "draft", lambda *given: (calls.append(1), draft(*given))[1])
    engine.generate("Once", SamplingParams(max_tokens=12, allowed_tokens=lambda ids: range(3, 500)))
    assert not calls
    path = tmp_path / "trace.jsonl"
    with engine.trace(path):
        engine.generate("Once", SamplingParams(max_tokens=12))
    assert not calls
    engine.generate("Once", SamplingParams(max_tokens=12))
    assert calls
