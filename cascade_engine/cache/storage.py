"""The memory behind the pages of one level."""

from __future__ import annotations

import torch

from cascade_engine.cache.pages import PAGE_TOKENS
from cascade_engine.memory import Arena


def bytes_per_token(layers: int, kv_heads: int, head_dim: int, dtype: torch.dtype) -> int:
    """Keys and values of one token over all layers."""
    return 2 * layers * kv_heads * head_dim * dtype.itemsize


class KVStorage:
    """Keys and values of all layers, in the layout of the backend.

    `data` is `[layers, 2, pages, kv_heads * head_dim * PAGE_TOKENS]`; within a page, on the CPU,
    keys are `[kv_heads, head_dim, PAGE_TOKENS]` and values `[kv_heads, PAGE_TOKENS, head_dim]`; on
    a GPU both are as the values. The memory is not touched before a page is used.
    """

    def __init__(
        self,
        layers: int,
        pages: int,
        kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
    ) -> None:
        self.kv_heads = kv_heads
        self.head_dim = head_dim
        shape = (layers, 2, pages, kv_heads * head_dim * PAGE_TOKENS)
        if torch.device(device).type == "cpu":
            self.data = Arena().zeros(shape, dtype)
        else:
            self.data = torch.zeros(shape, dtype=dtype, device=device)

    def copy_page(self, source: int, target: int) -> None:
        """Copies one page in every layer."""
        self.data[:, :, target] = self.data[:, :, source]
