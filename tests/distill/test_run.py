"""A tiny target teaches a tinier draft: what is written, resumed and refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")

from cascade_engine import Engine, SamplingParams
from cascade_engine.demo.family import llama_family
from cascade_engine.distill import __main__ as command
from cascade_engine.distill import run as distill_run
from cascade_engine.distill.answers import Answer, Wanted, read_answers, write_answers
from cascade_engine.distill.judge import agreement
from cascade_engine.training.batches import Example

PROMPTS = [f"Question: What is {i} and {i + 1}?" for i in range(12)]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random LLaMA with the embedded models' tokenizer."""
    import transformers

    folder = tmp_path_factory.mktemp("target")
    torch.manual_seed(3)
    config = transformers.LlamaConfig(
        vocab_size=2048,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=128,
        initializer_range=0.3,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=False,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    for name in ("tokenizer.model", "tokenizer_config.json"):
        shutil.copyfile(llama_family().target / name, folder / name)
    return folder


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    file = tmp_path / "prompts.txt"
    file.write_text("\n".join(PROMPTS))
    return file


def distil(target: Path, prompts: Path, out: Path, *extra: str) -> int:
    return command.main(
        [
            *("--target", str(target), "--prompts", str(prompts), "--out", str(out)),
            *("--size", "hidden=32,layers=1,heads=2", "--max-new-tokens", "12", "--rows", "4"),
            *("--batch-tokens", "288", "--threads", "1", "--dtype", "float32", *extra),
        ]
    )


def test_a_draft_is_trained_loaded_and_judged(
    target: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "draft"
    assert distil(target, prompts, out, "--steps", "60", "--held-out", "3") == 0
    report = json.loads((out / "report.json").read_text())
    assert (report["training_answers"], report["held_out_answers"]) == (9, 3)
    assert report["training_tokens"] <= 9 * 12
    found = read_answers(out / "training" / "answers.jsonl")
    judged, learnt = found[:3], found[3:]
    assert [a.held_out for a in found] == [True] * 3 + [False] * 9
    # The answers are the target's own, and it learnt some of them by heart.
    engine = Engine.load(target, [out], threads=1, max_rows=4)
    params = SamplingParams(max_tokens=12)
    texts = [*PROMPTS[-3:], *PROMPTS[:-3]]
    assert [r.token_ids for r in engine.generate(texts, params)] == [a.answer for a in found]
    assert engine.tokenizer is not None
    assert found[3].prompt == engine.tokenizer.encode(PROMPTS[0])
    assert agreement(out, learnt, 1) > 0.2
    assert agreement(out, judged, 1) == report["agreement"]
    assert agreement(target, judged, 1) == 1.0
    for setting in report["cascade"]["settings"].values():
        assert setting["identical"] == 3
    assert "agreement" in capsys.readouterr().out
    assert engine.neural[1].context == distill_run.ROW_TOKENS or engine.neural[1].context == 128


def test_a_stopped_run_goes_on(
    target: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "draft"
    assert distil(target, prompts, out, "--steps", "2") == 0
    assert distil(target, prompts, out, "--steps", "3") == 2
    assert "holds a run: give --resume or another --out" in capsys.readouterr().err
    assert distil(target, prompts, out, "--steps", "3", "--resume", "--seed", "1") == 2
    assert "was begun with seed = 0, now 1" in capsys.readouterr().err
    answers = out / "training" / "answers.jsonl"
    whole = answers.read_text()
    # A stop in the middle of a line: what was whole is kept, the rest is asked again.
    answers.write_text(whole[: len(whole) // 2])
    assert distil(target, prompts, out, "--steps", "3", "--resume") == 0
    assert answers.read_text() == whole
    log = [json.loads(line) for line in (out / "training" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == [2, 3]
    assert log[-1]["tokens"] > log[0]["tokens"]


def test_training_learns_from_the_targets_distribution(target: Path, tmp_path: Path) -> None:
    engine = Engine.load(target, threads=1, max_rows=4)
    wanted = Wanted([[1, 5, 6], [1, 9], [1, 7]], 1, 5, 0.9, 2, 3, 11)
    answers = write_answers(engine, wanted, tmp_path / "a.jsonl", 2)
    assert [a.prompt for a in answers] == [[1, 7], [1, 5, 6], [1, 9], [1, 5, 6], [1, 9]]
    assert [a.held_out for a in answers] == [True, False, False, False, False]
    assert answers[1].answer != answers[3].answer
    assert not answers[0].top
    for answer in answers[1:]:
        assert [len(pairs) for pairs in answer.top] == [3] * len(answer.answer)
    (again,) = engine.generate(
        [[1, 9]], SamplingParams(max_tokens=5, temperature=0.9, seed=11 + 2 + 1)
    )
    assert again.token_ids == answers[4].answer
    assert read_answers(tmp_path / "a.jsonl")[1].answer == answers[1].answer


def test_agreement_counts_the_targets_tokens(target: Path) -> None:
    (result,) = Engine.load(target, threads=1).generate([[1, 9, 30]], SamplingParams(max_tokens=8))
    right = Answer([1, 9, 30], result.token_ids, True)
    wrong = Answer([1, 9, 30], [(t + 1) % 2048 for t in result.token_ids[:1]], True)
    assert agreement(target, [right], 1) == 1.0
    assert agreement(target, [right, wrong], 1) == pytest.approx(8 / 9)


def test_examples_come_in_a_new_order_each_time() -> None:
    examples = [Example([i], [i]) for i in range(20)]
    stream = distill_run.shuffled(examples, 3)
    rounds = [[next(stream).prompt[0] for _ in range(20)] for _ in range(2)]
    assert sorted(rounds[0]) == sorted(rounds[1]) == list(range(20))
    assert rounds[0] != rounds[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--samples", "2"], "--samples 2 at temperature 0 would all be equal"),
        (["--held-out", "12"], "--held-out 12 leaves none of 12 prompts"),
        (["--context", "16"], "no answer fits a context of 16: raise --context"),
    ],
)
def test_what_cannot_be_done_is_named(
    target: Path, prompts: Path, tmp_path: Path, arguments: list[str], message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert distil(target, prompts, tmp_path / "draft", "--steps", "2", *arguments) == 2
    assert message in capsys.readouterr().err
