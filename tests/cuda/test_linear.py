"""The weight-streaming product, its variants and its row invariance."""

from __future__ import annotations

import pytest
import torch

from cascade_engine.ops.launch import Launcher, pack_tiles, unpack_tiles
from tests.cuda.support import (
    ADD,
    BF16,
    F16,
    F32,
    GEGLU,
    RELU,
    ROUND,
    STORE,
    SWIGLU,
    assert_near,
    assert_same_bits,
    linear,
)


def operands(rows: int, n: int, k: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(rows, k).to(dtype), torch.randn(n, k).to(dtype)


@pytest.mark.parametrize("shape", [(40, 24), (130, 172), (16, 640), (8, 2)])
def test_packing_is_undone(shape: tuple[int, int]) -> None:
    weight = torch.randn(shape)
    assert torch.equal(unpack_tiles(pack_tiles(weight, 128, 64), *shape), weight)


@pytest.mark.parametrize("dtype", [BF16, F16])
@pytest.mark.parametrize(
    ("rows", "n", "k"), [(1, 128, 64), (3, 40, 172), (17, 130, 200), (33, 16, 64), (70, 24, 96)]
)
def test_product(run: Launcher, dtype: torch.dtype, rows: int, n: int, k: int) -> None:
    x, weight = operands(rows, n, k, dtype)
    bias = torch.randn(n)
    exact = x.double() @ weight.double().T + bias
    assert_near(linear(run, x, weight, bias), exact, 8, F32)


def test_splits_of_k_are_merged_in_order(run: Launcher) -> None:
    """A deep, narrow matrix is split; the merged sum is that of the ranges from left to right."""
    x, weight = operands(2, 16, 1024, BF16)
    splits = run.module.linear_splits(16, 1024, run.multiprocessors)
    assert splits > 2
    stages = 1024 // 64
    total = torch.zeros(2, 16)
    for i in range(splits):
        part = slice(stages * i // splits * 64, stages * (i + 1) // splits * 64)
        # One range alone is too short to be split into several.
        one = torch.zeros_like(x)
        one[:, part] = x[:, part]
        total = linear(run, one, weight) if i == 0 else total + linear(run, one, weight)
    assert_same_bits(linear(run, x, weight), total)


def test_adds_to_the_residual(run: Launcher) -> None:
    x, weight = operands(5, 130, 72, BF16)
    y = torch.randn(5, 130)
    expected = y + linear(run, x, weight)
    assert_same_bits(linear(run, x, weight, output=ADD, y=y), expected)


@pytest.mark.parametrize("output", [SWIGLU, GEGLU])
def test_fused_gates(run: Launcher, output: int) -> None:
    """Tiles of 16 outputs hold eight gates, then the eight ups that belong to them."""
    x, weight = operands(9, 48, 72, F16)
    bias = torch.randn(48)
    both = (linear(run, x, weight, bias)).view(9, 3, 2, 8)
    gate, up = both[:, :, 0].reshape(9, 24), both[:, :, 1].reshape(9, 24)
    exact = gated(gate, output) * up.double()
    assert_near(linear(run, x, weight, bias, output), exact, 0.6, F16)


def gated(gate: torch.Tensor, output: int) -> torch.Tensor:
    if output == SWIGLU:
        return torch.nn.functional.silu(gate.double())
    return torch.nn.functional.gelu(gate.double(), approximate="tanh")


@pytest.mark.parametrize(("n", "k"), [(30, 72), (40, 200)])
def test_sums_as_elements(run: Launcher, n: int, k: int) -> None:
    """Rounded once, cut at zero first or not; columns behind the last stay as they are."""
    x, weight = operands(9, n, k, BF16)
    bias = torch.randn(n)
    sums = linear(run, x, weight, bias)
    assert_same_bits(linear(run, x, weight, bias, ROUND), sums.to(BF16))
    assert_same_bits(linear(run, x, weight, bias, RELU), sums.relu().to(BF16))


@pytest.mark.parametrize(("n", "k"), [(24, 448), (40, 72)])
def test_bits_do_not_depend_on_the_number_of_rows(run: Launcher, n: int, k: int) -> None:
    """Split and unsplit shapes, every number of rows up to 64 and some beyond."""
    x, weight = operands(1024, n, k, BF16)
    alone = torch.cat([linear(run, x[i : i + 1], weight) for i in range(1024)])
    for rows in [*range(2, 65), 80, 513, 1024]:
        assert_same_bits(linear(run, x[:rows], weight), alone[:rows], rows)


def test_rows_are_padded_with_zeros_not_memory(run: Launcher) -> None:
    """NaN in rows behind the last and columns behind k reaches nothing."""
    x, weight = operands(20, 16, 60, BF16)
    assert linear(run, x[:3], weight, output=STORE).isfinite().all()


def test_refuses_a_misaligned_stride(run: Launcher) -> None:
    with pytest.raises(ValueError, match="multiple of 8 and >= k = 8, got 12"):
        run(
            *["linear"],
            **dict.fromkeys(
                ["weights", "x", "bias", "y", "workspace", "counters", "y_cols", "y_stride"]
            ),
            dtype=1,
            n=16,
            k=8,
            x_stride=12,
            rows=1,
            output=0,
            multiprocessors=4,
        )
