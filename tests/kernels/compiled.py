"""Compiles every Triton kernel for sm_80 and sm_90, without a GPU."""

from __future__ import annotations

from typing import Any

import triton
from cascade_engine.kernels import attention, fused_norm, rope_store, swiglu
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

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


if __name__ == "__main__":
    main()
