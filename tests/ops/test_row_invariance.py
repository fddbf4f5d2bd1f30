"""The same bits for a row whatever is computed beside it: other rows, other sequences, another
split into passes, other pages, stale memory, one thread or two. Bits are compared, never values."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pytest
import torch

from cascade_engine.cache import pages_for
from cascade_engine.models import llama
from cascade_engine.ops import CpuBackend, Recorder, activation_dtype
from tests.ops.native import every_isa
from tests.ops.support import (
    BF16,
    F32,
    I8,
    NativePass,
    assert_same_bits,
    cached,
    cast,
    random_weights,
    stale_memory,
)

both_dtypes = pytest.mark.parametrize("dtype", [F32, BF16], ids=["f32", "bf16"])
weight_dtypes = pytest.mark.parametrize("dtype", [F32, BF16, I8], ids=["f32", "bf16", "i8"])
SIZES = (1, 2, 3, 4, 5, 13, 14, 15, 16, 17, 31, 33, 64, 100, 112, 113, 513, 1024)
ROWS = 1024


class RowOps:
    """Every operation on single rows, with weights; `record` gives a name and a dtype to each
    buffer. Widths differ, so that no two operations share a buffer."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = activation_dtype(dtype)
        pack = CpuBackend(1).pack_linear
        self.dense = torch.randn(ROWS, 33).to(self.dtype)
        self.packed = pack(torch.randn(ROWS, 35), dtype)
        self.long = torch.randn(ROWS, 601)
        self.short = torch.randn(ROWS, 64)
        for row, value in ((3, torch.nan), (200, torch.inf), (700, -0.0), (1000, 1e-40)):
            self.long[row, 17] = self.short[row, 5] = value
        self.gates = torch.randn(ROWS, 90) * 30
        self.old = torch.randn(ROWS, 41)
        self.norms = torch.randn(601), torch.randn(33)
        self.wide = pack(torch.randn(326, 601), dtype, torch.randn(326))
        self.narrow = pack(torch.randn(41, 64), dtype)

    def record(self, ops: Recorder) -> dict[str, tuple[int, torch.dtype]]:
        long, short = cast(ops, self.long, self.dtype), cast(ops, self.short, self.dtype)
        dense = ops.embedding(self.dense)
        old = ops.embedding(self.old)
        return {
            "embedding": (dense, F32),
            "packed embedding": (ops.embedding(self.packed), F32),
            "rms_norm": (ops.rms_norm(dense, self.norms[1], 1e-5, self.dtype), self.dtype),
            "long rms_norm": (
                ops.rms_norm(ops.embedding(self.long), self.norms[0], 1e-5, self.dtype),
                self.dtype,
            ),
            "swiglu": (ops.swiglu(ops.embedding(self.gates), self.dtype), self.dtype),
            "linear with bias": (ops.linear(long, self.wide), F32),
            "linear, accumulated": (ops.linear(short, self.narrow, add_to=old), F32),
        }


@every_isa
@weight_dtypes
def test_operations_on_rows(isa: str, dtype: torch.dtype) -> None:
    """Breaks when a tile of a certain size adds up in another order, or a row is exchanged."""
    ops = RowOps(dtype)
    native = NativePass(isa)
    outs = ops.record(native.recorder)
    expected: dict[str, list[torch.Tensor]] = {name: [] for name in outs}
    for row in range(ROWS):
        native.feed([row])
        for name, (buffer, out) in outs.items():
            expected[name].append(native.read(buffer, out))
    alone = {name: torch.cat(rows) for name, rows in expected.items()}

    rng = random.Random(1)
    for threads in (1, 2):
        native = NativePass(isa, threads, sequences=4)
        outs = ops.record(native.recorder)
        for size in SIZES:
            ids = torch.randperm(ROWS)[:size]
            feed_in_parts(native, ids, rng)
            for name, (buffer, out) in outs.items():
                ours = native.read(buffer, out)
                assert_same_bits(ours, alone[name][ids], f"{name}, {size} rows, {threads} threads")


