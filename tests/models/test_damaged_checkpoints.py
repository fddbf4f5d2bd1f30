"""Weight files that are not as they must be: refused at the first violation, which is named."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cascade_engine.errors import CheckpointError
from cascade_engine.models import safetensors_header
from cascade_engine.models.checkpoint import Checkpoint
from tests.models.support import raw_file

Header = dict[str, Any]
A = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}
B = {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]}


def build(path: Path, header: Header, data: bytes = bytes(32)) -> None:
    raw_file(path, json.dumps(header).encode(), data)


def sharded(root: Path, weight_map: Any, shards: dict[str, Header]) -> None:
    (root / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    for name, header in shards.items():
        size = max((item["data_offsets"][1] for item in header.values()), default=0)
        build(root / name, header, bytes(size))


# Damaged single files: (what writes the file, the message after the file's name).
DAMAGED: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (lambda f: f.write_bytes(b""), "file length: expected at least 8 bytes, found 0"),
    "seven bytes": (lambda f: f.write_bytes(b"1234567"), "expected at least 8 bytes, found 7"),
    "length over the cap": (
        lambda f: raw_file(f, b"{}", b"", 2**63),
        "header length: expected at most 100000000 bytes, found 9223372036854775808",
    ),
    "length over the file": (
        lambda f: raw_file(f, b"{}", b"", 3),
        "header length: expected at most 2 (the file's length), found 3",
    ),
    "length zero": (lambda f: raw_file(f, b"", b""), "header: expected '{' as its first byte"),
    "leading space": (lambda f: raw_file(f, b" {}", b""), "expected '{' as its first byte"),
    "not utf-8": (
        lambda f: raw_file(f, b'{"a\xff":1}', b""),
        "header: expected UTF-8, found an invalid byte at 3",
    ),
    "not json": (lambda f: raw_file(f, b'{"a":', b""), "header: expected JSON, found an error"),
    "nested too deep": (
        lambda f: raw_file(f, b'{"a":' + b"[" * 200_000, b""),
        "header: expected JSON, found an error",
    ),
    "number too long": (
        lambda f: raw_file(f, b'{"a":' + b"1" * 10_000 + b"}", b""),
        "header: expected JSON, found an error",
    ),
    "not a number": (lambda f: raw_file(f, b'{"a":NaN}', b""), "expected JSON numbers, found NaN"),
    "duplicate tensor": (
        lambda f: raw_file(f, b'{"a":%s,"a":%s}' % ((json.dumps(A).encode(),) * 2), bytes(24)),
        "header: key 'a': expected once, found twice",
    ),
    "duplicate field": (
        lambda f: raw_file(f, b'{"a":{"dtype":"F32","dtype":"F16"}}', b""),
        "header: key 'dtype': expected once, found twice",
    ),
    "metadata not strings": (
        lambda f: build(f, {"__metadata__": {"n": 1}}, b""),
        "__metadata__: expected an object of strings, found {'n': 1}",
    ),
    "entry not an object": (
        lambda f: build(f, {"a": [1]}),
        "tensor 'a': expected dtype, shape and data_offsets, found [1]",
    ),
    "field missing": (
        lambda f: build(f, {"a": {"dtype": "F32", "shape": [8]}}),
        "tensor 'a': expected dtype, shape and data_offsets, found ['dtype', 'shape']",
    ),
    "field unknown": (lambda f: build(f, {"a": {**A, "x": 1}}), "'x']"),
    "dtype unknown": (
        lambda f: build(f, {"a": {**A, "dtype": "F31"}}),
        "tensor 'a': dtype: expected one of F4, ",
    ),
    "dtype not a string": (lambda f: build(f, {"a": {**A, "dtype": {}}}), "found {}"),
    "shape negative": (
        lambda f: build(f, {"a": {**A, "shape": [-2, -3]}}),
        "tensor 'a': shape: expected integers in [0, 2^63), found [-2, -3]",
    ),
    "shape not integers": (lambda f: build(f, {"a": {**A, "shape": [2.0, 3]}}), "found [2.0, 3]"),
    "shape boolean": (lambda f: build(f, {"a": {**A, "shape": [True, 6]}}), "found [True, 6]"),
    "shape not a list": (lambda f: build(f, {"a": {**A, "shape": 6}}), "found 6"),
    "size overflows": (
        lambda f: build(f, {"a": {**A, "shape": [2**32, 2**31]}}),
        "tensor 'a': size: expected at most 9223372036854775807 bytes, found [4294967296, ",
    ),
    "size overflows before a zero": (
        lambda f: build(f, {"a": {**A, "shape": [2**62, 2**62, 0], "data_offsets": [0, 0]}}, b""),
        "tensor 'a': size: expected at most",
    ),
    "offsets not two": (
        lambda f: build(f, {"a": {**A, "data_offsets": [0]}}),
        "tensor 'a': data_offsets: expected two integers in [0, 2^63), found [0]",
    ),
    "offsets negative": (lambda f: build(f, {"a": {**A, "data_offsets": [-24, 0]}}), "found [-24"),
    "offsets reversed": (
        lambda f: build(f, {"a": {**A, "data_offsets": [24, 0]}}),
        "tensor 'a': data_offsets: expected within [0, 32], found [24, 0]",
    ),
    "offsets past the file": (
        lambda f: build(f, {"a": {**A, "data_offsets": [16, 40]}}),
        "tensor 'a': data_offsets: expected within [0, 32], found [16, 40]",
    ),
    "truncated data": (
        lambda f: build(f, {"a": A, "b": B}, bytes(31)),
        "tensor 'b': data_offsets: expected within [0, 31], found [24, 32]",
    ),
    "size and offsets differ": (
        lambda f: build(f, {"a": {**A, "shape": [2, 2]}}, bytes(24)),
        "tensor 'a': data_offsets: expected 16 bytes for F32 [2, 2], found 24 ([0, 24])",
    ),
    "overlap": (
        lambda f: build(f, {"a": A, "b": {**B, "data_offsets": [20, 28]}}, bytes(28)),
        "tensor 'b': begin: expected 24, found 20 (overlap)",
    ),
    "hole": (
        lambda f: build(f, {"a": A, "b": {**B, "data_offsets": [26, 34]}}, bytes(34)),
        "tensor 'b': begin: expected 24, found 26 (hole)",
    ),
    "hole at the start": (
        lambda f: build(f, {"a": {**A, "data_offsets": [8, 32]}}),
        "tensor 'a': begin: expected 0, found 8 (hole)",
    ),
    "bytes left over": (
        lambda f: build(f, {"a": A}),
        "bytes after the last tensor: expected 0, found 8",
    ),
    "a directory": (lambda f: f.mkdir(), "file: expected a regular file, found another"),
    "a pipe": (lambda f: os.mkfifo(f), "file: expected a regular file, found another"),
    "a broken link": (
        lambda f: f.symlink_to("nowhere.safetensors"),
        "file: expected a regular file, found none",
    ),
    "a link out": (lambda f: f.symlink_to("/etc/hostname"), "link target: expected a file in "),
}


@pytest.mark.parametrize(("write", "message"), DAMAGED.values(), ids=DAMAGED.keys())
def test_damaged_file(tmp_path: Path, write: Callable[[Path], object], message: str) -> None:
    file = tmp_path / "model.safetensors"
    write(file)
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(tmp_path)
    text = str(caught.value)
    assert message in text
    assert text.startswith(f"{file}: ")
    assert "\n" not in text
    assert len(text) < 600 + len(str(tmp_path)) * 2


S1, S2 = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
B0 = {**B, "data_offsets": [0, 8]}
DAMAGED_SHARDS: dict[str, tuple[Any, dict[str, Header], str]] = {
    "no weight_map": (None, {}, "weight_map: expected an object of tensor and file names"),
    "empty weight_map": ({}, {}, "weight_map: expected an object"),
    "shard missing": ({"a": S1, "b": S2}, {S1: {"a": A}}, f"{S2}: file: expected a regular file"),
    "shard not a string": ({"a": 7}, {}, "tensor 'a': expected a .safetensors file, found 7"),
    "shard of another kind": ({"a": "a.bin"}, {}, "expected a .safetensors file, found 'a.bin'"),
    "parent directory": ({"a": "../x.safetensors"}, {}, "shard name: expected a file name in"),
    "absolute": ({"a": "/tmp/x.safetensors"}, {}, "found '/tmp/x.safetensors'"),
    "backslash": ({"a": "..\\x.safetensors"}, {}, "shard name: expected a file name in"),
    "null character": ({"a": "x\0.safetensors"}, {}, "shard name: expected a file name in"),
    "tensor elsewhere": (
        {"a": S2, "b": S2},
        {S1: {"a": A}, S2: {"b": B0}},
        "tensor 'a': expected it here (index), found nothing",
    ),
    "tensor in both": (
        {"a": S1, "b": S2},
        {S1: {"a": A}, S2: {"b": B0, "a": {**A, "data_offsets": [8, 32]}}},
        f"{S2}: tensor 'a': expected in {S1} (index), found it here",
    ),
    "tensor not in the index": (
        {"a": S1},
        {S1: {"a": A, "b": B}},
        f"{S1}: tensor 'b': expected in no shard (index), found it here",
    ),
    "damaged shard": (
        {"a": S1, "b": S2},
        {S1: {"a": A}, S2: {"b": {**B0, "dtype": "F32"}}},
        f"{S2}: tensor 'b': data_offsets: expected 16 bytes",
    ),
}


@pytest.mark.parametrize(
    ("weight_map", "shards", "message"), DAMAGED_SHARDS.values(), ids=DAMAGED_SHARDS.keys()
)
def test_damaged_shards(
    tmp_path: Path, weight_map: Any, shards: dict[str, Header], message: str
) -> None:
    sharded(tmp_path, weight_map, shards)
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(tmp_path)
    assert message in str(caught.value)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "file length: expected 1 to 100000000 bytes, found 0"),
        (b"[]", "index: expected a JSON object, found []"),
        (b'{"weight_map": {"a": "x", "a": "y"}}', "index: key 'a': expected once, found twice"),
        (b"\xff", "index: expected UTF-8, found an invalid byte at 0"),
    ],
)
def test_damaged_index(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(tmp_path)
    assert message in str(caught.value)


def test_too_many_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert safetensors_header.MAX_TENSORS == 100_000
    empty = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    build(tmp_path / "model.safetensors", {f"t{i}": empty for i in range(100_000)}, b"")
    assert len(Checkpoint.open(tmp_path).entries) == 100_000
    build(tmp_path / "model.safetensors", {f"t{i}": empty for i in range(100_001)}, b"")
    with pytest.raises(CheckpointError, match="number of tensors: expected at most 100000, found"):
        Checkpoint.open(tmp_path)


def test_shard_behind_a_link(tmp_path: Path) -> None:
    """A link may stay in the directory, or go to the blobs of a Hugging Face cache."""
    blobs, snapshot = tmp_path / "m" / "blobs", tmp_path / "m" / "snapshots" / "c0ffee"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    build(blobs / "0123", {"a": A, "b": B})
    (snapshot / "model.safetensors").symlink_to("../../blobs/0123")
    assert set(Checkpoint.open(snapshot).entries) == {"a", "b"}
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    here.mkdir()
    elsewhere.mkdir()
    build(elsewhere / "x.safetensors", {"a": A, "b": B})
    (here / "x.safetensors").symlink_to(elsewhere / "x.safetensors")
    sharded(here, {"a": "x.safetensors", "b": "x.safetensors"}, {})
    with pytest.raises(CheckpointError, match="link target: expected a file in"):
        Checkpoint.open(here)
    (tmp_path / "link").symlink_to(elsewhere)
    (elsewhere / "model.safetensors").symlink_to("x.safetensors")
    assert set(Checkpoint.open(tmp_path / "link").entries) == {"a", "b"}


def test_directories_without_weights(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is not a directory"):
        Checkpoint.open(tmp_path / "nothing")
    with pytest.raises(
        CheckpointError, match=r"expected model\.safetensors or .* found no weights"
    ):
        Checkpoint.open(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin \(convert to safetensors\)"):
        Checkpoint.open(tmp_path)
