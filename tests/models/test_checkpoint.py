"""Weights in files: read exactly, and refused where they are not the model's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from cascade_engine.errors import CheckpointError
from cascade_engine.models.checkpoint import Checkpoint
from cascade_engine.models.config import load_config
from tests.data import data_path
from tests.models.support import raw_file


def save(directory: Path, tensors: dict[str, torch.Tensor]) -> Checkpoint:
    from safetensors.torch import save_file

    save_file(tensors, directory / "model.safetensors")
    return Checkpoint.open(directory)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"w": (3, 4)}, "tensor 'x': expected no such tensor in this model, found F16 [5]"),
        ({"w": (3, 4), "x": (5,), "y": (1,)}, "tensor 'y': expected shape [1], found nothing"),
        ({"w": (4, 3), "x": (5,)}, "tensor 'w': expected shape [4, 3], found F32 [3, 4]"),
        ({"w": (12,), "x": (5,)}, "tensor 'w': expected shape [12], found F32 [3, 4]"),
    ],
)
def test_expect_refuses(tmp_path: Path, shapes: Any, message: str) -> None:
    checkpoint = save(tmp_path, {"w": torch.ones(3, 4), "x": torch.ones(5, dtype=torch.half)})
    checkpoint.expect({"w": (3, 4), "x": (5,)})
    with pytest.raises(CheckpointError) as caught:
        checkpoint.expect(shapes)
    assert message in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_a_pointer_of_git_lfs_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(CheckpointError, match=r"found a Git LFS pointer .*run git lfs pull"):
        Checkpoint.open(tmp_path)


def test_expect_refuses_integers(tmp_path: Path) -> None:
    checkpoint = save(tmp_path, {"w": torch.ones(3, 4, dtype=torch.int8)})
    with pytest.raises(CheckpointError, match=r"expected dtype F32 or F16 or BF16, found I8 \[3,"):
        checkpoint.expect({"w": (3, 4)})
    with pytest.raises(CheckpointError, match="dtype: expected F32 or F16 or BF16, found I8"):
        checkpoint.tensor("w")


def test_expect_ignores_rotary_frequencies_only(tmp_path: Path) -> None:
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    save(tmp_path, {"w": torch.ones(3), name: torch.ones(4)}).expect({"w": (3,)})
    checkpoint = save(tmp_path, {"w": torch.ones(3), name + "s": torch.ones(4)})
    with pytest.raises(CheckpointError, match="expected no such tensor"):
        checkpoint.expect({"w": (3,)})


def test_expect_takes_a_tied_tensor_only_when_equal(tmp_path: Path) -> None:
    embedding = torch.randn(50, 16)
    tied = {"lm_head.weight": "embed"}
    shapes = {"embed": (50, 16)}
    assert load_config(data_path("stories260k")).tied_tensors() == {
        "lm_head.weight": "model.embed_tokens.weight"
    }
    save(tmp_path, {"embed": embedding, "lm_head.weight": embedding.clone()}).expect(shapes, tied)
    other = embedding.clone()
    other[49, 15] += 1
    for head in (other, embedding.double(), embedding.T.contiguous(), embedding.bfloat16()):
        checkpoint = save(tmp_path, {"embed": embedding, "lm_head.weight": head})
        with pytest.raises(CheckpointError, match=r"lm_head\.weight': expected"):
            checkpoint.expect(shapes, tied)
    equal = save(tmp_path, {"embed": embedding, "lm_head.weight": embedding.clone()})
    with pytest.raises(CheckpointError, match="no such tensor"):
        equal.expect(shapes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_tensor_values(tmp_path: Path, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(5)
    tensors = {
        "large": torch.randn(300, 257, generator=generator).to(dtype),
        "small": torch.randn(7, 3, generator=generator).to(dtype),
        "scalar": torch.randn((), generator=generator).to(dtype),
        "empty": torch.empty(0, 4, dtype=dtype),
        "long": torch.randn(100_001, generator=generator).to(dtype),
    }
    checkpoint = save(tmp_path, tensors)
    for name, expected in tensors.items():
        actual = checkpoint.tensor(name)
        assert actual.dtype == dtype
        assert actual.shape == expected.shape
        assert torch.equal(actual, expected)
        parts = list(checkpoint.slices(name, max_bytes=50_000))
        if expected.dim():
            assert torch.equal(torch.cat([part for _, part in parts] or [expected]), expected)
            assert [first for first, _ in parts] == [
                sum(len(part) for _, part in parts[:i]) for i in range(len(parts))
            ]
    assert len(list(checkpoint.slices("large", max_bytes=50_000))) > 1
    assert torch.equal(checkpoint.tensor("large", 17, 200), tensors["large"][17:200])
    with pytest.raises(ValueError, match=r"rows 5\.\.301 of large must be within 0\.\.300"):
        checkpoint.tensor("large", 5, 301)
    assert sum(checkpoint.bytes_by_dtype().values()) == checkpoint.nbytes()


def test_tensor_at_an_odd_offset(tmp_path: Path) -> None:
    """The format promises no alignment."""
    values = torch.randn(40_000)
    header = {"pad": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}
    header["w"] = {"dtype": "F32", "shape": [40_000], "data_offsets": [1, 160_001]}
    for spaces in range(4):
        data = b"\0" + values.numpy().tobytes()
        raw_file(tmp_path / "model.safetensors", json.dumps(header).encode() + b" " * spaces, data)
        tensor = Checkpoint.open(tmp_path).tensor("w")
        assert tensor.data_ptr() % 4 == 0
        assert torch.equal(tensor, values)


def test_writing_to_a_tensor_leaves_the_file(tmp_path: Path) -> None:
    checkpoint = save(tmp_path, {"w": torch.ones(100, 1000)})
    tensor = checkpoint.tensor("w")
    tensor.zero_()
    assert torch.equal(checkpoint.tensor("w"), torch.ones(100, 1000))
    checkpoint.release("w")
    assert torch.equal(tensor, torch.ones(100, 1000))


def test_file_cut_after_opening(tmp_path: Path) -> None:
    checkpoint = save(tmp_path, {"w": torch.ones(100, 1000)})
    os.truncate(tmp_path / "model.safetensors", 300_000)
    with pytest.raises(CheckpointError, match=r"tensor 'w': expected bytes to \d+, found 300000"):
        checkpoint.tensor("w")


def test_shards_as_transformers_writes_them(tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    settings: dict[str, Any] = {
        "vocab_size": 90,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "attention_bias": True,
    }
    for tie in (False, True):
        model = LlamaForCausalLM(LlamaConfig(tie_word_embeddings=tie, **settings))
        directory = tmp_path / str(tie)
        model.save_pretrained(directory, max_shard_size="20KB")
        assert len(list(directory.glob("*.safetensors"))) > 2
        config = load_config(directory)
        checkpoint = Checkpoint.open(directory)
        checkpoint.expect(config.tensor_shapes(), config.tied_tensors())
        for name, parameter in model.named_parameters():
            assert torch.equal(checkpoint.tensor(name), parameter)


@pytest.mark.parametrize("name", ["stories260k", "llama2xs"])
def test_real_checkpoints(name: str) -> None:
    directory = data_path(name)
    checkpoint = Checkpoint.open(directory)
    checkpoint.expect(load_config(directory).tensor_shapes())
    assert checkpoint.bytes_by_dtype() == {"F32": checkpoint.nbytes()}


MEASURE = """
import sys, torch
from cascade_engine.models.checkpoint import Checkpoint
checkpoint = Checkpoint.open(sys.argv[1])
torch.ones(1 << 20).clone().copy_(torch.ones(1 << 20))
def kilobytes(field):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))
open("/proc/self/clear_refs", "w").write("5")  # the peak starts anew
before = kilobytes("VmRSS")
kept = []
for name, entry in checkpoint.entries.items():
    # A large tensor taken whole must come early; in slices it may come last.
    if sys.argv[2] == "slices":
        copy = torch.empty(entry.shape, dtype=torch.bfloat16)
        for first, rows in checkpoint.slices(name):
            copy[first : first + len(rows)] = rows
    else:
        copy = checkpoint.tensor(name).clone()
        checkpoint.release(name)
    kept.append(copy)
print((kilobytes("VmHWM") - before) * 1024 / checkpoint.nbytes())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("how", ["whole", "slices"])
def test_peak_memory_while_converting(tmp_path: Path, how: str) -> None:
    """Of a model of 268 MB, mapped pages counted. The file is sparse; its pages count the same."""
    shapes = {"embed": [32000, 768]}
    if how == "whole":
        shapes["head"] = [32000, 768]
    for layer in range(12):
        shapes.update({f"{layer}.{name}": [768, 768] for name in "qkvo"})
        shapes.update({f"{layer}.{name}": [2048, 768] for name in ("gate", "up", "down")})
    shapes["head"] = [32000, 768]
    header, position = {}, 0
    for name, shape in shapes.items():
        end = position + shape[0] * shape[1] * 2
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [position, end]}
        position = end
    assert position > 200_000_000
    file = tmp_path / "model.safetensors"
    raw_file(file, json.dumps(header).encode(), b"")
    os.truncate(file, file.stat().st_size + position)
    command = [sys.executable, "-c", MEASURE, str(tmp_path), how]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    ratio = float(result.stdout)
    print(f"peak growth {ratio:.3f} x the weights ({how})")
    assert 0.95 < ratio <= 1.15
