"""Compiles every Triton kernel for sm_80 and sm_90, without a GPU, and looks at what passes of a
model ask to be compiled."""

from __future__ import annotations

from typing import Any

import torch
import triton
from cascade_engine.kernels import attention, fused_norm, rope_store, swiglu
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import create_function_from_signature

F, H, I = "*fp32", "*bf16", "*i32"  # noqa: E741
KERNELS: list[tuple[Any, list[str], dict[str, Any]]] = [
    (
        fused_norm.fused_norm_kernel,
        [F, F, F, H, "i32", "i32", "i32", "fp32"],
        {"ADDS": True, "BLOCK": 4096},
    ),
    (swiglu.swiglu_kernel, [F, H, "i32", "i32", "i32"], {"BLOCK": 1024}),
    (
        rope_store.rope_store_kernel,
        [F, F, F, I, I, I, I, H, H, H, "i32", "i32"],
        {"HEADS": 32, "KV_HEADS": 8, "DIM": 128, "HALF": 64, "ROTATES": True, "PAGE": 16},
    ),
    (
        attention.attention_kernel,
        [H, H, H, H, I, I, I, I, "*i64", I, I, F, "i32", "i32", "i32", "i32", "fp32"],
        {
            "HEADS": 32,
            "KV_HEADS": 8,
            "DIM": 256,
            "WIDE": 256,
            "TREES": True,
            "SOURCES": True,
            "OVER": False,
            "BIAS": True,
            "MARGIN": 15,
            "PAGE": 16,
            "M": 16,
            "N": 64,
        },
    ),
]
SHARED = {80: 163 << 10, 90: 227 << 10}
"""Bytes that a block may have."""


class Asked:
    """Stands for a kernel: what its launches would be compiled for."""

    def __init__(self, kernel: Any) -> None:
        backend = make_backend(GPUTarget("cuda", 90, 32))
        self.bind = create_function_from_signature(kernel.signature, kernel.params, backend)
        self.found: set[str] = set()

    def __getitem__(self, grid: Any) -> Any:
        return self.launched

    def launched(self, *args: Any, **kwargs: Any) -> None:
        _, specialization, _ = self.bind(*args, **kwargs)
        self.found.add(repr(specialization))


def check_passes() -> None:
    """One compiled kernel serves passes of all sizes: else the bits of a row could depend on what
    the compiler makes of the others'. Columns of a matrix [6, rows] begin at any multiple of 4."""
    heads, dim = 4, 16
    attention.attention_kernel = attended = Asked(attention.attention_kernel)
    rope_store.rope_store_kernel = stored = Asked(rope_store.rope_store_kernel)
    memory = torch.zeros(8 * 16, 3 * heads * dim)
    pages = torch.zeros(64, heads, 16, dim, dtype=torch.bfloat16)
    cache = {"keys": pages, "values": pages, "kv_heads": heads, "head_dim": dim}
    queries = torch.zeros(8 * 16, heads * dim, dtype=torch.bfloat16)
    for rows, width in ((1, 1), (1, 2), (2, 1), (4, 16), (8, 3)):
        slots, starts, counts, bases, _, sources = torch.zeros(6, rows, dtype=torch.int32)
        batch = {"rows": rows, "width": width, "slots": slots, "starts": starts, "counts": counts}
        batch |= {"bases": bases, "ancestors": torch.zeros(rows, width, dtype=torch.int64)}
        batch |= {"block_tables": torch.zeros(8, 5, dtype=torch.int32), "table_stride": 5}
        rope_store.rope_store(batch, memory, memory, memory, heads, cache, queries)
        attention.attention(
            *(batch, queries, heads, 0.25, None, 0, sources, False, cache, queries),
            out_stride=heads * dim,
        )
    assert len(attended.found) == 1, attended.found
    assert len(stored.found) == 1, stored.found


def main() -> None:
    for kernel, types, constants in KERNELS:
        names = kernel.arg_names
        signature = dict(zip(names, types, strict=False))
        signature |= dict.fromkeys(constants, "constexpr")
        for capability in (80, 90):
            source = ASTSource(kernel, signature, constants)
            target = GPUTarget("cuda", capability, 32)
            built = triton.compile(source, target=target, options={"num_stages": 2})
            assert built.metadata.shared <= SHARED[capability], (kernel, built.metadata.shared)
            assert built.asm["cubin"], kernel
            print(f"{kernel.__name__} sm_{capability}: {len(built.asm['cubin'])} bytes")
    check_passes()


if __name__ == "__main__":
    main()
