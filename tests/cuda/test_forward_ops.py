"""Embedding, norm, rotation, store, gate and the choice of logit rows."""

from __future__ import annotations

import pytest
import torch

from cascade_engine.ops.launch import ELEMENT, Launcher, pack_tiles
from tests.cuda.support import BF16, F16, PAGE, Rows, assert_near, assert_same_bits, stale


def rows_with_tokens(run: Launcher) -> Rows:
    """Two chains, a hole, and a tree."""
    tokens = torch.arange(4 * 64, dtype=torch.int32).view(4, 64) % 37
    return Rows(
        run,
        [5, 0, 9, 17],
        [2, 0, 3, 4],
        [None, None, None, [-1, 0, 0]],
        slots=[2, -1, 0, 3],
        capacity=64,
        tokens=tokens,
    )


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dtype", [BF16, F16])
def test_embedding(run: Launcher, dtype: torch.dtype, packed: bool) -> None:
    rows = rows_with_tokens(run)
    table = torch.randn(37, 76).to(dtype)
    memory = pack_tiles(table, 128, 64) if packed else table
    out = torch.full((16, 76), torch.nan, device=run.device)
    run(
        "embedding",
        batch=rows.batch,
        table=memory.to(run.device),
        dtype=ELEMENT[dtype],
        packed=packed,
        vocab=37,
        cols=76,
        out=out,
    )
    expected = torch.zeros(16, 76)
    for a, r, t in rows.present():
        slot = [2, -1, 0, 3][r]
        expected[a] = table[int(rows.tokens[slot, rows.starts[r] + t])].float()
    assert torch.equal(out.cpu(), expected)


def test_logit_rows(run: Launcher) -> None:
    rows = rows_with_tokens(run)
    x = torch.randn(16, 20)
    x[[2, 3, 4, 11]] = torch.nan  # holes are not read as numbers
    wanted = torch.tensor([1, 0, 3, 2], dtype=torch.int32)
    out = torch.full((12, 20), torch.nan, device=run.device)
    run(
        "select_logit_rows",
        batch=rows.batch,
        wanted=wanted.to(run.device),
        logit_width=3,
        x=x.to(run.device),
        words=20,
        out=out,
    )
    source = [1, -1, -1, -1, -1, -1, 8, 9, 10, 14, 15, -1]
    expected = torch.stack([x[i] if i >= 0 else torch.zeros(20) for i in source])
    assert torch.equal(out.cpu(), expected)


