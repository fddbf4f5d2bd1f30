"""bfloat16 weights in 12 bits: nothing is lost, and every bit of what is computed with them is that
of the weights as they are."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from cascade_engine import _C
from cascade_engine.ops import CpuBackend, LinearWeight, cpu
from cascade_engine.ops.weights import unpack_linear
from tests.ops.native import every_isa
from tests.ops.support import BF16, F32, I8, NativePass, assert_same_bits, cast

SHAPES = ((1, 1), (2, 3), (31, 2), (33, 5), (64, 64), (65, 127), (300, 33), (40, 515))


def normal(n: int, k: int) -> torch.Tensor:
    return (torch.randn(n, k) * 0.02).to(BF16)


def spread(n: int, k: int) -> torch.Tensor:
    """Over all powers of two: half of the high bytes are in no table."""
    return (torch.randn(n, k) * 2.0 ** torch.randint(-120, 120, (n, k))).to(BF16)


def patterns(n: int, k: int) -> torch.Tensor:
    """Any bits: NaN with payloads, infinities, subnormals, both zeros."""
    return torch.randint(-(2**15), 2**15, (n, k), dtype=torch.int16).view(BF16)


def few_odd(n: int, k: int) -> torch.Tensor:
    """Here and there what no table has, the first and the last element among it."""
    dense = normal(n, k)
    strange = torch.tensor([torch.nan, torch.inf, -torch.inf, 1e-40, -0.0, 1e30, -1e-20])
    chosen = torch.rand(n, k) < 0.02
    chosen[0, 0] = chosen[-1, -1] = True
    dense[chosen] = strange[torch.randint(0, 7, (int(chosen.sum()),))].to(BF16)
    return dense


def zeros(n: int, k: int) -> torch.Tensor:
    return torch.where(torch.rand(n, k) < 0.5, 0.0, -0.0).to(BF16)


KINDS = [normal, spread, patterns, few_odd, zeros]
every_kind = pytest.mark.parametrize("make", KINDS, ids=lambda make: make.__name__)
Maker = Callable[[int, int], torch.Tensor]


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compresses whatever it costs."""
    monkeypatch.setattr(cpu, "MAX_EXCEPTIONS", 2.0)


def pair_of(backend: CpuBackend, dense: torch.Tensor) -> tuple[LinearWeight, LinearWeight]:
    """A weight as it is, and compressed."""
    bias = torch.randn(len(dense))
    plain = backend.pack_linear(dense, BF16, bias)
    return plain, backend.compress(plain)


@every_kind
@pytest.mark.usefixtures("always")
def test_nothing_is_lost(make: Maker) -> None:
    """Breaks when a code, a half of a unit or an exception is misplaced, also in a last unit that
    is half empty; or when the padding holds anything."""
    for threads in (1, 2):
        backend = CpuBackend(threads)
        for n, k in SHAPES:
            dense = make(n, k)
            plain, compressed = pair_of(backend, dense)
            assert compressed.memory.dtype == torch.uint8
            assert_same_bits(unpack_linear(compressed), dense, (n, k))
            whole = torch.zeros_like(plain.memory)
            _C.decode(compressed.handle, whole.data_ptr())
            assert_same_bits(whole, plain.memory, (n, k))
            assert compressed.bias is plain.bias


@every_kind
def test_the_memory_is_as_large_as_said(make: Maker) -> None:
    """Breaks when anything is written behind it, or its last bytes are not needed."""
    backend = CpuBackend(1)
    for n, k in SHAPES:
        weight = backend.pack_linear(make(n, k), BF16)
        coding = _C.Coding(backend.context, weight.handle)
        memory = torch.full([coding.num_bytes + 64], 7, dtype=torch.uint8)
        coding.write(backend.context, memory.data_ptr())
        assert memory[-68:].tolist() == [255] * 4 + [7] * 64


@every_isa
@every_kind
@pytest.mark.usefixtures("always")
def test_linear(isa: str, make: Maker) -> None:
    """All tiles of 1 to 64 rows, several groups of tiles, several slabs, odd numbers of steps.
    Breaks when an exception of a later slab or group is missed, or a tile reads another's."""
    sizes = [*range(1, 20), 28, 29, 31, 33, 42, 48, 64, 112, 113, 230]
    for n, k in ((33, 5), (70, 601)):
        both = pair_of(CpuBackend(1), make(n, k))
        dense = torch.randn(max(sizes), k).to(BF16)
        for threads in (1, 2):
            sides = []
            for weight in both:
                native = NativePass(isa, threads)
                x = cast(native.recorder, dense, BF16)
                sides.append((native, native.recorder.linear(x, weight)))
            for rows in sizes if threads == 1 else (1, 16):
                expected, ours = (results(*side, rows) for side in sides)
                assert_same_bits(ours, expected, f"{n} x {k}, {rows} rows")


