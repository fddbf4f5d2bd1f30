"""Tensors side by side in memory that asks for huge pages."""

from __future__ import annotations

import mmap
import random
from pathlib import Path

import pytest
import torch

from cascade_engine import memory
from cascade_engine.memory import ALIGNMENT, Arena

DTYPES = (torch.float32, torch.bfloat16, torch.int8)


def test_tensors_are_zeros_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks when two overlap, one leaves its chunk, or a chunk goes while a tensor lives."""
    monkeypatch.setattr(memory, "CHUNK_BYTES", 1 << 16)
    rng, arena, tensors = random.Random(0), Arena(), []
    for i in range(200):
        shape = rng.choice([[7], [3, 50], [2, 100, 33], [40_000], [0]])
        tensor = arena.zeros(shape, rng.choice(DTYPES))
        assert list(tensor.shape) == shape
        assert tensor.data_ptr() % ALIGNMENT == 0 or tensor.numel() == 0
        assert not tensor.any()
        tensors.append(tensor.fill_(i % 100 + 1))
    del arena
    for i, tensor in enumerate(tensors):
        assert (tensor == i % 100 + 1).all()


@pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="the system has no huge pages")
def test_huge_pages_are_asked_for() -> None:
    tensor = Arena().zeros([1 << 20], torch.float32)
    address, advised = tensor.data_ptr(), False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.split(" ")[0]
        if "-" in first and not first.endswith(":"):
            begin, end = (int(part, 16) for part in first.split("-"))
        elif line.startswith("VmFlags:") and begin <= address < end:
            advised = " hg" in line
    assert advised


def test_systems_without_huge_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(mmap, "MADV_HUGEPAGE", raising=False)
    assert not Arena().zeros([5, 3], torch.bfloat16).any()
