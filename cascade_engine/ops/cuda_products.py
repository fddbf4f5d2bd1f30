"""Records matrix products as launches, together with what is done to their sums at once."""

from __future__ import annotations

from typing import Any

import torch

from cascade_engine.gpu_kernels import NATIVE
from cascade_engine.ops.cuda_batch import Buffer, Shape
from cascade_engine.ops.cuda_program import CudaProgram
from cascade_engine.ops.launch import ADD, ELEMENT, GEGLU, RELU, ROUND, STORE, SWIGLU, Launcher
from cascade_engine.ops.weights import LinearWeight


class ProductRecorder:
    """Records launches into `program`; a product does itself what the operation recorded right
    behind it would do to its sums."""

    def __init__(self, launcher: Launcher, graphs: bool) -> None:
        self.program = CudaProgram(launcher, graphs)
        self._run = launcher
        self._buffers: dict[tuple[object, ...], int] = {}
        self._linears: set[tuple[int, int, bool]] = set()
        self._last_linear: tuple[int, LinearWeight, int] | None = None

    def _buffer(self, role: str, dtype: torch.dtype, cols: int, per_logit: bool = False) -> int:
        key = (role, dtype, cols, per_logit)
        if key not in self._buffers:
            self.program.buffers.append(Buffer(dtype, cols, per_logit))
            self._buffers[key] = len(self.program.buffers) - 1
        return self._buffers[key]

    def _add(self, name: str, per_logit: bool, served: str | None = None, **fixed: Any) -> None:
        """A launch, of the kernel that serves `name`, by default the one that was chosen for it;
        callable values are asked at the time of a run."""
        served = served or self._run.choices.get(name, NATIVE)
        launch = self._run if served == NATIVE else self._run.triton

        def step(shape: Shape, batch: dict[str, Any]) -> None:
            rows = shape.rows * (shape.logits if per_logit else shape.width)
            values = {k: v(shape, batch, rows) if callable(v) else v for k, v in fixed.items()}
            launch(name, **values)

        self.program.steps.append((per_logit, step))
        self._last_linear = None

    def _memory(self, buffer: int) -> Any:
        return lambda shape, batch, rows: self.program.buffers[buffer].memory

    def _per_logit(self, buffer: int) -> bool:
        return self.program.buffers[buffer].per_logit

    def _stride(self, buffer: int) -> int:
        return self.program.buffers[buffer].stride

    def linear(self, x: int, weight: LinearWeight, add_to: int | None = None) -> int:
        """`x W^T + bias`, into a buffer of its own or added to `add_to`."""
        out = add_to
        if out is None:
            out = self._buffer("linear", torch.float32, weight.shape[0], self._per_logit(x))
        output = STORE if add_to is None else ADD
        self._add_linear(x, weight, output, out)
        self._last_linear = (x, weight, out) if add_to is None else None
        return out

    def _add_linear(self, x: int, weight: LinearWeight, output: int, out: int) -> None:
        n, k = weight.shape
        per_logit = self._per_logit(x)
        self._linears.add((n, k, per_logit))
        self._add(
            "linear",
            per_logit,
            weights=weight.memory,
            dtype=ELEMENT[weight.memory.dtype],
            n=n,
            k=k,
            x=self._memory(x),
            x_stride=self._stride(x),
            rows=rows_of,
            bias=None if weight.bias is None else weight.bias.to(self._run.device),
            output=output,
            y=self._memory(out),
            # Attention's queries lie row behind row, whatever their size.
            y_stride=self.program.cols(out) if output == ROUND else self._stride(out),
            y_cols=self.program.cols(out),
            workspace=lambda shape, batch, rows: self.program.workspace,
            counters=lambda shape, batch, rows: self.program.counters,
            multiprocessors=self._run.multiprocessors,
        )

    def _fused(self, linear: int, output: int, out: int) -> bool:
        """Whether the product recorded last computes `linear`: then it does what is to be done to
        it itself, and writes `out` instead."""
        last, self._last_linear = self._last_linear, None
        if last is None or last[2] != linear:
            return False
        x, weight, _ = last
        if output in (SWIGLU, GEGLU):
            interleave_gates(weight)
        self.program.steps.pop()
        self._add_linear(x, weight, output, out)
        return True

    def swiglu(self, gate_up: int, dtype: torch.dtype) -> int:
        """`silu(gate) * up` of the two halves of `gate_up`, as `dtype`. Behind the product that
        computed them it is part of that product: the weight's gates and ups are interleaved."""
        return self._gate("swiglu", SWIGLU, gate_up, dtype)

    def geglu(self, gate_up: int, dtype: torch.dtype) -> int:
        """`gelu(gate) * up`, as swiglu; GELU by its tanh form."""
        return self._gate("geglu", GEGLU, gate_up, dtype)

    def relu(self, x: int, dtype: torch.dtype) -> int:
        """`max(x, 0)` as `dtype`, of the product recorded last."""
        out = self._buffer("relu", dtype, self.program.cols(x), self._per_logit(x))
        if not self._fused(x, RELU, out):
            raise ValueError("device 'cuda' has relu as part of the product before it")
        return out

    def _gate(self, name: str, output: int, gate_up: int, dtype: torch.dtype) -> int:
        cols = self.program.cols(gate_up) // 2
        out = self._buffer(name, dtype, cols, self._per_logit(gate_up))
        if cols % 8 == 0 and self._fused(gate_up, output, out):
            return out
        self._add(
            name,
            self._per_logit(gate_up),
            gate_up=self._memory(gate_up),
            rows=rows_of,
            cols=cols,
            out=self._memory(out),
            out_stride=self._stride(out),
            dtype=ELEMENT[dtype],
        )
        return out


def interleave_gates(weight: LinearWeight) -> None:
    """Reorders a weight of gates above ups, once and in place: tiles of eight gates and the eight
    ups that belong to them, as the fused gate of `linear` wants them."""
    if weight.handle.gated:
        return
    tiles, steps = weight.memory.shape[:2]
    half_blocks = weight.shape[0] // 16
    order = torch.arange(2 * tiles, device=weight.memory.device)
    order[: 2 * half_blocks] = torch.arange(2 * half_blocks).view(2, half_blocks).T.reshape(-1)
    # Halves of tiles are blocks of eight outputs.
    view = weight.memory.view(tiles, steps, 32, 2, 2, 2)
    blocks = view.permute(0, 4, 1, 2, 3, 5).reshape(2 * tiles, steps, 32, 2, 2)[order]
    view.copy_(blocks.view(tiles, 2, steps, 32, 2, 2).permute(0, 2, 3, 4, 1, 5))
    if weight.bias is not None:
        weight.bias.copy_(weight.bias.view(-1, 8)[order[: 2 * half_blocks]].view(-1))
    weight.handle.gated = True


def rows_of(shape: Shape, batch: dict[str, Any], rows: int) -> int:
    return rows
