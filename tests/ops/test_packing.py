"""Weights from checkpoint order into the packed layout and back."""

from __future__ import annotations

import random

import pytest
import torch

from cascade_engine.ops import CpuBackend, LinearWeight
from cascade_engine.ops.weights import unpack_linear
from tests.ops.support import BF16, F32, I8, assert_same_bits, bits

F16 = torch.float16
SOURCES = [F32, BF16, F16]
by_source = pytest.mark.parametrize("source", SOURCES, ids=["f32", "bf16", "f16"])
by_target = pytest.mark.parametrize("target", [F32, BF16], ids=["to f32", "to bf16"])
SHAPES = ((1, 1), (2, 3), (31, 1), (32, 2), (33, 5), (64, 64), (65, 127), (300, 33))


def assert_packed(weight: LinearWeight, expected: torch.Tensor) -> None:
    """The bits of `expected` where it is a number, a NaN where it is one, and zeros around."""
    dense = unpack_linear(weight)
    nan = expected.isnan()
    assert torch.equal(dense.isnan(), nan)
    assert_same_bits(dense.masked_fill(nan, 0), expected.masked_fill(nan, 0))
    assert int((bits(weight.memory) != 0).sum()) == int((bits(expected) != 0).sum())


@by_source
@by_target
def test_round_trip(source: torch.dtype, target: torch.dtype) -> None:
    """Breaks when an element lands in another row, column or half of a pair."""
    for threads in (1, 2):
        backend = CpuBackend(threads)
        for n, k in SHAPES:
            dense = torch.randn(n, k).to(source)
            assert_packed(backend.pack_linear(dense, target), dense.to(target))


@by_source
@by_target
def test_every_16_bit_pattern(source: torch.dtype, target: torch.dtype) -> None:
    """Subnormals, infinities, both zeros and NaN among them; as f32, with random low halves.
    Breaks when subnormals are flushed, ties round up, or a NaN becomes infinite."""
    patterns = torch.arange(-(2**15), 2**15, dtype=torch.int16)
    if source == F32:
        low = torch.randint(0, 2**16, (2**16,), dtype=torch.int32)
        low[: 2**15 : 2] = 0x8000  # ties
        values = (patterns.int() << 16 | low).view(F32)
    else:
        values = patterns.view(source)
    dense = values.view(-1, 64)
    assert_packed(CpuBackend(1).pack_linear(dense, target), dense.to(target))


def test_bfloat16_is_copied_bit_by_bit() -> None:
    """NaN payloads included: nothing passes through float32."""
    patterns = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(512, 128)
    weight = CpuBackend(1).pack_linear(patterns.view(BF16), BF16)
    assert_same_bits(unpack_linear(weight), patterns.view(BF16))


@by_source
@by_target
@pytest.mark.parametrize("seed", range(3))
def test_stacking(source: torch.dtype, target: torch.dtype, seed: int) -> None:
    """Pieces in any order at any row. Breaks when a piece starts at a block's first row or writes
    past its own rows."""
    rng, backend = random.Random(seed), CpuBackend(1 + seed % 2)
    n, k = rng.choice([75, 130, 257]), rng.choice([1, 7, 32, 65])
    dense = torch.randn(n, k).to(source)
    weight = backend.empty_linear(n, k, target)
    cuts = sorted(rng.sample(range(1, n), 6))
    pieces = list(zip([0, *cuts], [*cuts, n], strict=True))
    filled = torch.zeros(n, k, dtype=target)
    for begin, end in rng.sample(pieces, len(pieces)):
        backend.fill_linear(weight, dense[begin:end], begin)
        filled[begin:end] = dense[begin:end].to(target)
        assert_packed(weight, filled)


def test_columns_of_a_larger_matrix() -> None:
    """A piece that is not contiguous in memory is packed as what it shows."""
    wide = torch.randn(20, 30)
    weight = CpuBackend(1).pack_linear(wide[::2, 3:11], F32)
    assert_packed(weight, wide[::2, 3:11].clone())


