"""Table files: safetensors with the arrays of csrc/include/ce/ngram.h and a description.

A table belongs to one tokenizer, whose fingerprint it carries.
"""

from __future__ import annotations

import mmap
import os
import re
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import NamedTuple, Protocol

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from cascade_engine.errors import CheckpointError, RequestError, VocabularyMismatch
from cascade_engine.models.safetensors_header import TensorEntry, read_header
from cascade_engine.ops import NgramTable
from cascade_engine.tables.build import MAX_ORDER, BuiltTable

FORMAT = "cascade_engine n-gram table 1"
TOKEN_ARRAYS = ("token", "successor")
ARRAY_DTYPES = {"total": "U8", "count": "U8", "_base": "U32", "_delta": "U16"}


class HasFingerprint(Protocol):
    """What is needed of a tokenizer."""

    def fingerprint(self) -> str: ...


class TableInfo(NamedTuple):
    """What a table file says of itself. `fingerprint` is its tokenizer's; `tokens` were counted;
    contexts and successors have one number for each order. `command` built it; `doubts` are those
    of the statistical drafter, float[2][2][order] (trees and chains; several successors seen or
    one), empty for the built-in ones."""

    order: int
    vocab_size: int
    block_shift: int
    fingerprint: str
    tokens: int
    min_counts: tuple[int, ...]
    corpus: str
    command: str
    doubts: tuple[float, ...]
    contexts: tuple[int, ...]
    successors: tuple[int, ...]
    nbytes: int


def save_table(
    path: str | PathLike[str],
    table: BuiltTable,
    fingerprint: str,
    corpus: str = "",
    command: str = "",
    doubts: Sequence[float] = (),
) -> None:
    """Writes a table; the file appears complete or not at all. Raises OSError."""
    path = Path(path)
    order = len(table.min_counts)
    metadata = {
        "format": FORMAT,
        "order": str(order),
        "vocab_size": str(table.vocab_size),
        "block_shift": str(table.block_shift),
        "tokenizer": fingerprint,
        "tokens": str(table.tokens),
        "min_counts": ",".join(map(str, table.min_counts)),
        "corpus": corpus,
        "command": command,
        "doubts": ",".join(f"{doubt:.4g}" for doubt in doubts),
    }
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        save_file(table.arrays, partial, metadata)
        partial.chmod(0o644)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def load_table(
    path: str | PathLike[str], tokenizer: HasFingerprint | None, vocab_size: int
) -> NgramTable:
    """Maps a table into memory for models of `vocab_size` tokens and this tokenizer.

    Raises CheckpointError for a damaged file, VocabularyMismatch for another tokenizer's table,
    RequestError where there is no tokenizer to compare with.
    """
    path = Path(path)
    entries = read_header(path)
    info = _info(path, entries)
    if tokenizer is None:
        raise RequestError(
            f"{path} belongs to a tokenizer, and the target's directory has none to compare with;"
            " add tokenizer.model or tokenizer.json to it"
        )
    if tokenizer.fingerprint() != info.fingerprint:
        raise VocabularyMismatch(
            f"{path} was built for another tokenizer (fingerprint {info.fingerprint[:12]}, this"
            f" one has {tokenizer.fingerprint()[:12]}); build one with"
            " `python -m cascade_engine.tables build --tokenizer DIR`"
        )
    if info.vocab_size > vocab_size:
        raise VocabularyMismatch(
            f"{path} has tokens up to {info.vocab_size - 1}, the models share {vocab_size}"
        )
    with path.open("rb") as file:
        view = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    arrays = {e.name: view[e.offset : e.offset + e.nbytes] for e in entries.values()}
    try:
        return NgramTable(info.order, info.vocab_size, info.block_shift, arrays, info.doubts)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from None


def read_info(path: str | PathLike[str]) -> TableInfo:
    """Describes a table file without looking at its arrays. Raises CheckpointError."""
    return _info(Path(path), read_header(Path(path)))


def _info(path: Path, entries: Mapping[str, TensorEntry]) -> TableInfo:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: {error}") from None
    if metadata.get("format") != FORMAT:
        found = metadata.get("format", "no format")
        raise CheckpointError(f"{path}: format: expected {FORMAT!r}, found {found!r}")
    order = _number(path, metadata, "order", 1, MAX_ORDER)
    vocab = _number(path, metadata, "vocab_size", 1, 2**31 - 2)
    _check_arrays(path, entries, order, vocab)
    sizes = {name: entry.shape[0] for name, entry in entries.items()}
    fingerprint = metadata.get("tokenizer", "")
    if not re.fullmatch(r"[0-9a-f]{64}", fingerprint):
        raise CheckpointError(f"{path}: tokenizer: expected a SHA-256, found {fingerprint[:80]!r}")
    least = metadata.get("min_counts", "")
    if not re.fullmatch(r"\d{1,18}(,\d{1,18})*", least) or least.count(",") != order - 1:
        raise CheckpointError(f"{path}: min_counts: expected {order} numbers, found {least[:80]!r}")
    return TableInfo(
        order,
        vocab,
        _number(path, metadata, "block_shift", 0, 16),
        fingerprint,
        _number(path, metadata, "tokens", 0, 2**62),
        tuple(map(int, least.split(","))),
        metadata.get("corpus", ""),
        metadata.get("command", ""),
        _doubts(path, metadata.get("doubts", ""), order),
        tuple(sizes[f"order{n}.total"] for n in range(1, order + 1)),
        tuple(sizes[f"order{n}.count"] for n in range(1, order + 1)),
        sum(entry.nbytes for entry in entries.values()),
    )


def _number(path: Path, metadata: Mapping[str, str], key: str, low: int, high: int) -> int:
    text = metadata.get(key, "nothing")
    if not re.fullmatch(r"\d{1,19}", text) or not low <= int(text) <= high:
        raise CheckpointError(f"{path}: {key}: expected a number in {low}..{high}, found {text!r}")
    return int(text)


def _doubts(path: Path, text: str, order: int) -> tuple[float, ...]:
    numbers = text.split(",") if text else []
    wrong = len(numbers) not in (0, 4 * order)
    if wrong or not all(re.fullmatch(r"\d{1,9}(\.\d{1,9})?", number) for number in numbers):
        raise CheckpointError(
            f"{path}: doubts: expected {4 * order} numbers or none, found {text[:80]!r}"
        )
    return tuple(map(float, numbers))


def _check_arrays(path: Path, entries: Mapping[str, TensorEntry], order: int, vocab: int) -> None:
    """Names, types and dimensions; native code checks the numbers."""
    expected: dict[str, str] = {}
    for n in range(1, order + 1):
        runs = ["successors"] if n == order else ["successors", "children"]
        names = ["total", "count", "successor", *(["token"] if n > 1 else [])]
        names += [run + part for run in runs for part in ("_base", "_delta")]
        for name in names:
            key = name if name in ARRAY_DTYPES else name[name.rfind("_") :]
            wide = "U16" if vocab <= 65536 else "I32"
            expected[f"order{n}.{name}"] = wide if name in TOKEN_ARRAYS else ARRAY_DTYPES[key]
    for name in sorted(expected.keys() | entries.keys()):
        if name not in entries:
            raise CheckpointError(f"{path}: array {name}: expected, found none")
        if name not in expected:
            raise CheckpointError(f"{path}: array {name}: not expected in a table of order {order}")
        entry = entries[name]
        if entry.dtype != expected[name] or len(entry.shape) != 1:
            raise CheckpointError(
                f"{path}: array {name}: expected {expected[name]} of one dimension,"
                f" found {entry.dtype} {list(entry.shape)}"
            )
