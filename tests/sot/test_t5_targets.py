"""Skeleton-of-Thought on an encoder-decoder: points are decoder prefixes over one input."""

from __future__ import annotations

import functools
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from cascade_engine import Engine, FixedCascade, PlainDecoding, SamplingParams
from cascade_engine.demo.family import t5_family
from cascade_engine.errors import RequestError
from cascade_engine.generate import main
from cascade_engine.sot import SkeletonOfThought, SotOptions, SotResult
from cascade_engine.sot.options import Expand
from cascade_engine.sot.prompts import FOLDER

MODES: tuple[Expand, ...] = ("fork", "ragged", "left-padded")
QUESTION = "How can I save water at home?"


@functools.cache
def t5_engine() -> Engine:
    family = t5_family()
    policy = FixedCascade(family.k_matrix)
    return Engine.load(family.target, family.drafts, family.table, policy=policy, threads=1)


def answered(
    expand: Expand, params: SamplingParams, prompts: str | Path = "embedded-t5"
) -> SotResult:
    engine = t5_engine()
    engine.clear_cache()
    options = SotOptions(prompts=prompts, expand=expand, params=params, point_tokens=64)
    result = SkeletonOfThought(engine, options).answer(QUESTION)
    engine.check_integrity()
    return result


@pytest.mark.parametrize(
    ("temperature", "begin"),
    [
        (0.0, "{index}. {point}:"),
        (0.8, "{index}. {point}:"),
        (0.8, "{skeleton}\n{index}. {point}:"),
    ],
)
def test_every_way_writes_what_one_by_one_writes(
    temperature: float, begin: str, tmp_path: Path
) -> None:
    """Breaks when a point's prefix or noise depends on its companions, or on what is shared."""
    prompts = shutil.copytree(FOLDER / "embedded-t5", tmp_path / "prompts")
    (prompts / "expand.txt").write_text(f"Question: {{question}}\nAnswer:\n[answer]\n{begin}")
    params = SamplingParams(max_tokens=200, temperature=temperature, seed=5)
    results = {mode: answered(mode, params, prompts) for mode in MODES}
    first = results["fork"]
    assert first.used_sot
    assert len(first.points) >= 4
    engine = t5_engine()
    policy = engine.policy
    engine.set_policy(PlainDecoding())
    for expansion in first.expansions:
        alone = replace(
            params,
            max_tokens=64,
            seed=5 + expansion.index,
            stop="\n",
            decoder_prefix=expansion.decoder_prefix_ids,
        )
        engine.clear_cache()
        (one,) = engine.generate([list(expansion.prompt_token_ids)], alone)
        assert one.token_ids == list(expansion.token_ids)
    engine.set_policy(policy)
    for result in results.values():
        assert [e.token_ids for e in result.expansions] == [e.token_ids for e in first.expansions]
        assert result.text == first.text
    cached = {mode: result.stages[1].cached_tokens or 0 for mode, result in results.items()}
    assert cached["ragged"] == cached["left-padded"] == 0 < cached["fork"]


def test_a_point_is_a_prefix_of_the_decoder() -> None:
    result = answered("fork", SamplingParams(max_tokens=200))
    inputs = {expansion.prompt_token_ids for expansion in result.expansions}
    tokenizer = t5_engine().tokenizer
    assert [tokenizer.decode(ids) for ids in inputs] == [f"Question: {QUESTION}\nAnswer:"]
    for expansion, point in zip(result.expansions, result.skeleton.points, strict=True):
        begin = f"{point.index}. {point.text}:"
        assert tokenizer.decode(expansion.decoder_prefix_ids) == begin
        assert expansion.text.startswith(f"{begin} ")


def test_a_fork_of_other_inputs_is_refused() -> None:
    """The reason names what differs and the ways that go."""
    for name, place in (("default", "index"), ("short", "index")):
        with pytest.raises(RequestError, match=rf"{place}.*another for every point: use expand"):
            SkeletonOfThought(t5_engine(), SotOptions(prompts=name))
        SkeletonOfThought(t5_engine(), SotOptions(prompts=name, expand="ragged"))
    options = SotOptions(prompts="default", chat_format="vicuna", expand="ragged")
    with pytest.raises(RequestError, match="an encoder reads plain text"):
        SkeletonOfThought(t5_engine(), options)


def test_the_command_line_answers_by_points(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--model-family", "t5", "--sot", "on", "--quiet", "--threads", "1"]
    assert main([*options, QUESTION]) == 0
    lines = capsys.readouterr().out.strip().split("\n")
    assert [line.split(".")[0] for line in lines] == [str(i + 1) for i in range(len(lines))]
    assert len(lines) >= 3
