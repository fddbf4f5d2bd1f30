"""Review attention over the paged cache: against float64, and bit by bit against plain decoding."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from cascade_engine.ops.bias import RelativeBias
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
    bias: RelativeBias | None = None
    sources: list[int] | None = None
    """Tokens at the rows' beginnings that an encoder reads."""
    over_source: bool = False
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
        """Random keys and values for everything that the queries see."""
        for r, (start, count) in enumerate(zip(self.rows.starts, self.rows.counts, strict=True)):
            if self.rows.slots is None or self.rows.slots[r] >= 0:
                first = self.sources[r] if self.sources and not self.over_source else 0
                end = self.sources[r] if self.sources and self.over_source else start + count
                for i in range(first, end):
                    self.write(r, i, *torch.randn(2, self.kv_heads, self.dim))

    def __call__(self, scale: float = 0.2) -> torch.Tensor:
        rows, run = self.rows, self.rows.run
        queries = len(rows.starts) * rows.width
        chunks = -(-rows.tables.shape[1] * PAGE // CHUNK)
        size = run.module.attention_partial_floats(queries, self.heads, self.dim, chunks)
        partials = torch.full((size,), torch.nan, device=run.device)
        out = torch.full((queries, self.heads, self.dim), torch.nan, dtype=self.dtype)
        out = out.to(run.device)
        sources = None
        if self.sources is not None:
            sources = torch.tensor(self.sources, dtype=torch.int32, device=run.device)
        run(
            "attention",
            batch=rows.batch,
            queries=self.queries,
            heads=self.heads,
            scale=scale,
            bias=None if self.bias is None else self.bias.table.to(run.device),
            bias_reach=0 if self.bias is None else self.bias.reach,
            sources=sources,
            over_source=self.over_source,
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
        seen, first = self.rows.path(r, t), self.sources[r] if self.sources else 0
        offsets = torch.arange(1 - len(seen), 1)[first:]
        seen = seen[first:]
        if self.over_source:
            offsets, seen = torch.arange(first) - (self.rows.starts[r] + t), list(range(first))
        places = [self.place(r, i) for i in seen]
        group = self.heads // self.kv_heads
        keys = torch.stack([self.keys[p, :, o] for p, o in places]).double().cpu()
        values = torch.stack([self.values[p, :, o] for p, o in places]).double().cpu()
        keys, values = keys.repeat_interleave(group, 1), values.repeat_interleave(group, 1)
        scores = torch.einsum("hd,shd->hs", self.queries[a].double().cpu(), keys) * scale
        if self.bias is not None:
            scores += self.bias.at(offsets).double()
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


def random_bias(heads: int, reach: int = 20) -> RelativeBias:
    """The margin repeats what lies at the reach."""
    inner = torch.randn(heads, 2 * reach + 1)
    ends = [inner[:, i : i + 1].repeat(1, RelativeBias.MARGIN) for i in (0, 2 * reach)]
    return RelativeBias(torch.cat([ends[0], inner, ends[1]], 1), reach)


def check_unscaled(case: Attention) -> None:
    case.queries.mul_(0.2)
    check(case, scale=1.0)


def test_a_relative_bias_and_no_scale(run: Launcher) -> None:
    rows = Rows(run, [270, 2, 30], [3, 2, len(TREE)], [None, None, TREE])
    check_unscaled(Attention(rows, 4, 2, 64, bias=random_bias(4)))


def test_cross_attention(run: Launcher) -> None:
    """Every query sees the whole of its row's source, nodes of a tree as well; what lies behind it
    is NaN here."""
    rows = Rows(run, [300, 700, 40], [2, 3, len(TREE)], [None, None, TREE])
    check(Attention(rows, 4, 4, 64, sources=[261, 33, 39], over_source=True))


def test_an_encoder_sees_both_ways(run: Launcher) -> None:
    """Whole sources of several lengths at once, one beyond a chunk."""
    lengths = [261, 1, 33]
    rows = Rows(run, [0, 0, 0], lengths)
    bias = random_bias(2)
    check_unscaled(Attention(rows, 2, 2, 8, sources=lengths, over_source=True, bias=bias))


def test_a_decoder_sees_what_is_behind_the_source(run: Launcher) -> None:
    """What the source's slots hold is NaN here: sources that end before, at and behind the border
    of a chunk; a tree whose base lies in the chunk of the source's end, or in the next."""
    sources = [255, 256, 260, 5, 250, 300]
    starts = [255, 257, 510, 5, 251, 515]
    trees = [None, None, None, None, TREE, TREE]
    counts = [1, 3, 8, 1, len(TREE), len(TREE)]
    rows = Rows(run, starts, counts, trees)
    check_unscaled(Attention(rows, 4, 2, 16, sources=sources, bias=random_bias(4)))


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
    small = Attention(Rows(run, [0], [1]), 20, 1, 128)
    small.shared_limit = 99 << 10
    with pytest.raises(ValueError, match=r"20 heads share keys, which needs .* at most 16 heads"):
        small()
    with pytest.raises(ValueError, match="needs sources"):
        Attention(Rows(run, [0], [1]), 2, 2, 8, over_source=True)()
