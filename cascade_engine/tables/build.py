"""Counts n-grams and lays them out as csrc/include/ce/ngram.h describes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from cascade_engine.errors import RequestError
from cascade_engine.ops import NgramTable

MAX_ORDER = 8
COUNT_STEPS = 8
"""Steps of a stored count that double it; ngram.h has the same number."""
LONGEST_BLOCK_SHIFT = 6

Arrays = dict[str, Tensor]
Progress = Callable[[str, int, int], None]


class BuildOptions(NamedTuple):
    """order: tokens of the longest context; max_successors: kept for each context;
    max_bytes: of all arrays, None for no limit; min_counts: for each order, the occurrences below
    which a successor is dropped. Where max_bytes asks for more, min_counts is raised."""

    order: int
    max_bytes: int | None = None
    max_successors: int = 16
    min_counts: tuple[int, ...] = ()

    def checked(self) -> BuildOptions:
        """With min_counts filled in: every bigram, longer n-grams from two occurrences on."""
        if not 1 <= self.order <= MAX_ORDER:
            raise RequestError(f"order must be in 1..{MAX_ORDER}, got {self.order}")
        if not 1 <= self.max_successors <= 255:
            raise RequestError(f"max_successors must be in 1..255, got {self.max_successors}")
        least = self.min_counts or tuple(min(n, 2) for n in range(1, self.order + 1))
        if len(least) != self.order or least[0] < 1 or list(least) != sorted(least):
            raise RequestError(
                f"min_counts must be {self.order} numbers >= 1 that do not fall, got {least}"
            )
        return self._replace(min_counts=least)


class BuiltTable(NamedTuple):
    """arrays as in a table file; min_counts are those in force; tokens were counted."""

    arrays: Arrays
    vocab_size: int
    block_shift: int
    min_counts: tuple[int, ...]
    tokens: int

    def native(self) -> NgramTable:
        """The table for lookups; keeps the arrays alive."""
        arrays = {name: array.numpy().data for name, array in self.arrays.items()}
        return NgramTable(len(self.min_counts), self.vocab_size, self.block_shift, arrays)


class _Order(NamedTuple):
    """One order after pruning. Contexts are numbered by (parent, token)."""

    parent: Tensor  # [contexts]; order 1: empty
    token: Tensor  # [contexts]; order 1: empty
    total: Tensor  # [contexts]
    sizes: Tensor  # [contexts] successors of each
    successor: Tensor
    counts: Tensor


def build_table(
    documents: Sequence[Sequence[int]],
    vocab_size: int,
    options: BuildOptions,
    progress: Progress | None = None,
) -> BuiltTable:
    """A table of the n-grams inside the documents (token ids). Raises RequestError."""
    options = options.checked()
    ids = torch.tensor([token for document in documents for token in document])
    if len(ids) == 0 or ids.min() < 0 or ids.max() >= vocab_size:
        found = f"{int(ids.min())}..{int(ids.max())}" if len(ids) else "none"
        raise RequestError(f"documents must hold token ids in 0..{vocab_size - 1}, found {found}")
    depth = torch.cat([torch.arange(len(document)) for document in documents])
    while True:
        orders = _count(ids, depth, vocab_size, options, progress)
        arrays, shift = _lay_out(orders, vocab_size)
        size = sum(array.nbytes for array in arrays.values())
        if options.max_bytes is None or size <= options.max_bytes:
            return BuiltTable(arrays, vocab_size, shift, options.min_counts, len(ids))
        least = _raised(orders, options, vocab_size)
        if least is None:
            raise RequestError(
                f"max_bytes {options.max_bytes} is too small for this vocabulary: the table's "
                f"frame alone takes {_bytes(orders, (2**62,) * options.order, vocab_size)}"
            )
        options = options._replace(min_counts=least)


def _count(
    ids: Tensor, depth: Tensor, vocab: int, options: BuildOptions, progress: Progress | None
) -> list[_Order]:
    """All orders. `depth` is each token's place in its document."""
    # Ends of contexts: tokens that another one of the same document follows.
    ends = (depth[1:] > 0).nonzero()[:, 0]
    context = ids[ends]
    parent = token = torch.empty(0, dtype=torch.int64)
    contexts, orders = vocab, []
    for n in range(1, options.order + 1):
        if progress is not None:
            progress("counting n-grams of order", n, options.order)
        if n > 1:
            deep = depth[ends] >= n - 1
            ends, context = ends[deep], context[deep]
            keys, context = torch.unique(context * vocab + ids[ends - (n - 1)], return_inverse=True)
            parent, token = keys // vocab, keys % vocab
            contexts = len(keys)
        total = torch.bincount(context, minlength=contexts)
        owner, successor, count = _successors(context * vocab + ids[ends + 1], vocab, options, n)
        sizes = torch.bincount(owner, minlength=contexts)
        alive = sizes > 0
        kept = alive[context]
        ends, context = ends[kept], context[kept]
        if n > 1:  # contexts without successors go; order 1 keeps a place for each token
            context = (alive.cumsum(0) - 1)[context]
            parent, token, total, sizes = (x[alive] for x in (parent, token, total, sizes))
        orders.append(_Order(parent, token, total, sizes, successor, count))
    return orders


