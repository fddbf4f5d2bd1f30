"""Rows, caches and calls for the tests of CUDA kernels, under the emulation or on a GPU."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch

from cascade_engine import _C
from cascade_engine.ops import CudaBackend
from cascade_engine.ops.launch import (
    ADD,
    ELEMENT,
    GEGLU,
    RELU,
    ROUND,
    STORE,
    SWIGLU,
    Launcher,
    pack_tiles,
)

PAGE = 16
BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32
LINEAR_OUTPUTS, LINEAR_STEP, CHUNK = 128, 64, 256


def stale(shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """What memory may hold that nobody wrote."""
    values = torch.tensor([torch.nan, torch.inf, -torch.inf, torch.nan, 1e4], dtype=dtype)
    size = torch.Size(shape)
    return values.repeat(size.numel() // 5 + 1)[: size.numel()].view(size).clone()


def assert_same_bits(ours: torch.Tensor, expected: torch.Tensor, what: object = "") -> None:
    view = torch.int32 if ours.dtype == F32 else torch.int16
    differ = ours.contiguous().view(view) != expected.contiguous().view(view)
    assert not differ.any(), f"{what}: {int(differ.sum())} of {differ.numel()} elements differ"


def assert_near(
    ours: torch.Tensor, exact: torch.Tensor, units: float, dtype: torch.dtype, what: object = ""
) -> None:
    """Within `units` roundings of `dtype` of the largest exact value."""
    allowed = units * torch.finfo(dtype).eps * max(float(exact.abs().max()), 1e-6)
    error = (ours.double().cpu() - exact).abs().nan_to_num(torch.inf).max()
    assert error <= allowed, f"{what}: off by {error:.3g}, allowed {allowed:.3g}"


@dataclasses.dataclass
class Rows:
    """A batch in device memory; `trees[r]` are the parents of row r's nodes, which are its last
    tokens (-1: the token before the tree), or None."""

    run: Launcher
    starts: list[int]
    counts: list[int]
    trees: list[list[int] | None] | None = None
    slots: list[int] | None = None
    width: int = 0
    capacity: int = 1024
    tokens: torch.Tensor | None = None
    tables: torch.Tensor | None = None

    def __post_init__(self) -> None:
        rows = len(self.starts)
        slots = self.slots or list(range(rows))
        self.width = self.width or max([1, *self.counts])
        if self.tokens is None:
            count = max([0, *slots]) + 1
            self.tokens = torch.zeros(count, self.capacity, dtype=torch.int32)
        if self.tables is None:
            pages = self.capacity // PAGE
            order = torch.randperm(len(self.tokens) * pages, dtype=torch.int32)
            self.tables = order.view(len(self.tokens), pages)
        self.keep = [
            self.device(torch.tensor(v, dtype=torch.int32))
            for v in (slots, self.starts, self.counts)
        ]
        self.tokens, self.tables = self.device(self.tokens), self.device(self.tables)
        bases = ancestors = None
        self.words = torch.zeros(rows, self.width, dtype=torch.int64)
        base = [2**31 - 1] * rows
        for r, parents in enumerate(self.trees or []):
            if parents is None:
                continue
            base[r] = self.starts[r] + self.counts[r] - len(parents)
            for j, parent in enumerate(parents):
                word = (
                    int(self.words[r, self.counts[r] - len(parents) + parent]) if parent >= 0 else 0
                ) | (1 << j)
                word -= 1 << 64 if word >= 1 << 63 else 0
                self.words[r, self.counts[r] - len(parents) + j] = word
        if self.trees is not None:
            bases = self.device(torch.tensor(base, dtype=torch.int32))
            ancestors = self.device(self.words)
        self.batch = {
            "rows": rows,
            "width": self.width,
            "slots": self.keep[0],
            "starts": self.keep[1],
            "counts": self.keep[2],
            "bases": bases,
            "ancestors": ancestors,
            "tokens": self.tokens,
            "token_stride": self.tokens.shape[1],
            "block_tables": self.tables,
            "table_stride": self.tables.shape[1],
        }

    def device(self, x: torch.Tensor) -> torch.Tensor:
        return x.to(self.run.device)

    def path(self, r: int, t: int) -> list[int]:
        """Indices in the row of the tokens that the t-th new token of row r sees, itself last."""
        index = self.starts[r] + t
        parents = None if self.trees is None else self.trees[r]
        if parents is None or t < self.counts[r] - len(parents):
            return list(range(index + 1))
        base = self.starts[r] + self.counts[r] - len(parents)
        node, nodes = index - base, []
        while node >= 0:
            nodes.append(base + node)
            node = parents[node]
        return [*range(base), *reversed(nodes)]

    def present(self) -> list[tuple[int, int, int]]:
        """(activation row, row, token) without holes."""
        slots = self.slots or list(range(len(self.starts)))
        return [
            (r * self.width + t, r, t)
            for r in range(len(self.starts))
            if slots[r] >= 0
            for t in range(self.counts[r])
        ]


class RecordingLauncher(Launcher):
    """The emulation with graphs and late copies: captured launches are kept with the addresses and
    numbers that they had, and a replay launches exactly those, as a CUDA graph would; an upload
    reads its source no sooner than the next launch or wait, a download is there after the wait."""

    def __init__(self, emulated: Launcher) -> None:
        super().__init__(emulated.module, emulated.device)
        self.replays = 0
        self._recording: list[tuple[Any, Any, Any]] | None = None
        self._up: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._down: list[tuple[torch.Tensor, torch.Tensor]] = []

    @property
    def captures(self) -> bool:
        return True

    def __call__(self, name: str, *args: Any, **arguments: Any) -> None:
        if self._recording is None:
            self._send()
            return super().__call__(name, *args, **arguments)
        values = {key: self._value(value) for key, value in arguments.items()}
        positional = [self._value(value) for value in args]
        self._recording.append((getattr(self.module, name), positional, values))

    def capture(self, work: Callable[[], object]) -> Callable[[], object]:
        self._recording = recorded = []
        work()
        self._recording = None

        def replay() -> None:
            self.replays += 1
            self._send()
            for function, positional, values in recorded:
                function(0, *positional, **values)

        return replay

    def upload(self, target: torch.Tensor, source: torch.Tensor) -> None:
        self._up.append((target, source))

    def download(self, target: torch.Tensor, source: torch.Tensor) -> None:
        self._send()
        self._down.append((target, source.clone()))
        target.fill_(-(1 << 30))

    def wait(self) -> None:
        self._send()
        for target, source in self._down:
            target.copy_(source)
        self._down = []
        super().wait()

    def _send(self) -> None:
        for target, source in self._up:
            target.copy_(source)
        self._up = []


def linear(
    run: Launcher,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    output: int = STORE,
    y: torch.Tensor | None = None,
) -> torch.Tensor:
    """`x` `[rows, k]` times a dense `[n, k]` weight; gates take gate and up interleaved."""
    rows, k = x.shape
    n = weight.shape[0]
    stride = -(-k // 8) * 8
    padded = stale((rows, stride), x.dtype)
    padded[:, :k] = x.cpu()
    columns = n // 2 if output in (SWIGLU, GEGLU) else n
    if y is None:
        sums = output in (STORE, ADD)
        y = torch.full((rows, columns), torch.nan, dtype=F32 if sums else x.dtype)
    device = run.device
    y = y.to(device)
    sms = run.multiprocessors
    workspace = torch.full(
        (run.module.linear_workspace_floats(n, k, rows, sms) + 1,), torch.nan, device=device
    )
    counters = torch.zeros(run.module.linear_counters(n, rows), dtype=torch.int32, device=device)
    run(
        "linear",
        weights=pack_tiles(weight, LINEAR_OUTPUTS, LINEAR_STEP).to(device),
        dtype=ELEMENT[x.dtype],
        n=n,
        k=k,
        x=padded.to(device),
        x_stride=stride,
        rows=rows,
        bias=None if bias is None else bias.to(device),
        output=output,
        y=y,
        y_stride=columns,
        y_cols=columns,
        workspace=workspace,
        counters=counters,
        multiprocessors=sms,
    )
    assert not counters.any()
    return y.cpu()


def cpu_function(backend: CudaBackend, name: str, logits: int, **arguments: Any) -> Any:
    """What a native function of the CPU makes of the logits that a pass left on the device."""
    program = backend._review._program(logits)
    buffer = next(i for i in range(len(program.buffers)) if program.data(i) == logits)
    copy = program.read(buffer).contiguous()
    arguments |= {"logits": copy.data_ptr(), "logits_stride": copy.shape[1]}
    return getattr(_C, name)(backend.context, **arguments)


__all__ = [
    "ADD",
    "GEGLU",
    "RELU",
    "ROUND",
    "STORE",
    "SWIGLU",
    "RecordingLauncher",
    "Rows",
    "cpu_function",
    "linear",
]
