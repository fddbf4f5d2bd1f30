"""What others make of the same sizes on a GPU, where they are installed: FlashInfer's attention
over the same pages, transformers' decoding with a static cache, compiled."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch

from cascade_engine.ops.cuda_batch import PAGE_TOKENS

WORKSPACE_BYTES = 128 << 20


def optional(name: str) -> ModuleType | None:
    """A package, or None where it cannot be had; says so once."""
    if importlib.util.find_spec(name) is None:
        if name not in _missing:
            _missing.add(name)
            print(f"{name}: not installed, not compared", flush=True)
        return None
    return importlib.import_module(name)


_missing: set[str] = set()


def flashinfer_attention(
    queries: torch.Tensor, cache: torch.Tensor, tables: torch.Tensor, tokens: int, context: int
) -> Callable[[], object] | None:
    """Causal attention of `[rows * tokens, heads, dim]` over `[2, pages, kv_heads, PAGE_TOKENS,
    dim]`; None without FlashInfer or without a GPU."""
    if queries.device.type != "cuda":
        return None
    flashinfer = optional("flashinfer")
    if flashinfer is None:
        return None
    rows, blocks = tables.shape
    workspace = torch.empty(WORKSPACE_BYTES, dtype=torch.uint8, device=queries.device)
    wrapper = flashinfer.BatchPrefillWithPagedKVCacheWrapper(workspace, "HND")

    def steps(each: int) -> torch.Tensor:
        return torch.arange(rows + 1, dtype=torch.int32, device=queries.device) * each

    last = torch.full((rows,), (context - 1) % PAGE_TOKENS + 1, dtype=torch.int32)
    wrapper.plan(
        steps(tokens),
        steps(blocks),
        tables.reshape(-1),
        last.to(queries.device),
        queries.shape[1],
        cache.shape[2],
        queries.shape[2],
        PAGE_TOKENS,
        causal=True,
        q_data_type=queries.dtype,
        kv_data_type=cache.dtype,
    )
    return lambda: wrapper.run(queries, (cache[0], cache[1]))


def transformers_decode(
    shape: dict[str, int],
    vocab: int,
    context: int,
    length: int,
    repeats: int,
    device: str = "cuda",
    compiled: bool = True,
) -> list[float] | None:
    """Seconds of one decoding step each, arg max included, behind `length` tokens, with a static
    cache and torch.compile; None without transformers, or where it fails: its interface differs
    from version to version, and what is measured beside it is to stay."""
    if optional("transformers") is None:
        return None
    try:
        return _decode(shape, vocab, context, length, repeats, device, compiled)
    except Exception as error:
        print(f"transformers: {type(error).__name__}: {error}", flush=True)
        return None


def _decode(
    shape: dict[str, int],
    vocab: int,
    context: int,
    length: int,
    repeats: int,
    device: str,
    compiled: bool,
) -> list[float]:
    from transformers import LlamaConfig, LlamaForCausalLM, StaticCache

    config = LlamaConfig(**shape, vocab_size=vocab, max_position_embeddings=context)
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.bfloat16)
        with torch.device(device):
            model = LlamaForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(before)
    step: Any = model.forward
    if compiled:
        step = torch.compile(model.forward, mode="reduce-overhead", fullgraph=True)
    samples = []
    with torch.inference_mode():
        cache = StaticCache(config=config, max_cache_len=context)
        prompt = torch.randint(0, vocab, (1, length), device=device)
        token = _next(model.forward, prompt, cache, torch.arange(length, device=device))
        place = torch.tensor([length], device=device)
        for _ in range(repeats):
            begin = time.perf_counter()
            token = _next(step, token, cache, place).clone()
            if device == "cuda":
                torch.cuda.synchronize()
            samples.append(time.perf_counter() - begin)
    return samples


def _next(forward: Any, tokens: torch.Tensor, cache: Any, places: torch.Tensor) -> torch.Tensor:
    out = forward(
        input_ids=tokens,
        past_key_values=cache,
        position_ids=places[None],
        cache_position=places,
        use_cache=True,
        logits_to_keep=1,
    )
    return out.logits[:, -1].argmax(-1, keepdim=True)