def _successors(
    pairs: Tensor, vocab: int, options: BuildOptions, n: int
) -> tuple[Tensor, Tensor, Tensor]:
    """(context, successor, count) of the pairs that stay, from context * vocab + successor; by
    context, falling count, rising successor."""
    pairs, count = torch.unique(pairs, return_counts=True)
    often = count >= options.min_counts[n - 1]
    pairs, count = pairs[often], count[often]
    by_count = torch.argsort(-count, stable=True)
    owner = (pairs // vocab)[by_count]
    by_owner = torch.argsort(owner, stable=True)
    owner, pairs, count = owner[by_owner], pairs[by_count][by_owner], count[by_count][by_owner]
    rank = torch.arange(len(owner)) - torch.searchsorted(owner, owner)
    best = rank < options.max_successors
    return owner[best], (pairs % vocab)[best], count[best]


def _raised(orders: list[_Order], options: BuildOptions, vocab: int) -> tuple[int, ...] | None:
    """The lowest min_counts that should fit max_bytes; the longest contexts, which are seen
    least, are thinned first, and bigrams last. None when nothing fits."""
    assert options.max_bytes is not None
    least = list(options.min_counts)
    highest = max(int(order.counts.max()) for order in orders if len(order.counts))
    while _bytes(orders, tuple(least), vocab) > options.max_bytes or (
        tuple(least) == options.min_counts
    ):
        # Raise the last of the smallest, sparing order 1 until the others are four times as high.
        rest = least[1:]
        if rest and (min(rest) < 4 * least[0] or rest[0] <= least[0]):
            at = len(least) - 1 - rest[::-1].index(min(rest))
        else:
            at = 0
        least[at] += 1
        if least[0] > highest + 1:
            return None
    return tuple(least)


def _bytes(orders: list[_Order], least: tuple[int, ...], vocab: int) -> int:
    """About how large the table is when successors seen less often are dropped."""
    wide = 4 if vocab > 65536 else 2
    size = 0
    for n, (order, bound) in enumerate(zip(orders, least, strict=True), start=1):
        entries = int((order.counts >= bound).sum())
        first = order.sizes.cumsum(0) - order.sizes  # a context's most frequent successor
        contexts = vocab
        if n > 1:
            contexts = int((order.counts[first] >= bound).sum()) if len(first) else 0
        runs = 1 if n == len(orders) else 2
        per_context = (wide if n > 1 else 0) + 1 + 2 * runs
        size += entries * (wide + 1) + contexts * per_context + runs * (6 + contexts // 16)
    return size


def _lay_out(orders: list[_Order], vocab: int) -> tuple[Arrays, int]:
    """The file's arrays, and the block shift of their offsets."""
    ids = torch.uint16 if vocab <= 65536 else torch.int32
    runs: dict[str, Tensor] = {}
    arrays: Arrays = {}
    for n, order in enumerate(orders, start=1):
        prefix = f"order{n}."
        if n > 1:
            arrays[prefix + "token"] = order.token.to(ids)
        arrays[prefix + "total"] = _quantised(order.total)
        arrays[prefix + "successor"] = order.successor.to(ids)
        arrays[prefix + "count"] = _quantised(order.counts)
        runs[prefix + "successors"] = order.sizes
        if n < len(orders):
            children = torch.bincount(orders[n].parent, minlength=len(order.sizes))
            runs[prefix + "children"] = children
    for shift in range(LONGEST_BLOCK_SHIFT, -1, -1):
        split = {name: _offsets(sizes, shift) for name, sizes in runs.items()}
        if all(int(delta.max()) < 65536 for _, delta in split.values()):
            break
    for name, (base, delta) in split.items():
        arrays[name + "_base"] = base.to(torch.uint32)
        arrays[name + "_delta"] = delta.to(torch.uint16)
    return arrays, shift


def _offsets(sizes: Tensor, shift: int) -> tuple[Tensor, Tensor]:
    """(base, delta) of the runs' offsets, one more than there are runs."""
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), sizes.cumsum(0)])
    base = offsets[:: 1 << shift]
    return base, offsets - base.repeat_interleave(1 << shift)[: len(offsets)]


def _quantised(count: Tensor) -> Tensor:
    """q with 2^(q / COUNT_STEPS) nearest to the count; 0 (never looked at) counts as 1."""
    q = (COUNT_STEPS * count.clamp(min=1).double().log2()).round()
    return q.clamp(max=255).to(torch.uint8)
