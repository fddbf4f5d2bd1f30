"""Compiles every Triton kernel for sm_80 and sm_90, without a GPU."""

from __future__ import annotations

from typing import Any

import triton
from cascade_engine.kernels import fused_norm, prefill_attention, rope_store, swiglu
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
        [F, I, I, F, H, H, H],
        {"HEADS": 32, "KV_HEADS": 8, "DIM": 128, "HALF": 64, "PAGE": 16},
    ),
    (
        prefill_attention.prefill_attention_kernel,
        [H, H, H, I, H, "i32", "i32", "fp32"],
        {"HEADS": 32, "KV_HEADS": 8, "DIM": 128, "WIDE": 128, "PAGE": 16, "M": 64, "N": 64},
    ),
]


def main() -> None:
    for kernel, types, constants in KERNELS:
        names = kernel.arg_names
        signature = dict(zip(names, types, strict=False))
        signature |= dict.fromkeys(constants, "constexpr")
        for capability in (80, 90):
            source = ASTSource(kernel, signature, constants)
            built = triton.compile(source, target=GPUTarget("cuda", capability, 32))
            assert built.asm["cubin"], kernel
            print(f"{kernel.__name__} sm_{capability}: {len(built.asm['cubin'])} bytes")


if __name__ == "__main__":
    main()
