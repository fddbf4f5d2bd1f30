"""Each native operation of the forward pass against the reference backend in float64, on every
instruction set of the machine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from cascade_engine.cache import pages_for
from cascade_engine.ops import CpuBackend, LinearWeight, ReferenceOps, activation_dtype
from cascade_engine.ops.reference import ReferenceCache
from cascade_engine.ops.weights import unpack_linear
from tests.ops.native import every_isa
from tests.ops.support import (
    BF16,
    F32,
    I8,
    NativePass,
    assert_close,
    assert_same_bits,
    cached,
    cast,
    run_native,
    stale_memory,
)

both_dtypes = pytest.mark.parametrize("dtype", [F32, BF16], ids=["f32", "bf16"])
weight_dtypes = pytest.mark.parametrize("dtype", [F32, BF16, I8], ids=["f32", "bf16", "i8"])


def check(
    isa: str,
    describe: Callable[[Any], Any],
    rows: int,
    dtype: torch.dtype,
    what: object,
    by_row: bool = False,
) -> None:
    """`describe` is one operation on matrices of `rows` rows, for a recorder or the reference."""
    ids = torch.randperm(rows).tolist()
    ours = run_native(isa, describe, ids, dtype)
    naive = describe(ReferenceOps(ids, precision=torch.float32))
    assert_close(ours, naive, describe(ReferenceOps(ids)), dtype, what, by_row)


def scaled_rows(rows: int, cols: int) -> torch.Tensor:
    """Rows of very different magnitude."""
    return torch.randn(rows, cols) * 10 ** torch.linspace(-4, 4, rows)[:, None]


@every_isa
@both_dtypes
def test_embedding(isa: str, dtype: torch.dtype) -> None:
    """Breaks when a table's element is taken from another row, column or half of a pair."""
    for n, k in ((1, 1), (31, 2), (33, 7), (100, 64), (70, 129)):
        dense = torch.randn(n, k).to(dtype)
        packed = CpuBackend(1, isa).pack_linear(dense, dtype)
        ids = torch.randint(0, n, (50,)).tolist()
        for table in (dense, packed):
            ours = run_native(isa, lambda ops: ops.embedding(table), ids)  # noqa: B023
            assert_same_bits(ours, dense.float()[ids], (n, k, type(table).__name__))


@every_isa
def test_embedding_of_int8(isa: str) -> None:
    """A packed int8 table gives its integers times the row's scale, rounded once."""
    for n, k in ((1, 1), (33, 7), (70, 129)):
        packed = CpuBackend(1, isa).pack_linear(torch.randn(n, k), I8)
        ids = torch.randint(0, n, (50,)).tolist()
        ours = run_native(isa, lambda ops: ops.embedding(packed), ids)  # noqa: B023
        assert_same_bits(ours, unpack_linear(packed)[ids].float(), (n, k))


@every_isa
@both_dtypes
def test_rms_norm(isa: str, dtype: torch.dtype) -> None:
    """Breaks when eps, the mean or the tail of a row is wrong."""
    for cols in (1, 2, 15, 16, 17, 31, 64, 100, 288, 1000, 4097):
        x, weight = scaled_rows(9, cols), torch.randn(cols)
        for eps in (1e-5, 1e-2):
            check(isa, rms_norm_of(x, weight, eps, dtype), 9, dtype, (cols, eps), by_row=True)


def rms_norm_of(
    x: torch.Tensor, weight: torch.Tensor, eps: float, dtype: torch.dtype
) -> Callable[[Any], Any]:
    return lambda ops: ops.rms_norm(ops.embedding(x), weight, eps, dtype)


LINEAR_SHAPES = ((1, 1), (31, 2), (32, 33), (33, 128), (70, 129), (96, 257), (5, 601), (300, 1030))


@every_isa
@weight_dtypes
@pytest.mark.parametrize("accumulate", [False, True], ids=["", "accumulate"])
def test_linear(isa: str, dtype: torch.dtype, accumulate: bool) -> None:
    """Breaks when a product, a scale, the bias or the old value is lost, doubled or misplaced."""
    backend = CpuBackend(1, isa)
    for n, k in LINEAR_SHAPES:
        for rows in (1, 2, 7, 15, 40):
            weight, bias = torch.randn(n, k), torch.randn(n) if rows != 7 else None
            packed = backend.pack_linear(weight, dtype, bias)
            fed = activation_dtype(dtype)
            x = torch.randn(rows, k).to(fed).float()
            y = torch.randn(rows, n) if accumulate else None
            check(isa, linear_of(x, packed, y, fed), rows, F32, (n, k, rows))


def linear_of(
    x: torch.Tensor, weight: LinearWeight, y: torch.Tensor | None, dtype: torch.dtype
) -> Callable[[Any], Any]:
    def describe(ops: Any) -> Any:
        value = cast(ops, x, dtype)
        return ops.linear(value, weight, add_to=None if y is None else ops.embedding(y))

    return describe


