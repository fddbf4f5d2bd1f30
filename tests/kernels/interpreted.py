"""Runs every Triton kernel (under TRITON_INTERPRET=1, or on a GPU) and compares it with float64."""

from __future__ import annotations

from typing import Any

import torch
from cascade_engine.kernels.fused_norm import fused_norm

from cascade_engine import _C
from cascade_engine.gpu_kernels import ALTERNATIVES
from cascade_engine.ops import kernel_choice
from cascade_engine.ops.launch import Launcher
from tests.cuda import emulation
from tests.cuda.support import Rows, assert_same_bits
from tests.cuda.test_attention import Attention, check, random_bias
from tests.cuda.test_forward_ops import test_gates, test_rms_norm, test_rope_and_store

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


class Triton(Launcher):
    """Triton's kernels where native ones are launched that they stand for."""

    def __init__(self) -> None:
        native = _C.cuda if DEVICE.type == "cuda" else emulation.built()
        super().__init__(native, DEVICE)

    def __call__(self, name: str, *args: Any, **arguments: Any) -> None:
        if name not in ALTERNATIVES:
            super().__call__(name, *args, **arguments)
            return
        if name == "attention":
            arguments["out_stride"] = arguments["heads"] * arguments["cache"]["head_dim"]
        self.triton(name, **arguments)


def check_signatures(run: Launcher) -> None:
    """The native kernels' own tests."""
    for cols in (1, 300, 1027):
        test_rms_norm(run, F16, cols)
    test_gates(run, "swiglu")
    for rotary in (False, True):
        test_rope_and_store(run, F16, rotary)


TREE = [-1, 0, 0, -1, 2, 2, 4, 3, 6]


def check_measured_cases(run: Launcher) -> None:
    """What is timed to choose between kernels computes the same with either."""
    sizes = {"HIDDEN": 40, "INNER": 50, "HEADS": 4, "KV_HEADS": 2, "NATIVE_HEAD_DIM": 16}
    for name, value in sizes.items():
        setattr(kernel_choice, name, value)
    kernel_choice.CONTEXTS = ((1, 1, 40), (2, 3, 70))
    kernel_choice.DTYPE = F16  # the interpreter multiplies no bfloat16
    launcher = Launcher(run.module, DEVICE)
    found = kernel_choice.measure(launcher, list(ALTERNATIVES), lambda work: 1e-6)
    assert all(not t.failure and len(t.native) == len(t.triton) == 2 for t in found.values()), found


def check_attention(run: Launcher) -> None:
    """The cases of the native kernel's tests, with head sizes that it lacks."""
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
    run = Triton()
    check_signatures(run)
    check_attention(run)
    check_measured_cases(run)


if __name__ == "__main__":
    main()