def test_what_does_not_fit_is_refused() -> None:
    backend = CpuBackend(1)
    weight = backend.empty_linear(10, 4, F32)
    with pytest.raises(ValueError, match=r"rows 7\.\.12 do not fit a packed matrix of 10 rows"):
        backend.fill_linear(weight, torch.ones(5, 4), 7)
    with pytest.raises(ValueError, match=r"do not fit a packed matrix"):
        backend.fill_linear(weight, torch.ones(5, 4), -1)
    with pytest.raises(ValueError, match=r"rows of 5 columns do not fit k = 4"):
        backend.fill_linear(weight, torch.ones(2, 5), 0)
    with pytest.raises(ValueError, match=r"n > 0 and k > 0, got 0 x 4"):
        backend.empty_linear(0, 4, F32)
    assert_packed(weight, torch.zeros(10, 4))
    backend.fill_linear(weight, torch.ones(10, 4), 0)
    assert_packed(weight, torch.ones(10, 4))


@by_source
@pytest.mark.parametrize("seed", range(2))
def test_quantisation(source: torch.dtype, seed: int) -> None:
    """Each row by its own largest magnitude, to the nearest integer, ties to even. Breaks when rows
    share a scale, or a value is truncated or misplaced."""
    backend = CpuBackend(1 + seed)
    for n, k in SHAPES:
        dense = (torch.randn(n, k) * 10 ** torch.linspace(-3, 3, n)[:, None]).to(source)
        weight = backend.pack_linear(dense, I8)
        exact = dense.float()
        scales = exact.abs().amax(1) / 127
        assert weight.scales is not None
        assert_same_bits(weight.scales[:n], scales, (n, k))
        steps = (exact / scales[:, None]).nan_to_num(0).round().double()
        assert torch.equal(unpack_linear(weight), steps * scales[:, None].double())
        assert steps.abs().max() == 127


def test_integers_come_back_from_int8_as_they_were() -> None:
    """-127..127 with every row reaching 127: the scale is 1."""
    dense = torch.arange(-127, 128).repeat(3, 1).float()
    assert torch.equal(unpack_linear(CpuBackend(1).pack_linear(dense, I8)), dense.double())


def test_quantisation_of_extremes() -> None:
    """Rows of zeros, of the largest and of the smallest numbers stay finite and within reach."""
    big, tiny = torch.finfo(F32).max, 2.0**-149
    dense = torch.tensor([[0.0, -0.0, 0.0], [big, -big, 0.0], [tiny, 0.0, -tiny], [3e-43, 0, 0]])
    ours = unpack_linear(CpuBackend(1).pack_linear(dense, I8))
    assert ours.isfinite().all()
    step = torch.maximum(dense.abs().amax(1, keepdim=True) / 127, torch.tensor(2.0**-140))
    assert ((ours - dense).abs() <= step).all()
    assert not CpuBackend(1).pack_linear(torch.zeros(3, 5), I8).memory.any()


def test_quantisation_where_the_scale_is_inexact() -> None:
    """Among the smallest numbers a scale rounds by up to a half, and a row to more than 127 steps:
    breaks when these wrap around, or -128 is used."""
    steps = torch.arange(1, 600, dtype=torch.float64)[:, None]
    dense = (steps * 2.0**-149 * torch.tensor([1.0, -1.0])).float()
    weight = CpuBackend(1).pack_linear(dense, I8)
    assert weight.scales is not None
    scales = weight.scales[:599, None].double()
    ours = unpack_linear(weight)
    assert (ours.abs() <= 127 * scales).all()
    assert torch.equal(ours[:, 0], -ours[:, 1])
    assert ((ours[:, 0] > 0) | (scales[:, 0] == 0)).all()
    assert (scales[steps[:, 0] > 64] > 0).all()


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_int8_refuses_what_is_not_finite(value: float) -> None:
    dense = torch.ones(40, 9)
    dense[35, 8] = value
    for threads in (1, 2):
        with pytest.raises(ValueError, match=f"holds {value}, which int8 cannot"):
            CpuBackend(threads).pack_linear(dense, I8)
