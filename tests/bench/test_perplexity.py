"""bench.perplexity: windows and scores by hand, a real model's against transformers."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from bench.perplexity import CHARACTERS_PER_TOKEN, Scores, main, windows_of
from cascade_engine.tokenizer import Tokenizer
from tests.bench.conftest import assert_sane
from tests.data import data_path

MODEL = data_path("stories260k")
TEXT = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. "
    "One day, Tom saw a big red ball. He was very happy and ran to his mom to show her the ball. "
)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    found = Tokenizer.load(MODEL)
    assert found is not None
    return found


def test_windows_are_spread_over_the_text(tokenizer: Tokenizer) -> None:
    text = "".join(f"{i:04d} " for i in range(2000))
    windows = windows_of(text, tokenizer, 10, 4)
    taken = CHARACTERS_PER_TOKEN * 10
    starts = [0, len(text) // 4, len(text) // 2, 3 * len(text) // 4]
    assert windows == [tokenizer.encode(text[s : s + taken])[:11] for s in starts]
    assert [len(window) for window in windows] == [11] * 4
    assert len(windows_of(text, tokenizer, 10, 10**6)) == len(text) // taken
    assert windows_of("Tom", tokenizer, 10, 5) == [tokenizer.encode("Tom")]


def test_scores_by_hand() -> None:
    """Breaks when means are taken of perplexities, or of windows of different lengths."""
    even, sure = Scores(), Scores()
    even.add(torch.zeros(3, 8), [1, 2, 3])
    even.add(torch.zeros(1, 8), [7])
    logits = torch.zeros(3, 8)
    logits[0, 1] = math.log(7.0)  # half of the probability
    sure.add(logits, [1, 2, 3])
    sure.add(torch.zeros(1, 8), [7])
    assert even.report(even) == pytest.approx({"perplexity": 8, "over_first": 1, "same_best": 1})
    report = sure.report(even)
    assert report["perplexity"] == pytest.approx((2 * 8**3) ** 0.25)
    assert report["over_first"] == pytest.approx((2 * 8**3) ** 0.25 / 8)
    assert report["same_best"] == 0.75


def test_a_real_model(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """float32 is transformers' perplexity; the others lie near it, int8 apart from bfloat16."""
    text, out = tmp_path / "text.txt", tmp_path / "out.json"
    text.write_text(TEXT * 12)
    arguments = ["--model", str(MODEL), "--text", str(text), "--threads", "1", "--json", str(out)]
    main([*arguments, "--window", "40", "--windows", "3", "--dtypes", "float32,bfloat16,int8"])
    report = json.loads(out.read_text())
    assert_sane(report["results"])
    assert report["window"] == 40
    (result,) = report["results"]
    assert (result["model"], result["text"], result["windows"]) == ("stories260k", "text.txt", 3)
    model, nats = LlamaForCausalLM.from_pretrained(MODEL, dtype=torch.float64), []
    for ids in windows_of(TEXT * 12, tokenizer, 40, 3):
        row = torch.tensor([ids])
        with torch.no_grad():
            nats.append(torch.nn.functional.cross_entropy(model(row).logits[0, :-1], row[0, 1:]))
    assert result["tokens"] == 120
    expected = math.exp(sum(nats) / 3)
    found = result["dtypes"]
    assert found["float32"]["perplexity"] == pytest.approx(expected, rel=1e-4)
    assert found["float32"]["over_first"] == found["float32"]["same_best"] == 1.0
    for name in ("bfloat16", "int8"):
        assert found[name]["over_first"] == pytest.approx(1.0, abs=0.05)
        assert 0.8 < found[name]["same_best"] <= 1.0
        ratio = found[name]["perplexity"] / found["float32"]["perplexity"]
        assert found[name]["over_first"] == pytest.approx(ratio)
    assert len({figures["perplexity"] for figures in found.values()}) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--window", "512"], "--window must be < the context of stories260k, 512"),
        (["--window", "0"], "--window must be >= 1, got 0"),
        (["--dtypes", "float32,int4"], "got 'int4'"),
        (["--text", "/no/such/text"], "/no/such/text"),
        (["--model", str(data_path("tokenizers"))], "tokenizers"),
    ],
)
def test_errors(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text.txt"
    text.write_text(TEXT * 60)
    given = {"--model": str(MODEL), "--text": str(text)} | dict([tuple(options)])
    with pytest.raises(SystemExit) as caught:
        main([item for pair in given.items() for item in pair])
    assert message in f"{caught.value} {capsys.readouterr().err}"