def feed_in_parts(native: NativePass, ids: torch.Tensor, rng: random.Random) -> None:
    """One pass over `ids`, as the tokens of up to four sequences."""
    cuts = sorted(rng.sample(range(1, len(ids)), min(len(ids) - 1, rng.randrange(4))))
    parts = ids.tensor_split(cuts)
    sequences = rng.sample(range(4), len(parts))
    starts = [rng.randrange(0, 1024 - len(part) + 1) for part in parts]
    for sequence, start, part in zip(sequences, starts, parts, strict=True):
        native.tokens[sequence, start : start + len(part)] = part.int()
    counts = [len(part) for part in parts]
    native.program.run(sequences, starts, counts, [0] * len(parts))


class Part(NamedTuple):
    """Part of a pass: tokens start..start+size-1 of a sequence, the last `wanted` of which give
    logits. A rejected part feeds other tokens and counts for nothing."""

    sequence: int
    start: int
    size: int
    wanted: int
    rejected: bool = False


def alone_plan(lengths: Sequence[int]) -> list[list[Part]]:
    """Each sequence by itself, token by token."""
    return [[Part(s, p, 1, 1)] for s, length in enumerate(lengths) for p in range(length)]


def random_plan(lengths: Sequence[int], rng: random.Random) -> list[list[Part]]:
    """Several sequences in a pass, in chunks of all sizes; now and then a rejected draft first."""
    plan, done = [], [0] * len(lengths)
    while unfinished := [s for s, length in enumerate(lengths) if done[s] < length]:
        chosen = rng.sample(unfinished, rng.randint(1, len(unfinished)))
        if rng.random() < 0.3:
            drafts = [(s, min(rng.randint(1, 40), lengths[s] - done[s])) for s in chosen]
            plan.append([Part(s, done[s], count, count, True) for s, count in drafts])
        step = []
        for s in chosen:
            count = min(rng.choice(SIZES), lengths[s] - done[s])
            step.append(Part(s, done[s], count, rng.choice([0, count, rng.randint(0, count)])))
            done[s] += count
        plan.append(step)
    return plan


class Outcome(NamedTuple):
    rows: list[list[torch.Tensor]]
    """[sequence][position]: one row of output; empty where nobody wanted it."""
    caches: list[torch.Tensor]


class Setting(NamedTuple):
    """How a model is run: nothing here may change a bit of what comes out."""

    isa: str
    threads: int
    plan: list[list[Part]]
    shuffle: bool
    left_padded: bool = False


class Sequences:
    """Sequences of random tokens, to be fed to a recorded pass in any way."""

    def __init__(self, lengths: Sequence[int], vocab: int, rejected_token: int) -> None:
        self.lengths = lengths
        self.tokens = [torch.randint(0, vocab, (length,), dtype=torch.int32) for length in lengths]
        self.rejected_token = rejected_token

    def run(
        self,
        setting: Setting,
        cache_shape: tuple[int, int, int],
        dtype: torch.dtype,
        describe: Callable[[Recorder, Any], tuple[int, torch.dtype]],
        per_logit: bool,
    ) -> Outcome:
        layers, kv_heads, head_dim = cache_shape
        capacity = max(self.lengths) + 60
        blocks = pages_for(capacity)
        pages = blocks * len(self.lengths) + 5
        native = NativePass(setting.isa, setting.threads, len(self.lengths), capacity, pages)
        order = torch.randperm(pages) if setting.shuffle else torch.arange(pages)
        native.block_table[:] = order[: native.block_table.numel()].view_as(native.block_table)
        data = stale_memory((layers, 2, pages, kv_heads * head_dim * 16), dtype)
        cache = native.recorder.cache_layers(data, kv_heads, head_dim)
        buffer, out = describe(native.recorder, cache)
        rows = [[torch.empty(0)] * length for length in self.lengths]
        for step in setting.plan:
            self._write(native, step)
            columns = [list(column) for column in zip(*step, strict=True)]
            native.program.run(*columns[:4], setting.left_padded)
            at, result = 0, native.read(buffer, out)
            for s, start, count, wanted, rejected in step:
                given = wanted if per_logit else count
                if not rejected:
                    rows[s][start + count - given : start + count] = result[at : at + given]
                at += given
            assert at == len(result)
        tables = zip(native.block_table, self.lengths, strict=True)
        return Outcome(rows, [cached(data, table, n, kv_heads) for table, n in tables])

    def _write(self, native: NativePass, step: list[Part]) -> None:
        for s, start, count, _, rejected in step:
            part = slice(start, start + count)
            native.tokens[s, part] = self.rejected_token if rejected else self.tokens[s][part]


