"""`python -m cascade_engine.info`: figures from headers, errors in one line."""

from __future__ import annotations

import importlib
import json
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from cascade_engine import build_info
from cascade_engine.info import as_text, collect
from cascade_engine.info.__main__ import main
from cascade_engine.models.config import load_config
from cascade_engine.ops import CpuBackend, ceilings
from cascade_engine.policy import expected
from tests.data import data_path
from tests.models.support import random_llama, random_t5

collecting = importlib.import_module("cascade_engine.info.collect")

SEVEN_BILLION = {
    "model_type": "llama",
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "torch_dtype": "float16",
}


@pytest.fixture(autouse=True)
def short_measurements(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceilings, "SECONDS", 0.02)
    monkeypatch.setattr(ceilings, "READ_BYTES", 8 << 20)


def headers_alone(directory: Path, config: dict[str, Any]) -> Path:
    """A model directory whose weights are a hole in a file."""
    (directory / "config.json").write_text(json.dumps(config))
    header, offset = {}, 0
    for name, shape in load_config(directory).tensor_shapes().items():
        size = 2 * torch.Size(shape).numel()
        header[name] = {
            "dtype": "F16",
            "shape": list(shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    data = json.dumps(header).encode()
    with (directory / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(data)) + data)
        file.truncate(8 + len(data) + offset)
    return directory


def test_a_large_model_from_its_headers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = headers_alone(tmp_path, SEVEN_BILLION)
    monkeypatch.setattr(collecting, "available_memory", lambda: 20 << 30)
    report = collect([str(directory)], dtype="bfloat16")
    model = report["models"][0]
    assert model["parameters"] == 6_738_415_616  # LLaMA-2 7B
    assert model["file_bytes"] == {"F16": 2 * 6_738_415_616}
    assert model["cache_bytes_per_token"] == 524_288
    assert model["cache_bytes_full"] == 4096 * 524_288
    assert report["memory"]["fits"]
    one = model["passes"][0]
    assert one["flops"] / 2 == pytest.approx(6.6e9, rel=0.05)
    assert model["compressed"] == (build_info()["cpu_default"] not in ("portable", "avx2"))
    assert one["bytes"] == pytest.approx(10e9 if model["compressed"] else 13.2e9, rel=0.05)
    assert not collect([str(directory)], dtype="float32")["memory"]["fits"]
    assert "DOES NOT FIT" in as_text(collect([str(directory)]))  # float16 becomes float32
    assert collect([str(directory)])["models"][0]["dtype"] == "float32"


def test_the_cache_must_fit_beside_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = collect([str(data_path("stories260k"))])["memory"]
    needed = memory["weight_bytes"] + memory["cache_bytes"]
    for available, fits in ((needed, True), (needed - 1, False)):
        monkeypatch.setattr(collecting, "available_memory", lambda size=available: size)
        assert collect([str(data_path("stories260k"))])["memory"]["fits"] is fits


def test_a_tied_head_that_is_stored_too(tmp_path: Path) -> None:
    """It counts in the files, not among the parameters."""
    random_llama(tmp_path, 3, tie_word_embeddings=True)
    tensors = load_file(tmp_path / "model.safetensors")
    once = collect([str(tmp_path)])["models"][0]
    table = tensors["model.embed_tokens.weight"]
    save_file({**tensors, "lm_head.weight": table.clone()}, tmp_path / "model.safetensors")
    twice = collect([str(tmp_path)])["models"][0]
    assert twice["parameters"] == once["parameters"]
    assert twice["file_bytes"]["F32"] == once["file_bytes"]["F32"] + 4 * table.numel()


def test_predictions_follow_from_measurements() -> None:
    report = collect([str(data_path("stories260k"))], threads=1, cached=100)
    model = report["models"][0]
    read, rate = (model["per_second"][key]["rate"] for key in ("read_bytes", "multiply_adds"))
    assert read > 1e8
    assert rate > 1e8
    for one in model["passes"]:
        assert one["seconds"] == max(one["bytes"] / read, one["flops"] / 2 / rate)
    assert {1, 2, 4, 8, 16, 32, 64} <= {one["tokens"] for one in model["passes"]}
    assert report["machine"]["threads"] == 1
    assert report["cached_tokens"] == 100


def test_a_draft_and_what_it_gains() -> None:
    target, draft = str(data_path("stories260k")), str(data_path("llama2xs"))
    report = collect([target, draft])
    seconds = [
        {one["tokens"]: one["seconds"] for one in model["passes"]} for model in report["models"]
    ]
    ratio = seconds[1][1] / seconds[0][1]
    found = report["drafts"][0]
    assert found["cost_ratio"] == ratio
    assert found["vocabulary_problem"] is None
    for gain, alone in zip(found["gain"], report["statistical"]["gain"], strict=True):
        a, d = gain["acceptance"], gain["drafted"]
        assert gain["tokens_per_pass"] == expected.expected_tokens(a, d)
        assert gain["ewif"] == expected.walltime_improvement(a, d, ratio)
        here = [
            expected.walltime_improvement(a, n, ratio, seconds[0][n + 1] / seconds[0][1])
            for n in range(1, 17)
        ]
        assert gain["here"] == max(here) == here[d - 1]
        review = seconds[1][11] / seconds[0][1]
        cascades = [expected.cascade_improvement(a, n, 0.5, 10, review) for n in range(1, 17)]
        assert gain["cascade"] == max(cascades)
        assert "cascade" not in alone
        assert alone["ewif"] == expected.expected_tokens(a, alone["drafted"])
    both = report["memory"]
    assert both["weight_bytes"] == sum(model["loaded_bytes"] for model in report["models"])
    per_token = [model["cache_bytes_per_token"] for model in report["models"]]
    assert both["cache_bytes"] == 512 * sum(per_token)


def test_the_text_says_how_each_figure_came_about(capsys: pytest.CaptureFixture[str]) -> None:
    paths = [str(data_path("stories260k")), str(data_path("llama2xs"))]
    assert main(paths) == 0
    text = capsys.readouterr().out
    for word in ("260,032", "1.04 MB F32", "1.28 kB", "counted:", "measured:", "predicted", "EWIF"):
        assert word in text
    assert "fits" in text
    assert "draft llama2xs: cost ratio c = " in text
    assert max(map(len, text.split("\n\n")[0].splitlines())) < 120
    assert main([*paths, "--json", "--dtype", "bfloat16"]) == 0
    assert json.loads(capsys.readouterr().out)["models"][0]["dtype"] == "bfloat16"


def test_a_draft_of_another_vocabulary_is_named(tmp_path: Path) -> None:
    random_llama(tmp_path, 1, vocab_size=512)
    report = collect([str(data_path("stories260k")), str(tmp_path)])
    assert report["drafts"][0]["vocabulary_problem"] is None
    other = tmp_path / "other"
    other.mkdir()
    random_llama(other, 1, vocab_size=32000)
    shutil.copy(data_path("tokenizers", "llama", "tokenizer.model"), other)
    report = collect([str(data_path("stories260k")), str(other)])
    assert "token 259 is" in report["drafts"][0]["vocabulary_problem"]
    assert "NOT USABLE as a draft: token 259" in as_text(report)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["nowhere"], "nowhere is not a directory"),
        (["{empty}"], "has no config.json"),
        (["{model}", "--dtype", "int4"], "dtype must be"),
        (["{model}", "--threads", "0"], "threads must be an integer >= 1, got 0"),
        (["{model}", "--cached", "-1"], "--cached must be >= 0, got -1"),
        (["{broken}"], "bytes after the last tensor: expected 0, found 1"),
    ],
)
def test_errors_are_one_line(
    arguments: list[str], match: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(data_path("stories260k"), broken)
    with (broken / "model.safetensors").open("ab") as file:
        file.write(b"x")
    places = {"model": data_path("stories260k"), "empty": tmp_path, "broken": broken}
    assert main([argument.format(**places) for argument in arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert match in err
    assert err.count("\n") == 1


def test_ceilings_are_plausible() -> None:
    backend = CpuBackend(1)
    read = ceilings.read_bandwidth(backend, 4 << 20)
    assert read.runs >= 3
    assert 1e8 < read.rate < 1e13
    for dtype in (torch.float32, torch.bfloat16, torch.int8):
        assert 1e7 < ceilings.multiply_rate(backend, dtype).rate < 1e14
    assert ceilings.packed_bytes(33, 5, torch.bfloat16) == 64 * 6 * 2
    assert ceilings.packed_bytes(32, 5, torch.float32) == 32 * 5 * 4
    assert ceilings.packed_bytes(33, 5, torch.int8) == 64 * 6 + 64 * 4


def test_available_memory_is_that_of_the_machine() -> None:
    total = int(Path("/proc/meminfo").read_text().split()[1]) * 1024
    assert 0 < collecting.available_memory() <= total


def test_an_encoder_decoder(tmp_path: Path) -> None:
    """Its passes are the decoder's; input and output share the cache's tokens."""
    for seed in (0, 1):
        random_t5(tmp_path / str(seed), seed, vocab_size=97, num_decoder_layers=2, num_heads=3)
    report = collect([str(tmp_path / "0"), str(tmp_path / "1")], dtype="float32", threads=1)
    model = report["models"][0]
    config = json.loads((tmp_path / "0" / "config.json").read_text())
    assert model["cache_bytes_per_token"] == 2 * 2 * 3 * config["d_kv"] * 4
    assert model["context"] == 1024
    assert report["drafts"][0]["vocabulary_problem"] is None
    assert model["passes"][0]["tokens"] == 1
    assert "1024" in as_text(report).replace(",", "")