def norm(run: Launcher, x: torch.Tensor, weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    rows, cols = x.shape
    out = torch.full((rows, cols + 3), torch.nan, dtype=dtype, device=run.device)
    run(
        "rms_norm",
        x=x.to(run.device),
        weight=weight.to(run.device),
        eps=1e-5,
        rows=rows,
        cols=cols,
        out=out,
        out_stride=cols + 3,
        dtype=ELEMENT[dtype],
    )
    assert out[:, cols:].isnan().all()
    return out[:, :cols].cpu()


@pytest.mark.parametrize("dtype", [BF16, F16])
@pytest.mark.parametrize("cols", [1, 64, 300, 1027])
def test_rms_norm(run: Launcher, dtype: torch.dtype, cols: int) -> None:
    x, weight = torch.randn(5, cols) * 3, torch.randn(cols)
    exact = x.double() * torch.rsqrt(x.double().pow(2).mean(-1, keepdim=True) + 1e-5)
    ours = norm(run, x, weight, dtype)
    assert_near(ours, exact * weight, 0.6, dtype)
    assert_same_bits(norm(run, x[3:4], weight, dtype), ours[3:4])


@pytest.mark.parametrize("op", ["swiglu", "geglu"])
def test_gates(run: Launcher, op: str) -> None:
    x = torch.randn(3, 2 * 300) * 4
    x[0, 0], x[0, 1] = 200.0, -200.0
    out = torch.full((3, 304), torch.nan, dtype=BF16, device=run.device)
    run(
        op,
        gate_up=x.to(run.device),
        rows=3,
        cols=300,
        out=out,
        out_stride=304,
        dtype=ELEMENT[BF16],
    )
    gate = x[:, :300].double()
    gelu = torch.nn.functional.gelu(gate, approximate="tanh")
    exact = (gelu if op == "geglu" else torch.nn.functional.silu(gate)) * x[:, 300:].double()
    for row in range(3):
        assert_near(out[row : row + 1, :300], exact[row : row + 1], 0.6, BF16)
    assert out[:, 300:].isnan().all()


@pytest.mark.parametrize("rotary", [True, False])
@pytest.mark.parametrize("dtype", [BF16, F16])
def test_rope_and_store(run: Launcher, dtype: torch.dtype, rotary: bool) -> None:
    """Depth turns, the index in the row decides the place; holes store nothing."""
    rows, heads, kv_heads, dim = rows_with_tokens(run), 4, 2, 24
    qkv = torch.randn(16, (heads + 2 * kv_heads) * dim)
    inv_freq = 100.0 ** -(torch.arange(dim // 2) / (dim // 2))
    cos, sin = torch.full((2, 16, dim // 2), torch.nan, device=run.device)
    run(
        "rope_angles",
        batch=rows.batch,
        inv_freq=inv_freq.to(run.device),
        half=dim // 2,
        cos=cos,
        sin=sin,
    )
    keys, values = stale((2, rows.tables.numel(), kv_heads, PAGE, dim), dtype).to(run.device)
    before = keys.clone(), values.clone()
    queries = torch.full((16, heads, dim), torch.nan, dtype=dtype, device=run.device)
    cache = {"keys": keys, "values": values, "dtype": ELEMENT[dtype]}
    run(
        "rope_store",
        batch=rows.batch,
        qkv=qkv.to(run.device),
        cos=cos if rotary else None,
        sin=sin if rotary else None,
        heads=heads,
        cache={**cache, "kv_heads": kv_heads, "head_dim": dim},
        queries=queries,
    )
    for a, r, t in rows.present():
        position = len(rows.path(r, t)) - 1
        x = qkv[a].double().view(-1, dim)
        if rotary:
            angle = (torch.tensor(float(position)) * inv_freq).double()
            first, second = x[: heads + kv_heads].chunk(2, -1)
            turned = [first * angle.cos() - second * angle.sin()]
            turned.append(second * angle.cos() + first * angle.sin())
            x[: heads + kv_heads] = torch.cat(turned, -1)
        index, slot = rows.starts[r] + t, [2, -1, 0, 3][r]
        page, offset = int(rows.tables[slot, index // PAGE]), index % PAGE
        assert_near(queries[a], x[:heads], 0.6, dtype)
        assert_near(keys[page, :, offset], x[heads:-kv_heads], 0.6, dtype)
        assert_near(values[page, :, offset], x[-kv_heads:], 0.6, dtype)
        for now, old in ((keys, before[0]), (values, before[1])):
            old[page, :, offset] = now[page, :, offset]
    assert_same_bits(keys, before[0], "places of nobody")
    assert_same_bits(values, before[1], "places of nobody")


@pytest.mark.parametrize("dim", [136, 50])
def test_commit_moves_the_accepted_path(run: Launcher, dim: int) -> None:
    """In all planes, across pages, overlapping: nodes 1 2 5 6 20 move to 0 .. 4."""
    planes, kv_heads, start = 3, 2, 13
    paths = [[1, 2, 5, 6, 20], [0, 1], [], [3]]
    parents = [[-1] * 24] * 4
    rows = Rows(
        run,
        [start] * 4,
        [24] * 4,
        parents,
        slots=[1, 3, 0, -1],
        capacity=64,
        tokens=torch.zeros(4, 64, dtype=torch.int32),
    )
    cache = torch.randint(0, 30000, (planes, 16, kv_heads, PAGE, dim), dtype=torch.int16)
    device_cache = cache.clone().to(run.device)
    table = torch.zeros(4, 24, dtype=torch.int32)
    for r, path in enumerate(paths):
        table[r, : len(path)] = torch.tensor(path, dtype=torch.int32)
    run(
        "commit_path",
        batch=rows.batch,
        paths=table.to(run.device),
        path_lengths=torch.tensor([len(p) for p in paths], dtype=torch.int32).to(run.device),
        path_stride=24,
        cache=device_cache,
        planes=planes,
        plane_elements=cache[0].numel(),
        kv_heads=kv_heads,
        head_dim=dim,
    )
    expected = cache.clone()
    tables = rows.tables.cpu()
    for r, slot in ((0, 1), (1, 3)):
        for i, node in enumerate(paths[r]):
            source, target = start + node, start + i
            expected[:, int(tables[slot, target // PAGE]), :, target % PAGE] = cache[
                :, int(tables[slot, source // PAGE]), :, source % PAGE
            ]
    assert torch.equal(device_cache.cpu(), expected)


def test_copy_pages(run: Launcher) -> None:
    cache = torch.randint(0, 30000, (2, 5, 2 * PAGE * 40), dtype=torch.int16)
    device_cache = cache.clone().to(run.device)
    pairs = torch.tensor([[3, 0], [-1, 2], [4, 1]], dtype=torch.int32)
    run(
        "copy_pages",
        pairs=pairs.to(run.device),
        count=3,
        cache=device_cache,
        planes=2,
        plane_elements=cache[0].numel(),
        page_elements=cache[0, 0].numel(),
    )
    expected = cache[:, [3, 4, 2, 3, 4]]
    assert torch.equal(device_cache.cpu(), expected)
