"""What each row asks of its tokens, in the device's memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from cascade_engine.ops.launch import Launcher

SCALARS = (
    *("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty"),
    *("frequency_penalty", "top_k", "sample_index", "seed", "prompt_length", "min_tokens"),
    "source_length",
)
LIMIT = 2**31 - 1


class DeviceSamplers:
    """Rows of DeviceSampler (csrc/include/ce/cuda_kernels.h) with their lists.

    `params` has one mapping a row with the keywords of the native Sampler, which has checked them.
    `edits`, `filters` and `rejects` say which kernels the rows need together.
    """

    def __init__(self, launcher: Launcher, params: Sequence[Mapping[str, Any]], vocab: int) -> None:
        size = launcher.module.SAMPLER_BYTES
        memory = torch.zeros(len(params), size, dtype=torch.uint8)
        biases: list[tuple[int, float]] = []
        stops: list[int] = []
        self.edits = self.filters = self.rejects = False
        for row, p in zip(memory, params, strict=True):
            lists = {"bias_begin": len(biases), "stop_begin": len(stops)}
            biases += _merged(p["logit_bias"])
            stops += p["stop_ids"]
            lists |= {"bias_end": len(biases), "stop_end": len(stops)}
            rejects = p.get("rejection", False) and p["temperature"] > 0
            scalars = {key: p[key] for key in SCALARS}
            for key in ("top_k", "prompt_length", "min_tokens", "source_length"):
                scalars[key] = min(scalars[key], LIMIT // 2)
            launcher.module.pack_sampler(row.data_ptr(), **scalars, **lists, rejects=rejects)
            self.edits |= _edits(p)
            self.rejects |= rejects
            self.filters |= rejects or _filters(p, vocab)
        ids, values = [i for i, _ in biases] or [0], [v for _, v in biases] or [0.0]
        device = launcher.device
        self.memory = launcher.send(memory)
        self.bias_ids = torch.tensor(ids, dtype=torch.int32, device=device)
        self.bias_values = torch.tensor(values, dtype=torch.float32, device=device)
        self.stop_ids = torch.tensor(stops or [0], dtype=torch.int32, device=device)

    def arguments(self) -> dict[str, torch.Tensor]:
        """The part of ChooseArgs that is here."""
        return {
            "samplers": self.memory,
            "bias_ids": self.bias_ids,
            "bias_values": self.bias_values,
            "stop_ids": self.stop_ids,
        }


def _merged(pairs: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """Each id once: its addends in float32, one after the other."""
    merged: dict[int, torch.Tensor] = {}
    for token, bias in pairs:
        addend = torch.tensor(bias, dtype=torch.float32)
        merged[token] = merged[token] + addend if token in merged else addend
    return [(token, float(bias)) for token, bias in merged.items()]


def _edits(p: Mapping[str, Any]) -> bool:
    penalties = (p["repetition_penalty"], p["presence_penalty"], p["frequency_penalty"])
    blocks = bool(p["stop_ids"]) and p["min_tokens"] > 0
    return bool(p["logit_bias"]) or penalties != (1.0, 0.0, 0.0) or blocks


def _filters(p: Mapping[str, Any], vocab: int) -> bool:
    if p["temperature"] == 0:
        return False
    return 0 < p["top_k"] < vocab or p["top_p"] < 1 or p["min_p"] > 0
