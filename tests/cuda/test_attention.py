"""Review attention over the paged cache: against float64, and bit by bit against plain decoding."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from cascade_engine.ops.launch import ELEMENT, Launcher
from tests.cuda.support import (
    BF16,
    CHUNK,
    F16,
    PAGE,
    Rows,
    assert_near,
    assert_same_bits,
    stale,
)


@dataclasses.dataclass
class Attention:
    """A cache whose unwritten places hold NaN, and queries over it."""

    rows: Rows
    heads: int
    kv_heads: int
    dim: int
    dtype: torch.dtype = BF16
    bias: torch.Tensor | None = None
    kv_lengths: list[int] | None = None
    shared_limit: int = 227 << 10

    def __post_init__(self) -> None:
        rows, run = self.rows, self.rows.run
        pages = rows.tables.numel()
        shape = (pages, self.kv_heads, PAGE, self.dim)
        self.keys, self.values = (stale(shape, self.dtype).to(run.device) for _ in range(2))
        self.queries = torch.randn(len(rows.starts) * rows.width, self.heads, self.dim)
        self.queries = self.queries.to(self.dtype).to(run.device)

    def place(self, r: int, index: int) -> tuple[int, int]:
        slot = self.rows.slots[r] if self.rows.slots else r
        return int(self.rows.tables[slot, index // PAGE]), index % PAGE

    def write(self, r: int, index: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        page, offset = self.place(r, index)
        self.keys[page, :, offset] = keys.to(self.keys)
        self.values[page, :, offset] = values.to(self.values)

    def fill(self) -> None:
        """Random keys and values for everything that the rows have cached and feed now."""
        for r, (start, count) in enumerate(zip(self.rows.starts, self.rows.counts, strict=True)):
            if self.rows.slots is None or self.rows.slots[r] >= 0:
                for i in range(self.kv_lengths[r] if self.kv_lengths else start + count):
                    self.write(r, i, *torch.randn(2, self.kv_heads, self.dim))

    def __call__(self, scale: float = 0.2) -> torch.Tensor:
        rows, run = self.rows, self.rows.run
        queries = len(rows.starts) * rows.width
        chunks = -(-rows.tables.shape[1] * PAGE // CHUNK)
        size = run.module.attention_partial_floats(queries, self.heads, self.dim, chunks)
        partials = torch.full((size,), torch.nan, device=run.device)
        out = torch.full((queries, self.heads, self.dim), torch.nan, dtype=self.dtype)
        out = out.to(run.device)
        lengths = None
        if self.kv_lengths is not None:
            lengths = torch.tensor(self.kv_lengths, dtype=torch.int32, device=run.device)
        run(
            "attention",
            batch=rows.batch,
            queries=self.queries,
            heads=self.heads,
            scale=scale,
            bias=None if self.bias is None else self.bias.to(run.device),
            bias_distances=0 if self.bias is None else self.bias.shape[1],
            kv_lengths=lengths,
            cache={
                "keys": self.keys,
                "values": self.values,
                "dtype": ELEMENT[self.dtype],
                "kv_heads": self.kv_heads,
                "head_dim": self.dim,
            },
            out=out,
            max_chunks=chunks,
            partials=partials,
            multiprocessors=run.multiprocessors,
            shared_limit=self.shared_limit,
        )
        return out.cpu()

    def exact(self, a: int, r: int, t: int, scale: float = 0.2) -> torch.Tensor:
        """float64 `[heads, dim]` of one query."""
        seen = self.rows.path(r, t)
        if self.kv_lengths is not None:
            seen = list(range(self.kv_lengths[r]))
        places = [self.place(r, i) for i in seen]
        group = self.heads // self.kv_heads
        keys = torch.stack([self.keys[p, :, o] for p, o in places]).double().cpu()
        values = torch.stack([self.values[p, :, o] for p, o in places]).double().cpu()
        keys, values = keys.repeat_interleave(group, 1), values.repeat_interleave(group, 1)
        scores = torch.einsum("hd,shd->hs", self.queries[a].double().cpu(), keys) * scale
        if self.bias is not None:
            distance = torch.arange(len(seen)).flip(0).clamp(max=self.bias.shape[1] - 1)
            scores += self.bias.double()[:, distance]
        return torch.einsum("hs,shd->hd", scores.softmax(-1), values)


def check(case: Attention, scale: float = 0.2) -> None:
    case.fill()
    ours = case(scale)
    present = case.rows.present()
    for a, r, t in present:
        assert_near(ours[a], case.exact(a, r, t, scale), 2, case.dtype, (r, t))
    holes = set(range(len(ours))) - {a for a, _, _ in present}
    assert not ours[sorted(holes)].any(), "holes are zeros"


@pytest.mark.parametrize("dtype", [BF16, F16])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim", "starts", "counts"),
    [
        (2, 2, 64, [0], [1]),
        (2, 1, 64, [5, 0, 254], [3, 0, 5]),  # an empty row; one that crosses a chunk
        (6, 2, 128, [300, 17], [7, 1]),  # 21 query rows: more than one tile of them
        (4, 2, 8, [63], [2]),
        (3, 1, 72, [512], [30]),  # 90 query rows: more than one group of them
    ],
)
def test_chains(
    run: Launcher,
    dtype: torch.dtype,
    heads: int,
    kv_heads: int,
    dim: int,
    starts: list[int],
    counts: list[int],
) -> None:
    check(Attention(Rows(run, starts, counts), heads, kv_heads, dim, dtype))


def test_holes_in_the_batch(run: Launcher) -> None:
    rows = Rows(run, [9, 40, 3], [2, 2, 1], slots=[1, -1, 0], width=4)
    check(Attention(rows, 4, 2, 64))


TREE = [-1, 0, 0, -1, 2, 2, 4, 3, 6]


@pytest.mark.parametrize("start", [3, 250, 20])
def test_trees(run: Launcher, start: int) -> None:
    """Nodes see their ancestors only; the base lies before, at and across a chunk's border; a row
    beside them is a chain, and tokens before the tree are fed with it."""
    rows = Rows(run, [start, 30], [len(TREE) + 2, 4], [TREE, None])
    check(Attention(rows, 4, 2, 64))


def test_a_relative_bias_and_no_scale(run: Launcher) -> None:
    rows = Rows(run, [270, 2], [3, 2])
    case = Attention(rows, 4, 2, 64, bias=torch.randn(4, 128))
    case.queries.mul_(0.2)
    check(case, scale=1.0)


def test_cross_attention(run: Launcher) -> None:
    """Every query sees the whole of its row's other cache, wherever the row stands."""
    check(Attention(Rows(run, [3, 700], [2, 3]), 4, 4, 64, kv_lengths=[261, 33]))


