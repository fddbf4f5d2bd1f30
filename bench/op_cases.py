"""Single operations of the CPU backend, ready to be timed, each with torch's on numbers of the same
kind, and its error against float32 torch on the very same numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch.nn import functional

from bench.op_case import EPS, Case, Size, by_count, relative_error, sizes_of, tree_mask
from bench.shapes import vocabulary_of
from cascade_engine import _C
from cascade_engine.ops.cpu import CpuBackend
from cascade_engine.ops.cpu_recorder import Recorder

OPS = ("linear", "attention", "rms_norm", "swiglu")
CACHE_BYTES = 256 << 20
INPUT_ROWS = 16


class Pass:
    """A recorded pass over the last `tokens` tokens of each of `rows` rows of `context` tokens;
    with `parents` these are the nodes of a tree. Activations are random embeddings of INPUT_ROWS
    different tokens."""

    def __init__(
        self,
        backend: CpuBackend,
        rows: int,
        tokens: int,
        context: int = 0,
        parents: Sequence[int] | None = None,
    ) -> None:
        self.rows, self.tokens, self.start = rows, tokens, max(context - tokens, 0)
        self.recorder: Recorder = backend.recorder()
        positions = self.start + tokens
        pages = -(-positions // _C.PAGE_TOKENS)
        ids = torch.arange(rows).view(-1, 1) + torch.arange(positions)
        self.ids = (ids % INPUT_ROWS).to(torch.int32)
        self.pages = torch.arange(rows * pages, dtype=torch.int32).view(rows, pages)
        program = self.recorder.program
        program.bind_rows(self.ids.data_ptr(), positions, rows)
        program.bind_block_tables(self.pages.data_ptr(), pages, rows * pages)
        self.trees: list[tuple[list[int], list[int]]] = []
        if parents is not None:
            self.trees = [(nodes, list(parents)) for nodes in self.ids[:, self.start :].tolist()]

    def activation(self, table: torch.Tensor) -> int:
        """float32 `[rows * tokens, cols]` of a table `[INPUT_ROWS, cols]`."""
        return self.recorder.embedding(table)

    def fed(self, table: torch.Tensor) -> torch.Tensor:
        """What `activation` of the same table holds after a run."""
        return table[self.ids[:, self.start :].reshape(-1).long()]

    def __call__(self) -> None:
        each = [self.tokens] * self.rows
        starts = [self.start] * self.rows
        rows = list(range(self.rows))
        self.recorder.program.run(rows, starts, each, [0] * self.rows, trees=self.trees)

    def result(self, buffer: int) -> torch.Tensor:
        """A float32 buffer after one run."""
        self()
        return self.recorder.read(buffer)


def linear_cases(
    backend: CpuBackend, shape: str, dtype: torch.dtype, sizes: Sequence[Size]
) -> Iterator[Case]:
    """Every weight matrix of a decoding step, one after the other."""
    hidden, inner, layers, _ = sizes_of(shape)
    layer = [(3 * hidden, hidden), (hidden, hidden), (2 * inner, hidden), (hidden, inner)]
    head = (vocabulary_of(shape), hidden)
    dense = [torch.randn(n, k).mul_(0.02).to(dtype) for n, k in [*layer * layers, head]]
    packed = [backend.pack_linear(w, dtype) for w in dense]
    count = sum(w.numel() for w in dense)
    for rows, tokens in by_count(sizes):
        ours = Pass(backend, rows, tokens)
        tables = {k: torch.randn(INPUT_ROWS, k) for k in (hidden, inner)}
        x = {
            k: ours.recorder.rms_norm(ours.activation(table), torch.ones(k), EPS, dtype)
            for k, table in tables.items()
        }
        outs = [ours.recorder.linear(x[w.shape[1]], w) for w in packed]
        dense_x = {
            k: functional.rms_norm(ours.fed(table), (k,), eps=EPS).to(dtype)
            for k, table in tables.items()
        }
        theirs = partial(_torch_linears, dense, dense_x)
        error = partial(_linear_error, ours, outs[-1], dense_x[hidden], dense[-1])
        flops = 2 * count * rows * tokens
        read = count * dtype.itemsize
        yield Case("linear", rows, tokens, 0, ours, theirs, read, flops, error)


def _torch_linears(weights: Sequence[torch.Tensor], x: dict[int, torch.Tensor]) -> None:
    for weight in weights:
        functional.linear(x[weight.shape[1]], weight)


def _linear_error(ours: Pass, out: int, x: torch.Tensor, weight: torch.Tensor) -> float:
    return relative_error(ours.result(out), functional.linear(x.float(), weight.float()))


def dense_cache(
    cache: torch.Tensor, rows: int, heads: int, context: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values `[layers, rows, heads, context, dim]` of a paged cache whose pages are in
    order."""
    layers, _, pages, page = cache.shape
    dim = page // (heads * _C.PAGE_TOKENS)
    grouped = (layers, rows, pages // rows, heads)
    keys = cache[:, 0].reshape(*grouped, dim, _C.PAGE_TOKENS).transpose(-1, -2)
    values = cache[:, 1].reshape(*grouped, _C.PAGE_TOKENS, dim)
    keys, values = (
        x.transpose(2, 3).reshape(layers, rows, heads, -1, dim)[..., :context, :].contiguous()
        for x in (keys, values)
    )
    return keys, values


def attention_cases(
    backend: CpuBackend,
    shape: str,
    dtype: torch.dtype,
    sizes: Sequence[Size],
    contexts: Sequence[int],
    parents: Sequence[int] | None,
) -> Iterator[Case]:
    """Sizes with more tokens than the context are left out."""
    for context in contexts:
        for rows, tokens in sizes:
            if tokens <= context:
                size = rows, tokens, context
                yield _attention_case(backend, shape, dtype, size, parents)


def _attention_case(
    backend: CpuBackend,
    shape: str,
    dtype: torch.dtype,
    size: tuple[int, int, int],
    parents: Sequence[int] | None,
) -> Case:
    """As many layers as fill CACHE_BYTES."""
    rows, tokens, context = size
    hidden, _, _, heads = sizes_of(shape)
    dim, scale = hidden // heads, 1 / math.sqrt(hidden // heads)
    pages, page = rows * -(-context // _C.PAGE_TOKENS), hidden * _C.PAGE_TOKENS
    layers = max(1, CACHE_BYTES // (2 * pages * page * dtype.itemsize))
    cache = torch.randn(layers, 2, pages, page).to(dtype)
    ours, check = (Pass(backend, rows, tokens, context, parents) for _ in range(2))
    table = torch.randn(INPUT_ROWS, 3 * hidden)
    qkv = ours.activation(table)
    for native in ours.recorder.cache_layers(cache, heads, dim):
        ours.recorder.attention(qkv, heads, scale, native, dtype)
    (first,) = check.recorder.cache_layers(cache[:1], heads, dim)
    out = check.recorder.attention(check.activation(table), heads, scale, first, torch.float32)

    queries = ours.fed(table)[:, :hidden].view(rows, tokens, heads, dim).transpose(1, 2)
    keys, values = dense_cache(cache, rows, heads, context)
    mask = tree_mask(tokens, context, parents)
    dense = (keys, values, mask if tokens > 1 else None)
    theirs = partial(_torch_attention, queries.to(dtype).contiguous(), *dense)
    error = partial(_attention_error, check, out, queries, *dense)
    seen = rows * int(mask.sum())
    read = layers * rows * 2 * context * hidden * dtype.itemsize
    flops = layers * 4 * seen * hidden
    detail = "tree" if parents is not None else ""
    return Case("attention", rows, tokens, context, ours, theirs, read, flops, error, detail)


def _torch_attention(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor | None
) -> None:
    for k, v in zip(keys, values, strict=True):
        functional.scaled_dot_product_attention(queries, k, v, mask)


def _attention_error(
    check: Pass,
    out: int,
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor | None,
) -> float:
    first = keys[0].float(), values[0].float()
    expected = functional.scaled_dot_product_attention(queries, *first, mask)
    found = check.result(out)
    return relative_error(found, expected.transpose(1, 2).reshape(found.shape))


def rms_norm_cases(
    backend: CpuBackend, shape: str, dtype: torch.dtype, sizes: Sequence[Size]
) -> Iterator[Case]:
    """Once for each layer."""
    hidden, _, layers, _ = sizes_of(shape)
    weight = torch.randn(hidden)
    for rows, tokens in by_count(sizes):
        ours, check = (Pass(backend, rows, tokens) for _ in range(2))
        table = torch.randn(INPUT_ROWS, hidden)
        x = ours.activation(table)
        for _ in range(layers):
            ours.recorder.rms_norm(x, weight, EPS, dtype)
        out = check.recorder.rms_norm(check.activation(table), weight, EPS, torch.float32)
        norm = partial(functional.rms_norm, ours.fed(table), (hidden,), weight, EPS)
        theirs, error = _elementwise(norm, layers, dtype, check, out)
        flops = 4 * layers * rows * tokens * hidden
        yield Case("rms_norm", rows, tokens, 0, ours, theirs, 0, flops, error)


def swiglu_cases(
    backend: CpuBackend, shape: str, dtype: torch.dtype, sizes: Sequence[Size]
) -> Iterator[Case]:
    """Once for each layer."""
    _, inner, layers, _ = sizes_of(shape)
    for rows, tokens in by_count(sizes):
        ours, check = (Pass(backend, rows, tokens) for _ in range(2))
        table = torch.randn(INPUT_ROWS, 2 * inner)
        x = ours.activation(table)
        for _ in range(layers):
            ours.recorder.swiglu(x, dtype)
        out = check.recorder.swiglu(check.activation(table), torch.float32)
        gate, up = (half.contiguous() for half in ours.fed(table).chunk(2, dim=1))
        theirs, error = _elementwise(partial(_torch_swiglu, gate, up), layers, dtype, check, out)
        flops = 5 * layers * rows * tokens * inner
        yield Case("swiglu", rows, tokens, 0, ours, theirs, 0, flops, error)


def _torch_swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    return functional.silu(gate).mul_(up)


def _elementwise(
    function: Callable[[], torch.Tensor], layers: int, dtype: torch.dtype, check: Pass, out: int
) -> tuple[Callable[[], None], Callable[[], float]]:
    """torch's side of an operation that yields float32 and is stored as `dtype`, and its error."""

    def theirs() -> None:
        for _ in range(layers):
            function().to(dtype)

    return theirs, lambda: relative_error(check.result(out), function())


def cases_of(
    op: str,
    backend: CpuBackend,
    shape: str,
    dtype: torch.dtype,
    sizes: Sequence[Size],
    contexts: Sequence[int],
    parents: Sequence[int] | None = None,
) -> Iterator[Case]:
    if op == "attention":
        return attention_cases(backend, shape, dtype, sizes, contexts, parents)
    makers = {"linear": linear_cases, "rms_norm": rms_norm_cases, "swiglu": swiglu_cases}
    return makers[op](backend, shape, dtype, sizes)