def results(native: NativePass, out: int, rows: int) -> torch.Tensor:
    """Which NaN comes of two is the compiler's choice."""
    native.feed(list(range(rows)))
    found = native.read(out)
    return found.masked_fill(found.isnan(), torch.nan)


@every_isa
@every_kind
@pytest.mark.usefixtures("always")
def test_embedding(isa: str, make: Maker) -> None:
    """Rows in any order. Breaks when a row takes an exception of another column."""
    dense = make(70, 45)
    for weight in pair_of(CpuBackend(1), dense):
        native = NativePass(isa)
        out = native.recorder.embedding(weight)
        ids = torch.randperm(70)
        native.feed(ids.tolist())
        assert_same_bits(native.read(out), dense[ids].float())


def test_what_is_compressed() -> None:
    """Three quarters of the memory where weights are alike, none saved where they are not: breaks
    when all is compressed, or the tables are not the block's own."""
    backend = CpuBackend(2)
    blocks = normal(320, 512) * 2.0 ** (torch.arange(320) // 32 * 20 - 100)[:, None].to(BF16)
    for dense in (normal(256, 512), blocks):
        plain, compressed = pair_of(backend, dense)
        assert compressed.memory.numel() < 0.77 * 2 * plain.memory.numel()
    for dense in (spread(64, 64), patterns(64, 64)):
        plain, kept = pair_of(backend, dense)
        assert kept.memory.dtype == BF16
        assert kept.memory.data_ptr() != plain.memory.data_ptr()
        assert kept.bias is plain.bias
        assert_same_bits(unpack_linear(kept), dense)


def test_the_most_frequent_are_coded() -> None:
    """Eight high bytes make a table: a ninth, rarer one alone becomes an exception."""
    kinds = torch.tensor([2.0 ** (2 * e) for e in range(9)])
    dense = kinds.repeat(32, 2)[:, :16].contiguous()
    dense[:, 8] = kinds[0]
    dense[5, 3], dense[9, 8] = kinds[8], -kinds[8]
    backend = CpuBackend(1)
    weight = backend.pack_linear(dense, BF16)
    assert _C.Coding(backend.context, weight.handle).exceptions == 2


def test_what_cannot_be_compressed() -> None:
    """Breaks when a matrix wider than places can number is coded, or another dtype."""
    backend = CpuBackend(1)
    wide = backend.pack_linear(torch.ones(1, _C.MAX_CODED_COLUMNS + 1), BF16)
    assert backend.compress(wide).memory.dtype == BF16
    with pytest.raises(ValueError, match="k = 262145 cannot be coded: at most 262144"):
        _C.Coding(backend.context, wide.handle)
    for dtype in (F32, I8):
        weight = backend.pack_linear(torch.ones(4, 4), dtype)
        with pytest.raises(ValueError, match="only bf16 weights can be coded"):
            backend.compress(weight)
        with pytest.raises(ValueError, match="only coded weights can be decoded"):
            _C.decode(weight.handle, 0)
    with pytest.raises(ValueError, match=r"what Coding\.write returns"):
        _C.PackedMatrix(weight.memory.data_ptr(), _C.DType.coded, 4, 4)


def test_the_widest_is_compressed() -> None:
    """Breaks when its last places overflow."""
    dense = torch.ones(2, _C.MAX_CODED_COLUMNS).to(BF16)
    dense[1, -1], dense[0, -1] = torch.inf, 1e-30
    backend = CpuBackend(1)
    dense[0, ::9] = torch.tensor([2.0 ** (2 * e) for e in range(7)]).repeat(5000)[
        : len(dense[0, ::9])
    ]
    _, compressed = pair_of(backend, dense)
    assert compressed.memory.dtype == torch.uint8
    assert_same_bits(unpack_linear(compressed), dense)
    native = NativePass("portable")
    out = native.recorder.embedding(compressed)
    native.feed([0, 1])
    assert_same_bits(native.read(out), dense.float())


def test_where_it_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models beyond the last-level cache, on AVX-512."""
    monkeypatch.setattr(cpu, "last_level_cache", lambda: 1000)
    for isa in _C.build_info()["cpu_supported"]:
        backend = CpuBackend(1, isa)
        assert not backend.gains_by_compression(1000)
        assert backend.gains_by_compression(1001) == (isa not in ("portable", "avx2"))
    monkeypatch.undo()
    assert 1 << 18 <= cpu.last_level_cache() <= 1 << 32
