"""Bugs planted in the kernels of a forward pass."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from cascade_engine.ops.launch import Launcher
from tests.cuda import (
    planted,
    test_attention,
    test_dependent_launch,
    test_forward_ops,
    test_linear,
)
from tests.cuda.planted import Bug
from tests.cuda.support import BF16, SWIGLU


def product(run: Launcher) -> None:
    test_linear.test_product(run, BF16, 17, 130, 200)


def odd_product(run: Launcher) -> None:
    test_linear.test_product(run, BF16, 3, 40, 172)


def long_chains(run: Launcher) -> None:
    test_attention.test_chains(run, BF16, 6, 2, 128, [300, 17], [7, 1])


def mixed_chains(run: Launcher) -> None:
    test_attention.test_chains(run, BF16, 2, 1, 64, [5, 0, 254], [3, 0, 5])


behind_a_source = test_attention.test_a_decoder_sees_what_is_behind_the_source
gates = partial(test_forward_ops.test_gates, op="geglu")
fused_gates = partial(test_linear.test_fused_gates, output=SWIGLU)
elements = partial(test_linear.test_sums_as_elements, n=30, k=72)
trees = partial(test_attention.test_trees, start=250)
ahead = partial(test_dependent_launch.test_weights_come_ahead, rows=2, n=1000, k=300)
split_rows = partial(test_linear.test_bits_do_not_depend_on_the_number_of_rows, n=24, k=448)
rope = partial(test_forward_ops.test_rope_and_store, dtype=BF16, rotary=True)

BUGS = [
    Bug("x read before it is there", "linear.cu", "__syncthreads();  // this", "// this", product),
    Bug("waits for one stage too few", "linear.cu", "kStages - 2>", "kStages - 1>", product),
    Bug(
        "fragments from unswizzled places",
        *("linear.cu", "load_matrices(x, &shared.x[buffer][row][swizzled(row, chunk)])"),
        *("load_matrices(x, &shared.x[buffer][row][chunk])", product),
    ),
    Bug("a range of k is lost", "linear.cu", "split = 1; split", "split = 2; split", product),
    Bug("reads behind k", "linear.cu", "static_cast<int>(left) * 2", "16", odd_product),
    Bug(
        "leaves its counter", "linear.cu", "counters[output] = 0", "counters[output] += 0", product
    ),
    Bug(
        "x ahead of the launch that writes it",
        "linear.cu",
        "load_weights(args, tile, tile.first + i, shared);\n    copy_async_commit",
        "load_weights(args, tile, tile.first + i, shared), "
        "load_x(args, tile, tile.first + i, shared);\n    copy_async_commit",
        ahead,
    ),
    Bug("too few weights ahead", "linear.cu", "ahead && i < kStages - 1", "ahead && i < 1", ahead),
    Bug("halves of a tile swapped", "linear.cu", "high = low + 8", "high = low + 4", product),
    Bug("a row tile's second half twice", "linear.cu", "a, x + 2)", "a, x)", product),
    Bug(
        "splits depend on the rows",
        *("linear.cu", "splits = linear_splits(args."),
        *("splits = args.rows == 1 ? 1 : linear_splits(args.", split_rows),
    ),
    Bug(
        "sees one token too far",
        "attention.cu",
        "position <= shared.limits[row]",
        "position <= shared.limits[row] + 1",
        mixed_chains,
    ),
    Bug(
        "weights read before they are there",
        "attention.cu",
        "__syncthreads();  // weights",
        "// weights",
        long_chains,
    ),
    Bug(
        "all query rows see what the last one sees",
        *("attention.cu", "args.over_source && q.index >= 0 ?", "q.index >= 0 ?", mixed_chains),
    ),
    Bug(
        "slots taken for positions",
        "attention.cu",
        "index_of_position(item.path, position)",
        "position",
        trees,
    ),
    Bug(
        "values not transposed",
        "attention.cu",
        "load_matrices_transposed(",
        "load_matrices(",
        mixed_chains,
    ),
    Bug(
        "stale slots read",
        *("attention.cu", "position < item.end && piece"),
        *("position < args.max_chunks * kAttentionChunk && piece", mixed_chains),
    ),
    Bug(
        "chunks merged without their maxima",
        "attention.cu",
        "fmaf(expf(stats[2 * c] - highest), outputs",
        "fmaf(1.0f, outputs",
        long_chains,
    ),
    Bug("waits for one tile too few", "attention.cu", "kStages - 2>", "kStages - 1>", mixed_chains),
    Bug(
        "bias by key position",
        "attention.cu",
        "position - shared.positions[row]",
        "-position",
        test_attention.test_a_relative_bias_and_no_scale,
    ),
    Bug(
        "later keys count as the query's own",
        *("attention.cu", "smaller(offset, bias.reach)", "smaller(offset, 0)"),
        test_attention.test_an_encoder_sees_both_ways,
    ),
    Bug(
        "distances from the end of the source",
        *("attention.cu", "position - shared.positions[row]", "position - shared.limits[row]"),
        test_attention.test_an_encoder_sees_both_ways,
    ),
    Bug(
        "a decoder's scores of its source count",
        *("attention.cu", "seen = position >= item.begin &&", "seen = "),
        behind_a_source,
    ),
    Bug(
        "a decoder reads its source's values",
        *("attention.cu", "position >= item.begin && position < item.end", "position < item.end"),
        behind_a_source,
    ),
    Bug(
        "chunks of the source are merged",
        *("attention.cu", "int c = begin", "int c = 0", behind_a_source),
    ),
    Bug(
        "chunks counted from the source on",
        *("attention_items.h", "plan.first + static_cast", "static_cast", behind_a_source),
    ),
    Bug(
        "every query sees the longest source",
        *("attention_items.h", "args.sources[r]", "args.sources[0]"),
        test_attention.test_cross_attention,
    ),
    Bug("another GELU", "gates.h", "0.044715f", "0.0044715f", gates),
    Bug("gates mixed up", "linear.cu", "? silu(a) : gelu(a)", "? gelu(a) : silu(a)", fused_gates),
    Bug("cuts what it should round", "linear.cu", "relu ? 0.0f", "round ? 0.0f", elements),
    Bug(
        "a tree's second chunk is forgotten",
        "attention_items.h",
        "kTailChunks = 2",
        "kTailChunks = 1",
        trees,
    ),
    Bug(
        "items run into each other",
        "attention.cu",
        "__syncthreads();  // before",
        "// before",
        long_chains,
    ),
    Bug(
        "heads of a group mixed up",
        "attention.cu",
        "q = item.first + row;\n    const bool",
        "q = item.first + (row ^ 1);\n    const bool",
        long_chains,
    ),
    Bug(
        "turned by slot, not by depth",
        "rope.cu",
        "q.position < 0 ? 0 : q.position",
        "q.index < 0 ? 0 : q.index",
        rope,
    ),
    Bug(
        "turned the other way",
        "kv_pages.cu",
        "second * c + first * s",
        "second * c - first * s",
        rope,
    ),
    Bug(
        "moves up instead of down",
        *("kv_pages.cu", "*at(base + depth) = *at(base + path[depth])"),
        "*at(base + path[depth]) = *at(base + depth)",
        partial(test_forward_ops.test_commit_moves_the_accepted_path, dim=50),
    ),
    Bug(
        "sums read before they are there",
        "norm.cu",
        "__syncthreads();",
        "",
        partial(test_forward_ops.test_rms_norm, dtype=BF16, cols=300),
    ),
    Bug(
        "packed elements mixed up",
        *("embedding.cu", "k % 16 / 8 * 4 + row % 16 / 8 * 2", "k % 16 / 8 * 2 + row % 16 / 8 * 4"),
        partial(test_forward_ops.test_embedding, dtype=BF16, packed=True),
    ),
    Bug(
        "asks for more shared memory than it uses",
        *("norm.cu", "sizeof(Shared), stream", "sizeof(Shared) + 64, stream"),
        partial(test_forward_ops.test_rms_norm, dtype=BF16, cols=300),
    ),
]


modules = planted.modules_of(BUGS)


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_is_caught(bug: Bug, modules: dict[str, Path]) -> None:
    planted.check(bug, modules)
