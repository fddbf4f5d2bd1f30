"""What was learnt of finished requests, in the device's memory."""

from __future__ import annotations

from collections.abc import Callable

import torch

from cascade_engine.ops.launch import Launcher


class DeviceLearned:
    """`size` tokens, and where each pair of tokens is among them: DraftTreeArgs of
    ce/cuda_kernels.h. The memory is as large as what was learnt so far, rounded up."""

    def __init__(self, run: Launcher) -> None:
        self.size = 0
        self._run = run
        self._version = -1
        self._allocate(1)

    def _allocate(self, capacity: int) -> None:
        device = self._run.device
        self.tokens = torch.zeros(capacity, dtype=torch.int32, device=device)
        self.pairs = torch.zeros(capacity, dtype=torch.int64, device=device)
        self.places = torch.zeros(capacity, dtype=torch.int32, device=device)

    def learn(self, version: int, text: Callable[[], bytes]) -> bool:
        """Takes the tokens where `version` has changed; True where memory has moved."""
        if version == self._version:
            return False
        memory = text()
        self._version, self.size = version, len(memory) // 4
        if self.size == 0:
            return False
        moved = self.size > len(self.tokens)
        if moved:
            self._allocate(1 << (self.size - 1).bit_length())
        tokens = torch.frombuffer(bytearray(memory), dtype=torch.int32)
        self.tokens[: self.size] = self._run.send(tokens)
        pairs, places = index_pairs(self.tokens[: self.size])
        self.pairs[: len(pairs)], self.places[: len(places)] = pairs, places
        return moved

    def arguments(self) -> dict[str, torch.Tensor]:
        """The part of DraftTreeArgs that is here, but for the size."""
        return {
            "finished": self.tokens,
            "finished_pairs": self.pairs,
            "finished_places": self.places,
        }


def index_pairs(tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """int64 pairs of tokens (last << 32 | the one before), ascending, and the int32 places behind
    them, those of equal pairs ascending; without a wait for the device. Boundaries between texts
    are -1: pairs with one are negative, like no pair of tokens."""
    pairs = tokens[1:-1].long() << 32 | tokens[:-2].long()
    pairs, order = torch.sort(pairs, stable=True)
    return pairs, (order + 2).int()