@every_isa
@both_dtypes
def test_swiglu(isa: str, dtype: torch.dtype) -> None:
    """Breaks when gate and up change places, or exp is wrong in some range."""
    for cols in (1, 7, 16, 33, 100, 1000):
        gate_up = torch.randn(11, 2 * cols) * 4
        check(isa, swiglu_of(gate_up, dtype), 11, dtype, cols)
    gates = torch.linspace(-130, 130, 4001)[:, None]  # one to a row: each under its own tolerance
    gate_up = torch.cat([gates, torch.ones_like(gates)], 1)
    clear = ReferenceOps(range(4001)).swiglu(gate_up.double(), dtype)[:, 0].abs() > 1e-30
    gate_up = gate_up[clear]
    check(isa, swiglu_of(gate_up, dtype), len(gate_up), dtype, "range", by_row=True)


def swiglu_of(gate_up: torch.Tensor, dtype: torch.dtype) -> Callable[[Any], Any]:
    return lambda ops: ops.swiglu(ops.embedding(gate_up), dtype)


@every_isa
def test_bfloat16_is_rounded_to_nearest_even(isa: str) -> None:
    """To the bit, on the way out of an operation. Breaks when ties go up, or a NaN turns into an
    infinity."""
    patterns = torch.arange(-(2**15), 2**15, dtype=torch.int32) << 16
    for low in (0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF):
        values = (patterns | low).view(F32)
        values = values[values.isnan() | (values.abs() > 1e-30)]
        for cols in (32, 13):
            x = values[: len(values) // cols * cols].view(-1, cols)
            ours = run_native(isa, lambda ops: cast(ops, x, BF16), range(len(x)), BF16)  # noqa: B023
            assert torch.equal(ours.isnan(), x.isnan())
            assert_same_bits(ours.nan_to_num(0), x.bfloat16().nan_to_num(0), (low, cols))


@every_isa
def test_select_logit_rows(isa: str) -> None:
    """Breaks when another row than each sequence's last ones is kept."""
    x = torch.randn(60, 5)
    native = NativePass(isa, sequences=4, capacity=30, pages=1)
    out = native.recorder.select_logit_rows(native.recorder.embedding(x))
    native.tokens[:] = torch.randint(0, 60, native.tokens.shape)
    rows, starts, counts, logits = [2, 0, 3], [4, 0, 11], [9, 1, 17], [9, 0, 2]
    native.program.run(rows, starts, counts, logits)
    ends = [start + count for start, count in zip(starts, counts, strict=True)]
    wanted = [native.tokens[2, 4:13], native.tokens[0, :0], native.tokens[3, 26:28]]
    assert ends == [13, 1, 28]
    assert_same_bits(native.read(out), x[torch.cat(wanted).long()])


HEADS = ((1, 1, 2), (3, 1, 6), (8, 1, 8), (8, 4, 20), (4, 2, 64), (2, 2, 128), (7, 1, 16))


@every_isa
@both_dtypes
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), HEADS)
@pytest.mark.parametrize("start", [0, 13, 1007])
def test_rope_store(
    isa: str, dtype: torch.dtype, heads: int, kv_heads: int, dim: int, start: int
) -> None:
    """Breaks when a pair, an angle, a page or a slot is the wrong one."""
    count, scale = 37, torch.linspace(0.5, 2, 37)[:, None]
    qkv = torch.randn(count, (heads + 2 * kv_heads) * dim) * scale
    capacity = start + count
    pages = pages_for(capacity) + 3
    data = stale_memory((1, 2, pages, kv_heads * dim * 16), dtype)
    native = NativePass(isa, capacity=capacity, pages=pages)
    native.block_table[0] = torch.randperm(pages)[: native.block_table.shape[1]]
    frequencies = 1.0 / 10000.0 ** (torch.arange(0, dim, 2) / dim)
    native.recorder.rope_angles(frequencies, dim)
    buffer = native.recorder.embedding(qkv)
    [layer] = native.recorder.cache_layers(data, kv_heads, dim)
    native.recorder.rope_store(buffer, heads, layer)
    before = data.clone()
    native.feed(range(count), start)

    expected = {}
    for precision in (F32, torch.float64):
        ops = ReferenceOps(range(count), start, precision=precision)
        ops.rope_angles(frequencies, dim)
        expected[precision] = ops.embedding(qkv)
        ops.rope_store(expected[precision], heads, ReferenceCache(kv_heads, dim))
    ours = native.read(buffer)
    assert_close(ours, expected[F32], expected[torch.float64], F32)
    stored = ours[:, heads * dim :].view(count, 2, kv_heads, dim).transpose(0, 1).to(dtype)
    assert_same_bits(cached(data, native.block_table[0], capacity, kv_heads)[0, :, start:], stored)
    assert (data.view(torch.int16) != before.view(torch.int16)).sum() <= stored.nbytes // 2


