"""Products on AMX, bit by bit against the arithmetic that its manual gives, in which rows, threads
and neighbours have no part."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from cascade_engine import _C
from cascade_engine.ops import CpuBackend, cpu
from tests.ops.native import ISAS
from tests.ops.support import BF16, I8, NativePass, assert_same_bits, cast

pytestmark = pytest.mark.skipif("amx" not in ISAS, reason="this machine has no AMX")

# k: part of a chunk, chunks with and without a part, a slab, several, more than stays near; n: part
# of a block and several.
SHAPES = (
    *((1, 1), (33, 5), (64, 32), (65, 127), (160, 256), (40, 515), (40, 544), (96, 1032)),
    (33, 6176),
)
# Part of a tile, a tile, two, groups with and without a rest, more than wait at once.
ROWS = (1, 2, 15, 16, 17, 32, 33, 49, 64, 112, 255, 300)
MOST = max(ROWS)


def tdpbf16ps(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x `[rows, k]` times weight `[n, k]`, both of bf16 numbers in float32, as the instruction
    TDPBF16PS adds them up (Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2).

    Products of bf16 are exact in float32, so that a fused multiply-add is an addition here. The
    instruction takes 32 of k: a chain over the even ones, another over the odd ones, both from
    zero; their sum is added to what was there.
    """
    fill = -x.shape[1] % 32
    x, weight = functional.pad(x, (0, fill)), functional.pad(weight, (0, fill))
    total = torch.zeros(len(x), len(weight))
    for begin in range(0, x.shape[1], 32):
        chains = torch.zeros(2, len(x), len(weight))
        for k in range(begin, begin + 32):
            chains[k % 2] += x[:, k, None] * weight[None, :, k]
        total += chains[0] + chains[1]
    return total


@pytest.mark.parametrize("dtype", [BF16, I8], ids=["bf16", "int8"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_bits(shape: tuple[int, int], dtype: torch.dtype) -> None:
    """Breaks when a chunk is left out or read twice, when sums that wait between slabs are mixed
    up, when what is widened or fetched ahead belongs to another block."""
    n, k = shape
    weight, x = torch.randn(n, k), torch.randn(MOST, k).to(BF16).float()
    bias, old = torch.randn(n), torch.randn(MOST, n)
    for threads in (1, 3):
        backend = CpuBackend(threads, "amx")
        native = NativePass("amx", backend=backend)
        ops = native.recorder
        packed = backend.pack_linear(weight, dtype)
        biased = backend.pack_linear(weight, dtype, bias)
        value = cast(ops, x, BF16)
        out = ops.linear(value, packed)
        finished = ops.linear(value, biased, add_to=ops.embedding(old))

        expected = tdpbf16ps(x, _numbers(weight, dtype))
        if packed.scales is not None:
            expected *= packed.scales[:n]
        for rows in ROWS:
            native.feed(list(range(rows)))
            what = (shape, rows, threads)
            assert_same_bits(native.read(out), expected[:rows], what)
            assert_same_bits(native.read(finished), (expected + bias + old)[:rows], what)


def _numbers(weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """What the unit multiplies by: bf16 numbers, of int8 the integers before the scale."""
    if dtype == BF16:
        return weight.to(BF16).float()
    whole = weight / weight.abs().amax(1, keepdim=True).div(127.0)
    return whole.clamp(-127, 127).round()


def test_compressed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks when a chunk is decoded with another one's exceptions. Those are as large as the rest,
    so that each shows in a sum."""
    monkeypatch.setattr(cpu, "MAX_EXCEPTIONS", 2.0)
    n, k = 70, 600
    weight = torch.randn(n, k).sign().to(BF16)
    rare = torch.rand(n, k) < 0.005
    powers = torch.randint(-14, 9, (n, k)).float()
    weight = torch.where(rare, weight.float() * 2.0**powers, weight.float()).to(BF16)
    for threads in (1, 3):
        backend = CpuBackend(threads, "amx")
        dense = backend.pack_linear(weight, BF16)
        assert _C.Coding(backend.context, dense.handle).exceptions > 20
        packed = backend.compress(dense)
        assert packed.memory.dtype == torch.uint8
        native = NativePass("amx", backend=backend)
        x = torch.randn(MOST, k).to(BF16).float()
        out = native.recorder.linear(cast(native.recorder, x, BF16), packed)
        expected = tdpbf16ps(x, weight.float())
        for rows in ROWS:
            native.feed(list(range(rows)))
            assert_same_bits(native.read(out), expected[:rows], (rows, threads))


@pytest.mark.parametrize("k", [5, 33, 300])
def test_the_block_behind_has_no_part(k: int) -> None:
    """Breaks when the last chunk of a block is filled up with what lies behind it."""
    weight = torch.randn(64, k)
    weight[32:] = torch.inf
    x = torch.randn(MOST, k).to(BF16).float()
    native = NativePass("amx")
    out = native.recorder.linear(
        cast(native.recorder, x, BF16), CpuBackend(1, "amx").pack_linear(weight, BF16)
    )
    expected = tdpbf16ps(x, weight[:32].to(BF16).float())
    for rows in ROWS:
        native.feed(list(range(rows)))
        assert_same_bits(native.read(out)[:, :32], expected[:rows], rows)
