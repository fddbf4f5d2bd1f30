"""A drafter from outside as the last level: the examples of docs/drafting.md, what drafters are
told, and what becomes of those that break the protocol."""

from __future__ import annotations

import random
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cascade_engine import (
    Drafter,
    DraftRequest,
    DraftTree,
    Engine,
    FixedCascade,
    PlainDecoding,
    RecurrentDrafter,
    SamplingParams,
)
from cascade_engine.errors import RequestError
from tests.levels.drafters import VOCAB, Checked, anything
from tests.models.support import random_llama

DOC = Path(__file__).resolve().parents[2] / "docs" / "drafting.md"
SHAPE = {"num_hidden_layers": 2, "num_key_value_heads": 1, "num_attention_heads": 2, "head_dim": 16}
TOKEN_BYTES = 2 * 2 * 16 * 4
POLICIES = [
    FixedCascade([[6]]),
    FixedCascade([[6]], tree=12),
    FixedCascade([[4, 2], [0, 3]]),
    FixedCascade([[4, 3], [0, 3]], 2.0, (16, 6), 2),
]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    target, draft = tmp_path_factory.mktemp("target"), tmp_path_factory.mktemp("draft")
    for seed, folder in ((1, target), (2, draft)):
        random_llama(folder, seed, vocab_size=VOCAB, max_position_embeddings=200, **SHAPE)
    return target, draft


def example(name: str) -> Any:
    """A class of docs/drafting.md."""
    blocks = re.findall(r"```python\n(.*?)```", DOC.read_text(encoding="utf-8"), re.DOTALL)
    namespace: dict[str, Any] = {}
    for block in blocks:
        exec(block.split("\n\nengine = ")[0], namespace)
    return namespace[name]


def requests(seed: int) -> tuple[list[list[int]], list[SamplingParams]]:
    rng = random.Random(seed)
    prompts = [[rng.randrange(3, VOCAB) for _ in range(rng.randint(1, 12))] for _ in range(4)]
    params = [
        SamplingParams(
            max_tokens=rng.randint(40, 80), temperature=t, seed=rng.randrange(99), ignore_eos=True
        )
        for t in (0.0, 0.8, 1.2, 0.0)
    ]
    return prompts, params


@pytest.mark.parametrize("recurrent", [False, True])
@pytest.mark.parametrize("policy", POLICIES)
def test_a_drafter_knows_its_rows_and_changes_no_token(
    policy: FixedCascade, recurrent: bool, models: tuple[Path, Path]
) -> None:
    """Chains and trees, below a neural draft or alone, rows that wait for a slot and are preempted.
    Breaks when a rollback, a new row in an old slot, or the end of a row goes untold."""
    target, draft = models
    prompts, params = requests(len(policy.k_matrix))
    plain = Engine.load(target, policy=PlainDecoding())
    expected = [g.token_ids for g in plain.generate(prompts, params)]
    drafter = Checked(recurrent, anything(random.Random(4)))
    drafts = [draft] * (len(policy.k_matrix) - 1)
    cache = 112 * TOKEN_BYTES * (1 + len(drafts))
    engine = Engine.load(
        target, drafts, policy=policy, drafter=drafter, max_rows=3, kv_cache_bytes=cache
    )
    for _ in range(2):
        results = engine.generate(prompts, params)
        assert [result.token_ids for result in results] == expected
        engine.check_integrity()
    assert engine.stats()["requests"]["preempted"] > 0
    complete = [p + e for p, e in zip(prompts, expected, strict=True)]
    assert all(row in drafter.over for row in complete)
    assert not any(row in complete for row in drafter.rows.values()), "they are over"
    assert sum(result.stats.levels[-1].drafted for result in results) > 0
    if drafts and not recurrent:
        assert drafter.truncated > 0
    if drafts and recurrent:
        assert drafter.snapshots >= drafter.restored > 0


def test_rejection_keeps_going_with_any_drafter(models: tuple[Path, Path]) -> None:
    """Proposals count as certain, also where the drafter gives probabilities."""
    prompts = requests(7)[0]
    for policy in POLICIES[2:]:
        drafter = Checked(False, anything(random.Random(1)))
        engine = Engine.load(models[0], [models[1]], policy=policy, drafter=drafter)
        several = [
            SamplingParams(max_tokens=30, seed=i, acceptance="rejection", ignore_eos=True)
            for i in range(4)
        ]
        for result in engine.generate(prompts, several):
            assert len(result.token_ids) == 30
        engine.check_integrity()


@pytest.mark.parametrize("name", ["SuffixCopy", "Recurrent"])
def test_the_documented_drafters_draft(name: str, models: tuple[Path, Path]) -> None:
    """Written against the public protocol alone; a repeating text is drafted well by both."""
    drafter = example(name)()
    assert isinstance(drafter, Drafter)
    assert isinstance(drafter, RecurrentDrafter) == (name == "Recurrent")
    target, draft = models
    params = SamplingParams(max_tokens=120, ignore_eos=True, logit_bias={5: 1e4})
    prompt = [5, 6, 7, 8] * 4
    expected = Engine.load(target, policy=PlainDecoding()).generate(prompt, params)[0].token_ids
    for drafts, policy in (([], FixedCascade([[8]])), ([draft], FixedCascade([[4, 2], [0, 4]]))):
        engine = Engine.load(target, drafts, policy=policy, drafter=example(name)())
        for _ in range(2):
            result = engine.generate([prompt, prompt[1:]], params)[0]
            assert result.token_ids == expected
        assert result.stats.tokens_per_target_call > 3
    assert engine.level_names[-1] == {"SuffixCopy": "suffix-copy"}.get(name, name)


def raises(row: list[int], request: DraftRequest) -> Any:
    raise KeyError("weights")


