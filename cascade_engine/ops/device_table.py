"""An n-gram table's arrays in device memory."""

from __future__ import annotations

from typing import Any

import torch

from cascade_engine._C import NgramTable

NO_TABLE: dict[str, Any] = {"vocab": 0, "block_shift": 0, "counts": None, "orders": []}


def device_table(table: NgramTable | None, device: torch.device) -> dict[str, Any]:
    """A copy of the table as the launchers take it: NgramView of ce/cuda_kernels.h."""
    if table is None:
        return NO_TABLE
    arrays = {
        name: torch.frombuffer(bytearray(memory), dtype=torch.uint8).to(device)
        for name, memory in table.arrays().items()
        if len(memory)
    }

    def runs(order: int, name: str) -> dict[str, torch.Tensor | None]:
        return {part: arrays.get(f"order{order}.{name}_{part}") for part in ("base", "delta")}

    orders = [
        {
            "contexts": table.contexts(n),
            "token": arrays.get(f"order{n}.token"),
            "total": arrays.get(f"order{n}.total"),
            "count": arrays.get(f"order{n}.count"),
            "children": runs(n, "children"),
            "successors": runs(n, "successors"),
            "successor": arrays.get(f"order{n}.successor"),
        }
        for n in range(1, table.order + 1)
    ]
    counts = torch.tensor(table.counts, dtype=torch.float32, device=device)
    info = {"vocab": table.vocab_size, "block_shift": table.block_shift}
    return {**info, "counts": counts, "orders": orders}
