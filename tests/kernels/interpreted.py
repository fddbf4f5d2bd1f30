"""Runs every Triton kernel (under TRITON_INTERPRET=1, or on a GPU) and compares it with float64."""

from __future__ import annotations

import torch
from cascade_engine.kernels.fused_norm import fused_norm
from cascade_engine.kernels.prefill_attention import prefill_attention
from cascade_engine.kernels.rope_store import rope_store
from cascade_engine.kernels.swiglu import swiglu

PAGE = 16
F16, F32 = torch.float16, torch.float32
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


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


def attend(dtype: torch.dtype, start: int, count: int, heads: int, kv_heads: int, dim: int) -> None:
    """Places behind the last token hold NaN; a query's bits do not depend on the chunk's start."""
    torch.manual_seed(start)
    length = start + count
    table = torch.randperm(12, dtype=torch.int32, device=DEVICE)
    keys, values = torch.full((2, 12, kv_heads, PAGE, dim), torch.nan, dtype=dtype, device=DEVICE)
    dense = torch.randn(2, length, kv_heads, dim, device=DEVICE).to(dtype)
    for i in range(length):
        keys[table[i // PAGE], :, i % PAGE], values[table[i // PAGE], :, i % PAGE] = dense[:, i]
    queries = torch.randn(count, heads, dim, device=DEVICE).to(dtype)
    out = torch.full_like(queries, torch.nan)
    prefill_attention(queries, keys, values, table, start, 0.3, out)
    k, v = (x.double().repeat_interleave(heads // kv_heads, 1) for x in dense)
    scores = torch.einsum("qhd,khd->hqk", queries.double(), k) * 0.3
    place = torch.arange(length, device=DEVICE)
    scores.masked_fill_(place[None, :] > place[start:, None], -torch.inf)
    near(out, torch.einsum("hqk,khd->qhd", scores.softmax(-1), v), "attention", units=4)
    later = min(3, count - 1)
    part = torch.full_like(queries[later:], torch.nan)
    prefill_attention(queries[later:], keys, values, table, start + later, 0.3, part)
    near(part, out[later:].double(), "another chunk", units=4)


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    for dtype in (F32, F16):
        check_norm(dtype, adds=False)
        check_norm(dtype, adds=True)
        check_swiglu(dtype)
        check_rope_store(dtype)
    attend(F32, 0, 5, 2, 1, 24)
    attend(F16, 61, 70, 4, 2, 64)
    attend(F32, 128, 1, 2, 2, 80)


if __name__ == "__main__":
    main()