@every_isa
def test_without_angles_nothing_turns(isa: str) -> None:
    qkv = torch.randn(5, 30)
    data = stale_memory((1, 2, 1, 1 * 6 * 16), F32)
    native = NativePass(isa, capacity=16)
    buffer = native.recorder.embedding(qkv)
    [layer] = native.recorder.cache_layers(data, 1, 6)
    native.recorder.rope_store(buffer, 3, layer)
    native.feed(range(5))
    assert_same_bits(native.read(buffer), qkv)
    keys_values = cached(data, native.block_table[0], 5, 1)[0, :, :, 0]
    assert_same_bits(keys_values, torch.stack([qkv[:, 18:24], qkv[:, 24:]]))


def attention_input(tokens: int, heads: int, kv_heads: int, dim: int, kind: str) -> torch.Tensor:
    """Queries, keys and values that a bfloat16 cache holds exactly. "rising" and "falling": scores
    grow or fall along the context by far more than exp can span; "peaked": one key takes all."""
    qkv = torch.randn(tokens, (heads + 2 * kv_heads) * dim)
    keys = qkv[:, heads * dim : (heads + kv_heads) * dim]
    ramp = torch.linspace(0, 40, tokens)[:, None]
    if kind == "peaked":
        keys *= 8
    elif kind != "even":
        qkv[:, : heads * dim] = qkv[:, : heads * dim].abs()
        keys[:] = keys.abs() * 0.1 + (ramp if kind == "rising" else 40 - ramp)
    return qkv.bfloat16().float()


def reference_attention(
    qkv: torch.Tensor, heads: int, cache: ReferenceCache, checked: int, precision: torch.dtype
) -> torch.Tensor:
    """The last `checked` rows, `[checked * heads, head_dim]`."""
    cached_tokens = qkv.shape[0] - checked
    if cached_tokens:
        ops = ReferenceOps(range(cached_tokens), precision=precision)
        ops.rope_store(ops.embedding(qkv), heads, cache)
    ops = ReferenceOps(range(cached_tokens, qkv.shape[0]), cached_tokens, precision=precision)
    value = ops.embedding(qkv)
    ops.rope_store(value, heads, cache)
    out = ops.attention(value, heads, cache.head_dim**-0.5, cache, precision)
    return out.reshape(-1, cache.head_dim)


ATTENTION = [
    *[(tokens, 3, 1, 6, "even") for tokens in (1, 2, 15, 16, 17, 33)],
    (255, 8, 1, 8, "peaked"),
    (256, 2, 1, 20, "even"),
    (257, 5, 1, 64, "rising"),
    (300, 7, 1, 16, "falling"),
    (33, 3, 1, 5, "even"),
    (40, 2, 1, 291, "rising"),
    (513, 4, 2, 128, "even"),
    (530, 6, 1, 2, "rising"),
    (1500, 4, 4, 6, "even"),
    (1500, 8, 2, 64, "falling"),
    (1500, 2, 2, 30, "peaked"),
]


@every_isa
@both_dtypes
@pytest.mark.parametrize(("tokens", "heads", "kv_heads", "dim", "kind"), ATTENTION)
def test_attention(
    isa: str, dtype: torch.dtype, tokens: int, heads: int, kv_heads: int, dim: int, kind: str
) -> None:
    """Breaks when the mask, a chunk's merge, a head's group, a page or the scale is wrong."""
    qkv = attention_input(tokens, heads, kv_heads, dim, kind)
    pages = pages_for(tokens) + 2
    native = NativePass(isa, capacity=tokens, pages=pages)
    native.block_table[0] = torch.randperm(pages)[: native.block_table.shape[1]]
    recorder = native.recorder
    [layer] = recorder.cache_layers(
        stale_memory((1, 2, pages, kv_heads * dim * 16), dtype), kv_heads, dim
    )
    buffer = recorder.embedding(qkv)
    recorder.rope_store(buffer, heads, layer)
    outs = {out: recorder.attention(buffer, heads, dim**-0.5, layer, out) for out in (F32, BF16)}
    native.feed(range(tokens))

    checked = min(tokens, 300 if tokens <= 300 else 40)
    naive, exact = (
        reference_attention(qkv, heads, ReferenceCache(kv_heads, dim), checked, precision)
        for precision in (F32, torch.float64)
    )
    if (isa, dtype) == ("avx512bf16", BF16):  # softmax numerators are rounded
        naive = exact + 2.0**-9 * reference_attention(
            torch.cat([qkv[:, : -kv_heads * dim], qkv[:, -kv_heads * dim :].abs()], 1),
            heads, ReferenceCache(kv_heads, dim), checked, torch.float64,
        )  # fmt: skip
    for out, buffer in outs.items():
        ours = native.read(buffer, out)[tokens - checked :].reshape(-1, dim)
        assert_close(ours, naive, exact, out, out)
