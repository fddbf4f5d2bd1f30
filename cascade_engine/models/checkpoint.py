"""Weights in safetensors files: checked before use, then mapped one tensor at a time.

A tensor's pages stay mapped for as long as the tensor (or a view of it) lives. Whoever converts
weights takes them in turn, large ones in `slices`, so that at no time much more than the
converted copy is in memory.
"""

from __future__ import annotations

import mmap
import os
import re
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch

from cascade_engine.errors import CheckpointError
from cascade_engine.models.safetensors_header import (
    MAX_TENSORS,
    TensorEntry,
    parse_json_object,
    read_header,
    shown,
    violation,
)

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
MAX_INDEX_BYTES = 100_000_000
WEIGHT_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
# What older exports saved beside the weights: buffers that are computed from the configuration, and
# a bias table of T5 that its cross-attention never reads.
IGNORED_TENSORS = re.compile(
    r"(^|\.)rotary_emb\.inv_freq$"
    r"|^decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight$"
)
# Smaller tensors are read: a mapping costs a file descriptor and a page at each end.
MIN_MAPPED_BYTES = 1 << 16
SLICE_BYTES = 4 << 20


class Checkpoint:
    """The tensors of a model directory, as its files' headers describe them."""

    def __init__(self, directory: Path, entries: Mapping[str, TensorEntry]) -> None:
        self.directory = directory
        self.entries = dict(entries)
        self._mapped: dict[str, weakref.WeakSet[mmap.mmap]] = {}

    @classmethod
    def open(cls, directory: str | Path) -> Checkpoint:
        """Reads and checks the headers of `directory`'s weight files. Raises CheckpointError.

        model.safetensors is taken where both it and an index are there, as in transformers.
        """
        root = Path(directory)
        if not root.is_dir():
            raise CheckpointError(f"{root} is not a directory; name a Hugging Face model directory")
        if _exists(root / SINGLE_FILE):
            return cls(root, read_header(_inside(root, SINGLE_FILE, root / SINGLE_FILE)))
        if _exists(root / INDEX_FILE):
            return cls(root, _read_shards(root))
        others = sorted(
            p.name for p in root.iterdir() if p.suffix in (".bin", ".safetensors", ".pth", ".gguf")
        )
        found = f"{', '.join(others[:3])} (convert to safetensors)" if others else "no weights"
        raise violation(root, "weights", f"{SINGLE_FILE} or {INDEX_FILE}", found)

    def expect(
        self, shapes: Mapping[str, Sequence[int]], tied: Mapping[str, str] | None = None
    ) -> None:
        """Checks that the checkpoint holds exactly these tensors, each of a float dtype.

        Left-overs of older exports are ignored. `tied` names tensors that the model computes from
        another (lm_head.weight from the embedding): they may be there as well, with the same bytes.
        Raises CheckpointError.
        """
        for name, shape in shapes.items():
            self._check_weight(name, tuple(shape))
        for name, entry in self.entries.items():
            if name in shapes or IGNORED_TENSORS.search(name):
                continue
            source = (tied or {}).get(name)
            if source is None:
                where = f"tensor {shown(name)}"
                raise violation(entry.file, where, "no such tensor in this model", _found(entry))
            self._check_weight(name, self.entries[source].shape)
            self._check_same_bytes(name, source)

    def tensor(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """Rows start..stop of a float tensor, mapped and not copied (small ones are read).

        The mapping is private: writing to the tensor does not reach the file.
        """
        entry = self.entries.get(name)
        if entry is None:
            raise violation(self.directory, f"tensor {shown(name)}", "present", "nothing")
        if entry.dtype not in WEIGHT_DTYPES:
            expected = " or ".join(WEIGHT_DTYPES)
            raise violation(entry.file, f"tensor {shown(name)}: dtype", expected, entry.dtype)
        rows = entry.shape[0] if entry.shape else 1
        stop = rows if stop is None else stop
        if not 0 <= start <= stop <= rows:
            raise ValueError(f"rows {start}..{stop} of {name} must be within 0..{rows}")
        shape = (stop - start, *entry.shape[1:]) if entry.shape else ()
        row_bytes = entry.nbytes // rows if rows else 0
        buffer, skipped = _bytes_of(
            entry, entry.offset + start * row_bytes, (stop - start) * row_bytes
        )
        dtype = WEIGHT_DTYPES[entry.dtype]
        if isinstance(buffer, mmap.mmap):
            self._mapped.setdefault(name, weakref.WeakSet()).add(buffer)
        if buffer is None:
            return torch.empty(shape, dtype=dtype)
        count = (stop - start) * row_bytes // dtype.itemsize
        return torch.frombuffer(buffer, dtype=dtype, count=count, offset=skipped).view(shape)

    def slices(self, name: str, max_bytes: int = SLICE_BYTES) -> Iterator[tuple[int, torch.Tensor]]:
        """A tensor as (first row, rows), each mapped by itself and of at most `max_bytes`
        (but at least one row)."""
        entry = self.entries[name]
        rows = entry.shape[0] if entry.shape else 1
        step = max(1, max_bytes * rows // max(entry.nbytes, 1))
        for start in range(0, rows, step):
            yield start, self.tensor(name, start, min(start + step, rows))

    def release(self, name: str) -> None:
        """Gives back the memory of mappings of `name` that are still alive.

        A mapping ends with its last tensor; this is for a caller that still holds one. Reading
        such a tensor again reads the file again (and what was written to it is gone).
        """
        for mapped in self._mapped.pop(name, ()):
            if hasattr(mmap, "MADV_DONTNEED"):
                mapped.madvise(mmap.MADV_DONTNEED)

    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(entry.nbytes for entry in self.entries.values())

    def bytes_by_dtype(self) -> dict[str, int]:
        """Bytes of all tensors by the format's dtype names, the most common first."""
        totals: dict[str, int] = {}
        for entry in self.entries.values():
            totals[entry.dtype] = totals.get(entry.dtype, 0) + entry.nbytes
        return dict(sorted(totals.items(), key=lambda item: -item[1]))

    def _check_weight(self, name: str, shape: tuple[int, ...]) -> None:
        entry = self.entries.get(name)
        where = f"tensor {shown(name)}"
        if entry is None:
            raise violation(self.directory, where, f"shape {list(shape)}", "nothing")
        if entry.shape != shape:
            raise violation(entry.file, where, f"shape {list(shape)}", _found(entry))
        if entry.dtype not in WEIGHT_DTYPES:
            raise violation(entry.file, where, "dtype " + " or ".join(WEIGHT_DTYPES), _found(entry))

    def _check_same_bytes(self, name: str, source: str) -> None:
        entry, other = self.entries[name], self.entries[source]
        same = entry.dtype == other.dtype and all(
            torch.equal(a.view(torch.int16), b.view(torch.int16))
            for (_, a), (_, b) in zip(self.slices(name), self.slices(source), strict=True)
        )
        if not same:
            expected = f"the same values as {source} (or tie_word_embeddings false in config.json)"
            raise violation(entry.file, f"tensor {shown(name)}", expected, "others")


def _found(entry: TensorEntry) -> str:
    return f"{entry.dtype} {list(entry.shape)}"


def _exists(path: Path) -> bool:
    return path.is_symlink() or path.exists()


def _read_shards(root: Path) -> dict[str, TensorEntry]:
    """The tensors of all shards; index and shards must agree on each."""
    index = _inside(root, INDEX_FILE, root / INDEX_FILE)
    size = index.stat().st_size if index.is_file() else 0
    if not 0 < size <= MAX_INDEX_BYTES:
        raise violation(index, "file length", f"1 to {MAX_INDEX_BYTES} bytes", size)
    weight_map = parse_json_object(index, "index", index.read_bytes()).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise violation(
            index, "weight_map", "an object of tensor and file names", shown(weight_map)
        )
    if len(weight_map) > MAX_TENSORS:
        raise violation(index, "number of tensors", f"at most {MAX_TENSORS}", len(weight_map))
    files = {}
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or not shard.endswith(".safetensors"):
            raise violation(index, f"tensor {shown(name)}", "a .safetensors file", shown(shard))
        if shard not in files:
            files[shard] = _inside(root, shard, index)
    entries: dict[str, TensorEntry] = {}
    for shard, file in sorted(files.items()):
        for name, entry in read_header(file).items():
            if weight_map.get(name) != shard:
                expected = f"in {weight_map[name]}" if name in weight_map else "in no shard"
                raise violation(file, f"tensor {shown(name)}", f"{expected} (index)", "it here")
            entries[name] = entry
    for name, shard in weight_map.items():
        if name not in entries:
            raise violation(files[shard], f"tensor {shown(name)}", "it here (index)", "nothing")
    return entries


def _inside(root: Path, name: str, named_by: Path) -> Path:
    """The file `name` of `root`, after links; it must lie in `root`.

    The one exception is a Hugging Face cache, whose snapshots/COMMIT/ links into blobs/ beside it.
    """
    if name in ("", ".", "..") or re.search(r"[/\\\0]", name):
        raise violation(named_by, "shard name", f"a file name in {root}", shown(name))
    home = root.resolve()
    try:
        target = (home / name).resolve()
    except (OSError, RuntimeError) as error:
        raise violation(
            named_by, "shard name", "a readable file", f"{shown(name)} ({error})"
        ) from None
    allowed = [home]
    if home.parent.name == "snapshots":
        allowed.append(home.parent.parent / "blobs")
    if target.parent not in allowed:
        raise violation(root / name, "link target", f"a file in {root}", target)
    return root / name


def _bytes_of(
    entry: TensorEntry, offset: int, nbytes: int
) -> tuple[bytearray | mmap.mmap | None, int]:
    """A buffer that holds `nbytes` of the file from `offset`, and how many bytes to skip in it."""
    if nbytes == 0:
        return None, 0
    try:
        with entry.file.open("rb") as stream:
            end = os.fstat(stream.fileno()).st_size
            if offset + nbytes > end:
                where = f"tensor {shown(entry.name)}"
                raise violation(entry.file, where, f"bytes to {offset + nbytes}", f"{end} bytes")
            page_start = offset - offset % mmap.ALLOCATIONGRANULARITY
            aligned = offset % WEIGHT_DTYPES[entry.dtype].itemsize == 0
            if nbytes >= MIN_MAPPED_BYTES and aligned:
                skipped = offset - page_start
                length = skipped + nbytes
                mapped = mmap.mmap(
                    stream.fileno(), length, access=mmap.ACCESS_COPY, offset=page_start
                )
                if hasattr(mmap, "MADV_SEQUENTIAL"):
                    mapped.madvise(mmap.MADV_SEQUENTIAL)
                return mapped, skipped
            stream.seek(offset)
            return bytearray(stream.read(nbytes)), 0
    except OSError as error:
        raise CheckpointError(f"{entry.file}: cannot be read: {error.strerror}") from None
