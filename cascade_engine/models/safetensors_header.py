"""The header of a safetensors file, believed only after every field has been checked.

Layout: 8 bytes little-endian header length, the header as a JSON object, then the tensors' bytes.
"""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any, BinaryIO

from cascade_engine.errors import CheckpointError

MAX_HEADER_BYTES = 100_000_000
LFS_POINTER = b"version "
"""How the text begins that Git leaves in the place of large files; too long for a header."""
MAX_TENSORS = 100_000
MAX_BYTES = 2**63 - 1
# Bits per element of every type that the format knows.
DTYPE_BITS = {
    **dict.fromkeys(("F4",), 4),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 8),
    **dict.fromkeys(("F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 16),
    **dict.fromkeys(("I32", "U32", "F32"), 32),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 64),
}


@dataclasses.dataclass(frozen=True)
class TensorEntry:
    """Where a tensor lies: `offset` and `nbytes` are bytes of the whole file `file`."""

    name: str
    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


def violation(file: Path, where: str, expected: object, found: object) -> CheckpointError:
    return CheckpointError(f"{file}: {where}: expected {expected}, found {found}")


def shown(value: object) -> str:
    """A value of unknown origin, short and on one line."""
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:100]}... ({len(text)} characters)"


def read_header(file: Path) -> dict[str, TensorEntry]:
    """The tensors of one file, by name. Raises CheckpointError at the first violation."""
    if not file.is_file():
        raise violation(file, "file", "a regular file", "none" if not file.exists() else "another")
    try:
        with file.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            data_start, header = _read_bytes(file, stream, size)
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read: {error.strerror}") from None
    items = parse_json_object(file, "header", header)
    metadata = items.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise violation(file, "__metadata__", "an object of strings", shown(metadata))
    if len(items) > MAX_TENSORS:
        raise violation(file, "number of tensors", f"at most {MAX_TENSORS}", len(items))
    data_bytes = size - data_start
    entries = [_entry(file, name, item, data_start, data_bytes) for name, item in items.items()]
    _check_coverage(file, entries, data_start, size)
    return {entry.name: entry for entry in entries}


def _read_bytes(file: Path, stream: BinaryIO, size: int) -> tuple[int, bytes]:
    """Where the data starts, and the header's bytes."""
    if size < 8:
        raise violation(file, "file length", "at least 8 bytes", size)
    first = stream.read(8)
    if first == LFS_POINTER:
        raise violation(file, "file", "weights", "a Git LFS pointer to them (run git lfs pull)")
    length = int.from_bytes(first, "little")
    if length > MAX_HEADER_BYTES:
        raise violation(file, "header length", f"at most {MAX_HEADER_BYTES} bytes", length)
    if length > size - 8:
        raise violation(file, "header length", f"at most {size - 8} (the file's length)", length)
    header = stream.read(length)
    if len(header) != length:
        raise violation(file, "header", f"{length} bytes", f"{len(header)} (is it being written?)")
    if header[:1] != b"{":
        raise violation(file, "header", "'{' as its first byte", shown(header[:1]))
    return 8 + length, header


def parse_json_object(file: Path, where: str, data: bytes) -> dict[str, Any]:
    """A JSON object without duplicate keys at any depth."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            seen: set[str] = set()
            key = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
            raise violation(file, f"{where}: key {shown(key)}", "once", "twice")
        return result

    def no_constant(name: str) -> None:
        raise violation(file, where, "JSON numbers", name)

    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise violation(file, where, "UTF-8", f"an invalid byte at {error.start}") from None
    try:
        value = json.loads(text, object_pairs_hook=unique, parse_constant=no_constant)
    except (ValueError, RecursionError) as error:
        raise violation(file, where, "JSON", f"an error: {error}") from None
    if not isinstance(value, dict):
        raise violation(file, where, "a JSON object", shown(value))
    return value


def _entry(file: Path, name: str, item: Any, data_start: int, data_bytes: int) -> TensorEntry:
    """One checked tensor; `data_bytes` is the length of all tensors' bytes together."""
    where = f"tensor {shown(name)}"
    keys = {"dtype", "shape", "data_offsets"}
    if not isinstance(item, dict) or set(item) != keys:
        found = sorted(item) if isinstance(item, dict) else item
        raise violation(file, where, "dtype, shape and data_offsets", shown(found))
    dtype, shape, offsets = item["dtype"], item["shape"], item["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise violation(file, f"{where}: dtype", "one of " + ", ".join(DTYPE_BITS), shown(dtype))
    if not isinstance(shape, list) or not all(_is_size(value) for value in shape):
        raise violation(file, f"{where}: shape", "integers in [0, 2^63)", shown(shape))
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_size, offsets)):
        raise violation(file, f"{where}: data_offsets", "two integers in [0, 2^63)", shown(offsets))
    bits = DTYPE_BITS[dtype]
    for size in shape:
        bits *= size
        if bits > 8 * MAX_BYTES:
            raise violation(file, f"{where}: size", f"at most {MAX_BYTES} bytes", shown(shape))
    begin, end = offsets
    if not begin <= end <= data_bytes:
        raise violation(file, f"{where}: data_offsets", f"within [0, {data_bytes}]", offsets)
    if bits != 8 * (end - begin):
        expected = f"{bits / 8:.16g} bytes for {dtype} {shape}"
        raise violation(file, f"{where}: data_offsets", expected, f"{end - begin} ({offsets})")
    return TensorEntry(name, file, dtype, tuple(shape), data_start + begin, end - begin)


def _is_size(value: object) -> bool:
    return type(value) is int and 0 <= value <= MAX_BYTES


def _check_coverage(file: Path, entries: list[TensorEntry], start: int, end: int) -> None:
    """Tensors follow each other without overlap or hole and reach the end of the file."""
    position = start
    for entry in sorted(entries, key=lambda e: (e.offset, e.nbytes)):
        if entry.offset != position:
            what = "overlap" if entry.offset < position else "hole"
            where = f"tensor {shown(entry.name)}: begin"
            found = f"{entry.offset - start} ({what})"
            raise violation(file, where, position - start, found)
        position += entry.nbytes
    if position != end:
        raise violation(file, "bytes after the last tensor", 0, end - position)
