"""Attention with a source and with a relative bias, and T5's activations, against the reference
backend in float64, on every instruction set of the machine."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers.models.t5.modeling_t5 import T5Attention

from cascade_engine.cache import pages_for
from cascade_engine.models.relative import bias_by_offset, buckets
from cascade_engine.ops import ReferenceOps, RelativeBias
from cascade_engine.ops.reference import ReferenceCache
from tests.ops.native import every_isa
from tests.ops.support import BF16, F32, NativePass, assert_close, stale_memory
from tests.ops.test_forward_ops import check

both_dtypes = pytest.mark.parametrize("dtype", [F32, BF16], ids=["f32", "bf16"])


@every_isa
@both_dtypes
def test_geglu(isa: str, dtype: torch.dtype) -> None:
    """Breaks when gate and up change places, or the gate is wrong in some range."""

    def check_rows(gate_up: torch.Tensor, what: object, by_row: bool = False) -> None:
        def describe(ops: Any) -> Any:
            return ops.geglu(ops.embedding(gate_up), dtype)

        check(isa, describe, len(gate_up), dtype, what, by_row)

    for cols in (1, 7, 16, 33, 100, 1000):
        check_rows(torch.randn(11, 2 * cols) * 4, cols)
    gates = torch.linspace(-4, 40, 2001)[:, None]  # below, the reference in float32 cancels
    check_rows(torch.cat([gates, torch.ones_like(gates)], 1), "range", by_row=True)
    low = torch.linspace(-90, -4, 1000)[:, None]
    native = NativePass(isa)
    out = native.recorder.geglu(
        native.recorder.embedding(torch.cat([low, torch.ones_like(low)], 1)), F32
    )
    native.feed(range(1000))
    exact = ReferenceOps(range(1000)).geglu(torch.cat([low, torch.ones_like(low)], 1).double(), F32)
    assert (native.read(out).double() - exact).abs().max() < 1e-9


@every_isa
@both_dtypes
def test_relu(isa: str, dtype: torch.dtype) -> None:
    """Breaks when a sign or a tail is lost."""
    for cols in (1, 15, 16, 33, 1000):
        x = torch.randn(9, cols)
        check(isa, lambda ops: ops.relu(ops.embedding(x), dtype), 9, dtype, cols)  # noqa: B023


@pytest.mark.parametrize("both_ways", [True, False])
@pytest.mark.parametrize(("count", "distance"), [(32, 128), (8, 20), (4, 3), (64, 1000), (7, 40)])
def test_buckets_are_those_of_transformers(both_ways: bool, count: int, distance: int) -> None:
    """Breaks when a border between two buckets moves by one."""
    offsets = torch.arange(-3 * distance, 3 * distance + 1)
    expected = T5Attention._relative_position_bucket(offsets, both_ways, count, distance)
    assert torch.equal(buckets(offsets, both_ways, count, distance), expected)
    table = torch.randn(count, 3)
    bias = bias_by_offset(table, both_ways, distance)
    assert torch.equal(bias.at(offsets), table[expected].T)


def test_a_bias_of_another_width_is_refused() -> None:
    with pytest.raises(ValueError, match=r"reach 8 needs a float32 table of 47 columns"):
        RelativeBias(torch.zeros(2, 46), 8)


class Layer:
    """One layer's queries, keys and values for a row of `source` + `behind` tokens, natively on
    scattered pages and in the reference."""

    def __init__(self, source: int, behind: int, heads: int, kv_heads: int, dim: int) -> None:
        self.source, self.tokens = source, source + behind
        self.heads, self.kv_heads, self.dim = heads, kv_heads, dim
        self.qkv = torch.randn(self.tokens, (heads + 2 * kv_heads) * dim).bfloat16().float()
        self.bias = bias_by_offset(torch.randn(32, heads) * 2, True, 60)

    def describe(self, ops: Any, layer: Any, over_source: bool, dtype: torch.dtype) -> Any:
        value = ops.embedding(self.qkv)
        ops.rope_store(value, self.heads, layer)
        return ops.attention(value, self.heads, 0.5, layer, dtype, self.bias, over_source)

    def native(self, isa: str, dtype: torch.dtype) -> list[torch.Tensor]:
        """Of the source over itself, of the rest over the source, of the rest over itself."""
        pages = pages_for(self.tokens) + 2
        table = torch.randperm(pages, dtype=torch.int32)
        sources = torch.tensor([self.source], dtype=torch.int32)
        data = stale_memory((1, 2, pages, self.kv_heads * self.dim * 16), dtype)
        found = []
        for over_source in (False, True):  # at first the source's slots are stale
            native = NativePass(isa, 2, capacity=self.tokens, pages=pages)
            native.block_table[0] = table[: native.block_table.shape[1]]
            native.program.bind_sources(sources.data_ptr())
            [layer] = native.recorder.cache_layers(data, self.kv_heads, self.dim)
            out = self.describe(native.recorder, layer, over_source, dtype)
            if over_source:
                native.feed(range(self.source))
                found.append(native.read(out, dtype))
            native.feed(range(self.source, self.tokens), self.source)
            found.append(native.read(out, dtype))
        return [*found[1:], found[0]]

    def reference(self, precision: torch.dtype) -> list[torch.Tensor]:
        cache, found = ReferenceCache(self.kv_heads, self.dim), []
        source = self.source
        for start, stop, over_source in (
            (0, source, True),
            (source, self.tokens, True),
            (source, self.tokens, False),
        ):
            ops = ReferenceOps(range(start, stop), start, precision=precision, source=source)
            found.append(self.describe(ops, cache, over_source, precision))
        return found


LAYERS = [
    (1, 1, 3, 3, 6),
    (15, 20, 2, 2, 8),
    (16, 33, 4, 2, 20),
    (17, 300, 2, 2, 64),
    (250, 30, 3, 1, 10),
    (256, 17, 2, 2, 16),
    (257, 270, 5, 5, 4),
    (600, 100, 2, 1, 34),
]


@every_isa
@both_dtypes
@pytest.mark.parametrize("shape", LAYERS, ids=str)
def test_attention_of_encoder_and_decoder(
    isa: str, dtype: torch.dtype, shape: tuple[int, int, int, int, int]
) -> None:
    """Breaks when a token sees across the source's end, a bias is of another head or offset, or
    the first page's masked lanes count."""
    layer = Layer(*shape)
    ours = layer.native(isa, dtype)
    naive, exact = layer.reference(F32), layer.reference(torch.float64)
    for mine, theirs, right in zip(ours, naive, exact, strict=True):
        assert_close(mine, theirs, right, dtype, shape)


def test_what_a_source_forbids() -> None:
    """Breaks when queries that see nothing are computed, or a row without a source is read."""
    layer = Layer(20, 20, 2, 2, 8)
    sources = torch.tensor([20], dtype=torch.int32)
    data = torch.zeros(1, 2, 3, 2 * 8 * 16)
    for over_source in (True, False):
        native = NativePass("", capacity=40, pages=3)
        native.block_table[0] = torch.arange(3)
        [cache] = native.recorder.cache_layers(data, 2, 8)
        layer.describe(native.recorder, cache, over_source, F32)
        if over_source:
            with pytest.raises(ValueError, match="row 0 has no source to attend to"):
                native.feed(range(20))
        native.program.bind_sources(sources.data_ptr())
        refused = [(0, 19), (0, 21), (5, 20), (19, 30)] + [(0, 20)] * (not over_source)
        for start, stop in refused:
            with pytest.raises(ValueError, match=f"positions {start}.*its source ends at 20"):
                native.feed(range(start, stop), start)
        native.feed(range(20, 40), 20)