FAULTS: dict[str, tuple[Callable[[list[int], DraftRequest], Any], str]] = {
    "raises": (raises, "KeyError: 'weights'"),
    "too many": (lambda row, r: [1] * (r.tokens + 1), r"were proposed for a request of"),
    "high id": (lambda row, r: [VOCAB][: r.tokens], rf"tokens\[0\] must be in 0..{VOCAB - 1}, got"),
    "negative id": (lambda row, r: [-1][: r.tokens], r"tokens\[0\] must be in 0..96, got -1"),
    "not ids": (lambda row, r: ["a"][: r.tokens], "TypeError"),
    "fraction": (lambda row, r: [0.5][: r.tokens], "TypeError"),
    "nothing": (lambda row, r: None, "TypeError"),
    "loop": (
        lambda row, r: DraftTree([1], [0]),
        r"parents\[0\] must be in -1..-1, got 0|a tree was",
    ),
    "twins": (
        lambda row, r: DraftTree([1, 1], [-1, -1]),
        "already has a child|a tree was|were prop",
    ),
    "lengths": (lambda row, r: DraftTree([1], [-1, 0]), "1 tokens come with 2 parents"),
    "probability": (lambda row, r: DraftTree([1], [-1], [1.5]), r"probs\[0\] must be in 0..1"),
    "nan": (lambda row, r: DraftTree([1], [-1], [float("nan")]), r"probs\[0\] must be in 0..1"),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("policy", POLICIES[:2])
def test_a_faulty_drafter_loses_no_request(
    fault: str, policy: FixedCascade, models: tuple[Path, Path]
) -> None:
    """It works for a while, then fails in the middle of requests: a warning names drafter and
    fault, and the answers are the same."""
    choose, words = FAULTS[fault]
    prompts, params = requests(1)
    expected = Engine.load(models[0], policy=PlainDecoding()).generate(prompts, params)
    calls = 0

    def later(row: list[int], request: DraftRequest) -> Any:
        nonlocal calls
        calls += 1
        return [] if calls < 9 else choose(row, request)

    engine = Engine.load(models[0], policy=policy, drafter=Checked(False, later))
    with pytest.warns(RuntimeWarning, match=rf"drafter Checked failed when proposing.*({words})"):
        results = engine.generate(prompts, params)
    assert [g.token_ids for g in results] == [g.token_ids for g in expected]
    asked = calls
    assert engine.generate(prompts[0], params[0])[0].token_ids == expected[0].token_ids
    assert calls == asked, "it is not asked again"
    engine.check_integrity()


@pytest.mark.parametrize("method", ["observe", "truncate", "snapshot", "restore"])
def test_a_drafter_that_loses_track_loses_no_request(
    method: str, models: tuple[Path, Path]
) -> None:
    prompts, params = requests(2)
    expected = Engine.load(models[0], policy=PlainDecoding()).generate(prompts, params)
    drafter = Checked(method in ("snapshot", "restore"), anything(random.Random(2)))

    def fail(*args: Any) -> Any:
        raise RuntimeError("lost")

    setattr(drafter, method, fail)
    policy = FixedCascade([[4, 3], [0, 3]])
    engine = Engine.load(models[0], [models[1]], policy=policy, drafter=drafter)
    with pytest.warns(RuntimeWarning, match="failed when .* RuntimeError: lost"):
        results = engine.generate(prompts, params)
    assert [g.token_ids for g in results] == [g.token_ids for g in expected]


def test_the_built_in_statistics_fill_in(models: tuple[Path, Path]) -> None:
    """With drafter_fallback they propose where the drafter does not, also once it has failed."""
    prompt, params = [5, 6, 7, 8] * 4, SamplingParams(max_tokens=60, ignore_eos=True)
    for policy in POLICIES[:2]:
        drafted = []
        for fallback in (False, True):
            drafter = Checked(False, lambda row, request: [])
            engine = Engine.load(
                models[0], policy=policy, drafter=drafter, drafter_fallback=fallback
            )
            drafted.append(engine.generate(prompt, params)[0].stats.levels[-1].drafted)
        assert drafted[0] == 0 < drafted[1]
    engine = Engine.load(
        models[0], policy=policy, drafter=Checked(False, raises), drafter_fallback=True
    )
    with pytest.warns(RuntimeWarning, match="KeyError"):
        assert engine.generate(prompt, params)[0].stats.levels[-1].drafted > 0
    assert engine.level_names[-1] == "Checked + max-gram"


def test_what_is_no_drafter_is_refused(models: tuple[Path, Path]) -> None:
    class Half(Checked):
        propose = None  # type: ignore[assignment]

    chosen: Any = lambda row, request: []  # noqa: E731
    for drafter, words in (
        (object(), "drafter object lacks observe, truncate, propose"),
        (Half(False, chosen), "drafter Half lacks propose"),
    ):
        with pytest.raises(RequestError, match=words):
            Engine.load(models[0], drafter=drafter)  # type: ignore[arg-type]
    one = Checked(False, chosen)
    one.snapshot = one._snapshot
    with pytest.raises(RequestError, match="has one of snapshot and restore"):
        Engine.load(models[0], drafter=one)
    for given in ({"tables": "x.safetensors"}, {"learn_tokens": 100}):
        with pytest.raises(RequestError, match="drafter_fallback=True"):
            Engine.load(models[0], drafter=Checked(False, chosen), **given)  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="drafter_fallback"):
        Engine.load(models[0], drafter_fallback=True)


def test_a_good_drafter_gives_no_warning(models: tuple[Path, Path]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        engine = Engine.load(models[0], drafter=Checked(False, anything(random.Random(0))))
        engine.generate(*requests(3))
