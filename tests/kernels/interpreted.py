"""Runs every Triton kernel (under TRITON_INTERPRET=1, or on a GPU) and compares it with float64."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from cascade_engine.kernels.attention import attention
from cascade_engine.kernels.fused_norm import fused_norm
from cascade_engine.kernels.rope_store import rope_store
from cascade_engine.kernels.swiglu import swiglu

from cascade_engine.ops.launch import Launcher
from tests.cuda.support import Rows, assert_same_bits
from tests.cuda.test_attention import Attention, check, random_bias

PAGE = 16
F16, F32 = torch.float16, torch.float32
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def near(ours: torch.Tensor, exact: torch.Tensor, what: str, units: float = 2.0) -> None:
    allowed = units * torch.finfo(ours.dtype).eps * float(exact.abs().max())
    if ours.dtype == F32:
        allowed *= 8
    error = float((ours.double().cpu() - exact.cpu()).abs().nan_to_num(torch.inf).max())
    assert error <= allowed, f"{what}: off by {error:.3g}, allowed {allowed:.3g}"


def check_norm(dtype: torch.dtype, adds: bool) -> None:
    x, delta = torch.randn(2, 5, 75, device=DEVICE)
    weight = torch.randn(75, device=DEVICE)
    out = torch.full((5, 80), torch.nan, dtype=dtype, device=DEVICE)
    exact = x.double() + (delta.double() if adds else 0)
    fused_norm(x, weight, 1e-5, out[:, :75], delta if adds else None)
    near(x, exact, "residual")
    scale = torch.rsqrt(exact.pow(2).mean(-1, keepdim=True) + 1e-5)
    near(out[:, :75], exact * scale * weight.double(), "norm")
    assert out[:, 75:].isnan().all()


def check_swiglu(dtype: torch.dtype) -> None:
    x = torch.randn(3, 2 * 1100, device=DEVICE) * 3
    out = torch.empty(3, 1100, dtype=dtype, device=DEVICE)
    swiglu(x, out)
    gate, up = x.double().chunk(2, -1)
    near(out, torch.nn.functional.silu(gate) * up, "swiglu")


def check_rope_store(dtype: torch.dtype) -> None:
    heads, kv_heads, dim = 4, 2, 24
    qkv = torch.randn(3, (heads + 2 * kv_heads) * dim, device=DEVICE)
    positions = torch.tensor([5, 0, 70], dtype=torch.int32, device=DEVICE)
    slots = torch.tensor([37, -1, 3], dtype=torch.int32, device=DEVICE)
    inv_freq = 100.0 ** -(torch.arange(dim // 2, device=DEVICE) / (dim // 2))
    keys, values = torch.full((2, 3, kv_heads, PAGE, dim), 9.0, dtype=dtype, device=DEVICE)
    queries = torch.full((3, heads, dim), 9.0, dtype=dtype, device=DEVICE)
    rope_store(qkv, positions, slots, inv_freq, keys, values, queries)
    assert (queries[1] == 9).all(), "a hole was written"
    for row in (0, 2):
        x = qkv[row].double().view(-1, dim)
        angle = (positions[row].float() * inv_freq).double()
        a, b = x[: heads + kv_heads].chunk(2, -1)
        turned = torch.cat(
            [a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1
        )
        page, place = divmod(int(slots[row]), PAGE)
        near(queries[row], turned[:heads], "queries")
        near(keys[page, :, place], turned[heads:], "keys")
        near(values[page, :, place], x[heads + kv_heads :], "values")
    untouched = torch.ones(3, PAGE, dtype=torch.bool)
    untouched[2, 5] = untouched[0, 3] = False
    assert (keys.transpose(1, 2)[untouched.to(DEVICE)] == 9).all()


class Triton(Launcher):
    """Triton's attention where the native one is launched."""

    def __init__(self) -> None:
        super().__init__(SimpleNamespace(attention_partial_floats=lambda *shape: 0), DEVICE)

    def __call__(self, name: str, *args: Any, **arguments: Any) -> None:
        assert name == "attention"
        row = arguments["heads"] * arguments["cache"]["head_dim"]
        attention(**arguments, out_stride=row)


TREE = [-1, 0, 0, -1, 2, 2, 4, 3, 6]


def check_attention() -> None:
    """The cases of the native kernel's tests, with head sizes that it lacks."""
    run = Triton()
    for heads, kv_heads, dim, starts, counts in (
        (2, 1, 100, [5, 0, 61], [3, 0, 9]),
        (40, 2, 20, [63, 2], [2, 1]),  # 20 heads share keys: more than a tile of queries
        (3, 3, 136, [130], [20]),
    ):
        check(Attention(Rows(run, starts, counts), heads, kv_heads, dim, F16))
    check(Attention(Rows(run, [9, 40], [2, 2], slots=[1, -1], width=4), 4, 2, 20, F16))
    for start in (3, 60):
        rows = Rows(run, [start, 30], [len(TREE) + 2, 4], [TREE, None])
        check(Attention(rows, 4, 2, 20, F16))
    sources, trees = [63, 64, 70, 60], [None, None, TREE, TREE]
    rows = Rows(run, [63, 66, 129, 61], [1, 3, 9, 9], trees)
    check(Attention(rows, 4, 2, 20, F16, random_bias(4), sources))
    rows = Rows(run, [100, 70, 40], [2, 3, len(TREE)], [None, None, TREE])
    check(Attention(rows, 4, 4, 20, F16, sources=[81, 33, 39], over_source=True))
    rows = Rows(run, [0, 0], [70, 1])
    check(Attention(rows, 2, 2, 20, F16, random_bias(2), [70, 1], over_source=True))
    check_bits(run)


def check_bits(run: Launcher) -> None:
    """Tokens of a tree, and of chains alone and together, get the bits of one token at a time."""
    parents, start = [-1, 0, 0, 1, 2, 4, 5, 6, 3], 58
    tree = Attention(Rows(run, [start], [len(parents)], [parents]), 4, 2, 20, F16)
    tree.fill()
    ours = tree()
    for t in (2, 7, 8):
        path = tree.rows.path(0, t)
        for fed in (1, 3):
            first = len(path) - fed
            chain = Attention(Rows(run, [first], [fed]), 4, 2, 20, F16)
            for i, index in enumerate(path):
                page, offset = tree.place(0, index)
                chain.write(0, i, tree.keys[page, :, offset], tree.values[page, :, offset])
            chain.queries[fed - 1] = tree.queries[t]
            assert_same_bits(chain()[fed - 1], ours[t], (t, fed))


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    for dtype in (F32, F16):
        check_norm(dtype, adds=False)
        check_norm(dtype, adds=True)
        check_swiglu(dtype)
        check_rope_store(dtype)
    check_attention()


if __name__ == "__main__":
    main()
