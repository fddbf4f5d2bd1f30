"""A forward pass on a GPU, recorded once: the launches of a model's description with their memory,
replayed as a CUDA graph for each shape of a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from cascade_engine.errors import CapacityError
from cascade_engine.ops.cuda_batch import (
    CHUNK,
    MAX_NODES,
    NO_TREE,
    PAGE_TOKENS,
    Buffer,
    Shape,
    Tree,
    ancestor_words,
    bucket,
    host_ints,
    logit_bucket,
)
from cascade_engine.ops.device_rows import DeviceRows
from cascade_engine.ops.launch import Launcher

Step = Callable[[Shape, dict[str, Any]], None]


class CudaProgram:
    """Has the surface of the native CPU program; steps are added by `CudaRecorder`."""

    def __init__(self, launcher: Launcher, graphs: bool) -> None:
        self.launcher = launcher
        self.buffers: list[Buffer] = []
        self.steps: list[tuple[bool, Step]] = []
        self.workspace = torch.empty(0)
        self.counters = torch.empty(0, dtype=torch.int32)
        self.partials = torch.empty(0)
        self.needs: Callable[[Shape], tuple[int, int, int]] = lambda shape: (0, 0, 0)
        self.cache: tuple[torch.Tensor, int, int] | None = None
        """`[layers, 2, pages, ...]`, key/value heads and head_dim, for commit."""
        self.max_chunks = 1
        self.batch: dict[str, Any] = {}
        self.wanted: torch.Tensor | None = None
        self.sources: torch.Tensor | None = None
        self.shape = Shape(0, 0, 0)
        self._host_sources: torch.Tensor | None = None
        self._attends: set[bool] = set()
        self._moves = 0
        self._counts: list[int] = []
        self._logits: list[int] = []
        self._graphs: dict[Shape, Callable[[], object] | None] | None = {} if graphs else None
        self._inputs: dict[Shape, dict[str, torch.Tensor]] = {}

    def bind_rows(self, address: int, stride: int, rows: int) -> None:
        """Host memory of the token rows; the device keeps a copy with room for a tree behind."""
        self.host_tokens = host_ints(address, rows * stride).view(rows, stride)

    def bind_block_tables(self, address: int, stride: int, pages: int) -> None:
        """Host memory of the block tables, after that of the rows."""
        rows = self.host_tokens.shape[0]
        self.host_tables = host_ints(address, rows * stride).view(rows, stride)
        self.on_device = DeviceRows(self.launcher, self.host_tokens, self.host_tables, MAX_NODES)
        self.max_chunks = -(-stride * PAGE_TOKENS // CHUNK)

    def bind_sources(self, address: int) -> None:
        """Host memory, int32 `[rows]`: tokens at each row's beginning that an encoder reads. A row
        with a source feeds either exactly that (the encoder's pass) or tokens behind it."""
        self._host_sources = host_ints(address, self.host_tokens.shape[0])

    def attends(self, over_source: bool) -> None:
        """There is attention over sources, or behind them."""
        self._attends.add(over_source)

    def run(
        self,
        rows: Sequence[int],
        starts: Sequence[int],
        counts: Sequence[int],
        logits: Sequence[int],
        left_padded: bool = False,
        trees: Sequence[Tree] = (),
    ) -> None:
        """One pass, as `Program::run` of csrc/include/ce/program.h. Batches are always dense here:
        `left_padded` asks for nothing more."""
        shape = Shape(
            bucket(len(rows)), bucket(max(counts, default=0)), logit_bucket(max(logits, default=0))
        )
        self._check(rows, starts, counts)
        self.shape, self._counts, self._logits = shape, list(counts), list(logits)
        if shape.rows == 0 or shape.width == 0:
            return
        self._upload(shape, rows, starts, counts, logits, trees)
        self._reserve(shape)
        if self._graphs is None:
            self._launch(shape)
        elif shape not in self._graphs:  # the first pass warms up
            self._graphs[shape] = None
            self._launch(shape)
        else:
            self._replay(shape)

    def commit(self, row: int, base: int, path: Sequence[int]) -> None:
        """Moves keys and values of an accepted path from slots base + path[i] to base + i, in all
        layers."""
        device = self.launcher.device
        ints = torch.tensor([row, base, len(path), *path], dtype=torch.int32, device=device)
        batch = {**self.batch, "rows": 1, "slots": ints[0:1], "bases": ints[1:2]}
        self.launch_commit(batch, ints[3:], ints[2:3], len(path))

    def launch_commit(
        self, batch: dict[str, Any], paths: torch.Tensor, lengths: torch.Tensor, stride: int
    ) -> None:
        """Moves the accepted paths `[rows, stride]` of a batch, of `lengths` nodes each."""
        assert self.cache is not None
        data, kv_heads, head_dim = self.cache
        self.launcher(
            "commit_path",
            batch=batch,
            paths=paths,
            path_lengths=lengths,
            path_stride=stride,
            cache=data,
            planes=data.shape[0] * data.shape[1],
            plane_elements=data[0, 0].numel(),
            kv_heads=kv_heads,
            head_dim=head_dim,
        )

    def prepare(self, shape: Shape) -> int:
        """Memory for passes of this shape. Returns how often memory has moved so far: captured
        launches are good for as long as this stays."""
        self._reserve(shape)
        return self._moves

    def launch(
        self, shape: Shape, batch: dict[str, Any], wanted: torch.Tensor, sources: torch.Tensor
    ) -> None:
        """A pass over a batch of rows that lies on the device, described there; without a graph of
        its own, so that it may be part of one."""
        self.shape, self.batch, self.wanted, self.sources = shape, batch, wanted, sources
        self._counts, self._logits = [], []
        self._launch(shape)

    def launched(self) -> tuple[Shape, dict[str, Any], torch.Tensor, torch.Tensor]:
        """The arguments of the last `launch`, for measuring it alone."""
        assert self.wanted is not None
        assert self.sources is not None
        return self.shape, self.batch, self.wanted, self.sources

    def data(self, buffer: int) -> int:
        """Address of a buffer's memory, `[rows bucket, logits or width bucket, stride]`."""
        memory = self.buffers[buffer].memory
        return 0 if memory is None else memory.data_ptr()

    def cols(self, buffer: int) -> int:
        return self.buffers[buffer].cols

    def rows(self, buffer: int) -> int:
        """Rows of the last pass, holes not counted."""
        return sum(self._logits if self.buffers[buffer].per_logit else self._counts)

    def read(self, buffer: int) -> torch.Tensor:
        """A copy on the host without holes, `[rows, cols]`, of all rows of the last pass."""
        b = self.buffers[buffer]
        each = self._logits if b.per_logit else self._counts
        width = self.shape.logits if b.per_logit else self.shape.width
        if b.memory is None or sum(each) == 0:
            return torch.empty(0, b.cols, dtype=b.dtype)
        used = self.launcher.fetch(b.memory[: self.shape.rows * width, : b.cols])
        return torch.cat([used[i * width : i * width + n] for i, n in enumerate(each)])

    def _check(self, rows: Sequence[int], starts: Sequence[int], counts: Sequence[int]) -> None:
        for row, start, count in zip(rows, starts, counts, strict=True):
            limit = self.host_tables.shape[1] * PAGE_TOKENS
            if not (0 <= row < len(self.host_tokens) and 0 <= start <= start + count <= limit):
                raise CapacityError(
                    f"row {row}: tokens {start}..{start + count - 1} do not fit its {limit} places"
                )
            self.check_source(row, start, count)

    def check_source(self, row: int, start: int, count: int) -> None:
        """Raises ValueError unless the row's source is fed in a pass of its own, by an encoder."""
        source = self.source(row)
        if source == 0 and True in self._attends:
            raise ValueError(f"row {row} has no source to attend to")
        encodes = start == 0 and count == source and False not in self._attends
        if start < source and not encodes:
            raise ValueError(
                f"row {row} feeds positions {start}..{start + count - 1}, but its source ends at "
                f"{source}: an encoder takes the whole source, a decoder what is behind it"
            )

    def source(self, row: int) -> int:
        """Tokens at the row's beginning that an encoder reads."""
        return 0 if self._host_sources is None else int(self._host_sources[row])

    def _upload(
        self,
        shape: Shape,
        rows: Sequence[int],
        starts: Sequence[int],
        counts: Sequence[int],
        logits: Sequence[int],
        trees: Sequence[Tree],
    ) -> None:
        """The batch's description, its tokens and its block tables."""
        ints = torch.zeros(6, shape.rows, dtype=torch.int32)
        ints[0] = -1
        ints[3] = NO_TREE
        words = torch.zeros(shape.rows, shape.width, dtype=torch.int64)
        fed = []
        for i, (row, start, count) in enumerate(zip(rows, starts, counts, strict=True)):
            ints[0, i], ints[1, i], ints[2, i], ints[4, i] = row, start, count, logits[i]
            ints[5, i] = self.source(row)
            nodes, parents = trees[i] if trees else ((), ())
            before = count - len(nodes)
            if nodes:
                ints[3, i] = start + before
                words[i, before:count] = ancestor_words(parents)
            own = self.host_tokens[row, start : start + before]
            fed.append(torch.cat([own, torch.tensor(list(nodes), dtype=torch.int32)]))
        self.on_device.feed(rows, starts, fed)
        device, send = self.launcher.device, self.launcher.send
        inputs = self._inputs.setdefault(shape, {})
        if not inputs:
            inputs["ints"] = torch.empty_like(ints, device=device)
            inputs["words"] = torch.empty_like(words, device=device)
        inputs["ints"].copy_(send(ints))
        inputs["words"].copy_(send(words))
        slots_, starts_, counts_, bases, self.wanted, self.sources = inputs["ints"]
        self.batch = self.batch_of(
            shape, slots_, starts_, counts_, bases=bases, ancestors=inputs["words"]
        )

    def batch_of(
        self,
        shape: Shape,
        slots: torch.Tensor,
        starts: torch.Tensor,
        counts: torch.Tensor,
        bases: torch.Tensor,
        ancestors: torch.Tensor,
    ) -> dict[str, Any]:
        """A pass over these rows as the launchers take it."""
        rows = self.on_device
        return {
            "rows": shape.rows,
            "width": shape.width,
            "slots": slots,
            "starts": starts,
            "counts": counts,
            "bases": bases,
            "ancestors": ancestors,
            "tokens": rows.tokens,
            "token_stride": rows.tokens.shape[1],
            "block_tables": rows.tables,
            "table_stride": rows.tables.shape[1],
        }

    def _reserve(self, shape: Shape) -> None:
        """Grows what is too small; graphs that point to the old memory are dropped."""
        moved = False
        device = self.launcher.device
        for b in self.buffers:
            rows = shape.rows * (shape.logits if b.per_logit else shape.width)
            if rows > (0 if b.memory is None else len(b.memory)):
                b.memory = torch.zeros(rows, b.stride, dtype=b.dtype, device=device)
                moved = True
        for name, size in zip(
            ("workspace", "counters", "partials"), self.needs(shape), strict=True
        ):
            memory: torch.Tensor = getattr(self, name)
            if size > memory.numel() or memory.device.type != device.type:
                setattr(self, name, torch.zeros(max(size, 1), dtype=memory.dtype, device=device))
                moved = True
        self._moves += moved
        if moved and self._graphs is not None:
            self._graphs.clear()

    def _launch(self, shape: Shape) -> None:
        for per_logit, step in self.steps:
            if not per_logit or shape.logits > 0:
                step(shape, self.batch)

    def _replay(self, shape: Shape) -> None:
        assert self._graphs is not None
        graph = self._graphs[shape]
        if graph is None:
            graph = self.launcher.capture(lambda: self._launch(shape))
            self._graphs[shape] = graph
        graph()