def test_tree_tokens_get_the_bits_of_plain_decoding(run: Launcher) -> None:
    """Each node's output equals that of a chain which holds its path at consecutive places, fed one
    token at a time."""
    start = 245  # the path crosses into the next chunk
    parents = [-1, 0, 0, 1, 2, 4, 5, 6, 7, 8, 9, 10, 11, 12, 3]
    rows = Rows(run, [start], [len(parents)], [parents])
    tree = Attention(rows, 4, 2, 64)
    tree.fill()
    ours = tree()
    for t in (2, 3, 13, 14):
        path = rows.path(0, t)
        chain = Attention(Rows(run, [len(path) - 1], [1]), 4, 2, 64)
        for i, index in enumerate(path):
            page, offset = tree.place(0, index)
            chain.write(0, i, tree.keys[page, :, offset], tree.values[page, :, offset])
        chain.queries[0] = tree.queries[t]
        assert_same_bits(chain()[0], ours[t], t)


@pytest.mark.parametrize("dim", [64, 128])
def test_bits_do_not_depend_on_what_else_is_in_the_pass(run: Launcher, dim: int) -> None:
    """The last tokens of a row alone, together, and in other batches with other pages."""
    start, count, width = 250, 64, 64
    together = Attention(Rows(run, [start], [count]), 2, 1, dim)
    together.fill()
    expected = together()
    for counts in ([1], [2], [5, 40], [17]):
        rows = Rows(run, [start + count - counts[0], *[7] * len(counts[1:])], counts)
        other = Attention(rows, 2, 1, dim)
        other.fill()
        for i in range(start + count):
            page, offset = together.place(0, i)
            other.write(0, i, together.keys[page, :, offset], together.values[page, :, offset])
        first = width - counts[0]
        other.queries[: counts[0]] = together.queries[first:]
        assert_same_bits(other()[: counts[0]], expected[first:], counts)
    together.shared_limit = 99 << 10  # 16 query rows at a time instead of 64
    assert_same_bits(together(), expected)


def test_refuses_what_it_does_not_cover(run: Launcher) -> None:
    for heads, kv_heads, dim, message in (
        (2, 1, 136, "multiple of 8 up to 128, got 136"),
        (3, 2, 64, "3 heads are not a multiple of 2"),
    ):
        with pytest.raises(ValueError, match=message):
            Attention(Rows(run, [0], [1]), heads, kv_heads, dim)()