def assert_same(ours: Outcome, expected: Outcome, what: object) -> None:
    for s, rows in enumerate(ours.rows):
        given = [p for p, row in enumerate(rows) if len(row)]
        together = torch.stack([rows[p] for p in given])
        alone = torch.stack([expected.rows[s][p] for p in given])
        assert_same_bits(together, alone, f"{what}, sequence {s}, positions {given[:3]}...")
        assert_same_bits(ours.caches[s], expected.caches[s], f"{what}, cache of sequence {s}")


@every_isa
@both_dtypes
@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim"), [(6, 2, 10), (8, 1, 8), (1, 1, 64), (4, 2, 20), (2, 2, 34)]
)
def test_attention(isa: str, dtype: torch.dtype, heads: int, kv_heads: int, dim: int) -> None:
    """Breaks when the chunk, the tile or the group that a query falls into changes its sums, when
    a masked or stale slot is read as a number, or a position is taken from the wrong page."""
    qkv = torch.randn(200, (heads + 2 * kv_heads) * dim) * 1.5
    qkv[199] = torch.nan
    frequencies = 1.0 / 100.0 ** (torch.arange(0, dim, 2) / dim)
    lengths = (600 if dim == 10 else 290, 70, 17)
    sequences = Sequences(lengths, 199, rejected_token=199)

    def describe(ops: Recorder, cache: Any) -> tuple[int, torch.dtype]:
        [layer] = cache
        ops.rope_angles(frequencies, dim)
        value = ops.embedding(qkv)
        ops.rope_store(value, heads, layer)
        return ops.attention(value, heads, 0.4, layer, F32), F32  # bf16 would hide last bits

    def run(threads: int, plan: list[list[Part]], shuffle: bool) -> Outcome:
        setting = Setting(isa, threads, plan, shuffle)
        return sequences.run(setting, (1, kv_heads, dim), dtype, describe, per_logit=False)

    expected = run(1, alone_plan(lengths), shuffle=False)
    for seed in range(4):
        plan = random_plan(lengths, random.Random(seed))
        assert_same(run(1 + seed % 2, plan, shuffle=True), expected, f"plan {seed}")


@every_isa
@weight_dtypes
def test_whole_forward_pass(isa: str, dtype: torch.dtype) -> None:
    """Breaks when any operation depends on what is beside a row, and when a wanted logit row
    depends on which others are wanted."""
    weights = random_weights(3, dtype, tie_word_embeddings=dtype != F32)
    config = weights.config
    lengths = (1050, 70, 17)
    sequences = Sequences(lengths, config.vocab_size - 1, rejected_token=config.vocab_size - 1)
    if isinstance(weights.embedding, torch.Tensor):
        weights.embedding[-1] = torch.nan

    def describe(ops: Recorder, cache: Any) -> tuple[int, torch.dtype]:
        return llama.forward(ops, weights, cache), F32

    def run(
        threads: int, plan: list[list[Part]], shuffle: bool, left_padded: bool = False
    ) -> Outcome:
        setting = Setting(isa, threads, plan, shuffle, left_padded)
        shape = (config.num_layers, config.num_kv_heads, config.head_dim)
        cached_dtype = weights.activation_dtype
        return sequences.run(setting, shape, cached_dtype, describe, per_logit=True)

    expected = run(1, alone_plan(lengths), shuffle=False)
    whole = [[Part(s, 0, n, n) for s, n in enumerate(lengths)]]
    assert_same(run(2, whole, shuffle=True), expected, "one pass")
    for seed in range(4):
        plan = random_plan(lengths, random.Random(seed))
        ours = run(1 + seed % 2, plan, shuffle=True, left_padded=seed == 3)
        assert_same(ours, expected, f"plan {seed}")
