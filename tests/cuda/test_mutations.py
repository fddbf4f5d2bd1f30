"""Planted bugs: each is a textual change of one kernel source, and each must be caught by the check
named with it. What no check catches is not tested."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from cascade_engine.ops.launch import Launcher
from tests.cuda import (
    emulation,
    test_attention,
    test_dependent_launch,
    test_drafting,
    test_forward_ops,
    test_linear,
    test_segments,
)
from tests.cuda import test_draft_trees as trees_of
from tests.cuda import test_sampling as sampling
from tests.cuda.support import BF16, SWIGLU

Check = Callable[[Launcher], None]


FOLDER = emulation.CSRC / "cuda"
KERNELS = emulation.KERNELS


class Bug(NamedTuple):
    name: str
    file: str
    old: str
    new: str
    check: Check


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
reviews = partial(sampling.test_reviews_are_the_oracles, lenience=1.0)
lenient_reviews = partial(sampling.test_reviews_are_the_oracles, lenience=3.0)
lenient_trees = partial(sampling.test_trees_are_the_oracles, lenience=3.0)
tree_reviews = partial(sampling.test_trees, temperature=0.0)
rope = partial(test_forward_ops.test_rope_and_store, dtype=BF16, rotary=True)
max_gram = partial(test_drafting.test_max_gram, max_match=32)
drafted_trees = partial(trees_of.test_trees_are_the_references, seed=5)
learned_trees = partial(trees_of.test_trees_are_the_references, seed=3)
predicted_trees = partial(trees_of.test_trees_are_the_references, seed=4)
segments = partial(test_segments.test_segments_are_what_calls_leave, seed=5)
drafted_batch = partial(trees_of.test_the_batch_of_a_review, trees=True)


def lagging_batch(run: Launcher) -> None:
    trees_of.test_the_batch_of_rows_that_lag(run, True)
    trees_of.test_the_batch_of_rows_that_lag(run, False)


BUGS = [
    Bug(
        "ties go to the highest id",
        "noise.h",
        "(0xffffffffu - static_cast<uint32_t>(id))",
        "static_cast<uint32_t>(id)",
        sampling.test_ties_and_what_is_not_a_number,
    ),
    Bug("the upper tail of the noise", "noise.h", "upper ? ~bits : bits", "bits", reviews),
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
        "penalties count the source",
        *("sampling.cu", "p = s.source_length + thread", "p = thread", tree_reviews),
    ),
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
        "noise of the position before",
        "sampling.cu",
        "static_cast<uint32_t>(c.query.position + 1)",
        "static_cast<uint32_t>(c.query.position)",
        reviews,
    ),
    Bug(
        "penalties see slots, not the path",
        "sampling.cu",
        "tokens[index_of_position(c.query, p)]",
        "tokens[p]",
        tree_reviews,
    ),
    Bug(
        "one token more than top_k",
        "sampling.cu",
        "shared.buckets[bucket] < wanted",
        "shared.buckets[bucket] <= wanted",
        sampling.test_ties_at_the_cut_go_to_the_lowest_ids,
    ),
    Bug(
        "counts used while they grow",
        "sampling.cu",
        "__syncthreads();  // counts",
        "// counts",
        reviews,
    ),
    Bug(
        "parents one node off",
        "batch.h",
        "63 - __clzll(above)",
        "62 - __clzll(above)",
        tree_reviews,
    ),
    Bug(
        "asks for more shared memory than it uses",
        *("norm.cu", "sizeof(Shared), stream", "sizeof(Shared) + 64, stream"),
        partial(test_forward_ops.test_rms_norm, dtype=BF16, cols=300),
    ),
    Bug(
        "lenience takes the first that passes",
        *("accept.cu", "static_cast<uint64_t>(__float_as_uint(prob)) << 32", "1", lenient_trees),
    ),
    Bug(
        "lenience before the level's own token",
        *("accept.cu", "int child = own_child(shared, nodes, node)", "int child = -1"),
        lenient_trees,
    ),
    Bug(
        "a draft's probability by the logits behind it",
        *("sampling.cu", "node) == c.j - 1)", "node) == c.j)", lenient_trees),
    ),
    Bug(
        "lenience the wrong way", "accept.cu", "/ args.lenience", "* args.lenience", lenient_reviews
    ),
    Bug(
        "the last place is not searched",
        "match.h",
        "end < text_length - 1",
        "end < text_length - 2",
        max_gram,
    ),
    Bug(
        "the row wins over the corpus",
        "match.h",
        "match_length(other) >= match_length(own)",
        "match_length(other) > match_length(own)",
        test_drafting.test_corpora,
    ),
    Bug(
        "a copy runs into its own tokens",
        "match.h",
        "next + i % (length - next)",
        "next + i",
        max_gram,
    ),
    Bug(
        "contexts searched one too low",
        "ngram_table.h",
        "probe) <= token",
        "probe) < token",
        test_drafting.test_contexts_are_found_among_many,
    ),
    Bug(
        "the context read before it is there",
        *("draft_tree.cu", "__syncthreads();  // the first context", "", drafted_trees),
    ),
    Bug(
        "blended before all is found",
        *("draft_tree.cu", "__syncthreads();  // all is found", "", drafted_trees),
    ),
    Bug(
        "the oldest occurrences",
        *("draft_tree.h", "at = top - 1 - lane - u", "at = top - kWarp + lane - u", drafted_trees),
    ),
    Bug(
        "a warp's part begins one late",
        "draft_tree.h",
        "high - part > 1 ? high - part : 1",
        "high - part > 1 ? high - part + 1 : 1",
        trees_of.test_a_long_text_is_shared_out,
    ),
    Bug(
        "more occurrences than the window",
        *("draft_tree.h", "count = count < kWindow ? count : kWindow;\n    const", "const"),
        drafted_trees,
    ),
    Bug(
        "contexts across requests",
        "draft_tree.h",
        "token == kBoundary ? 0",
        "i < low ? 0",
        learned_trees,
    ),
    Bug(
        "a pair's places begin one late",
        "draft_tree.h",
        "high - part > first ? high - part : first",
        "high - part > first ? high - part + 1 : first",
        trees_of.test_what_was_learnt_is_shared_out,
    ),
    Bug(
        "the highest pair of tokens is not looked for",
        "draft_tree.h",
        "*args.finished_length - 2;",
        "*args.finished_length - 3;",
        trees_of.test_what_was_learnt_is_shared_out,
    ),
    Bug(
        "a token found twice is two candidates",
        "draft_tree.h",
        "first = first && i >= lane",
        "first = first",
        drafted_trees,
    ),
    Bug(
        "the later of equals first",
        "draft_tree.cu",
        "s.open.prob[i] >= prob)",
        "s.open.prob[i] > prob)",
        drafted_trees,
    ),
    Bug("layers forgotten", "draft_tree.cu", "kLayerCount = 23", "kLayerCount = 20", learned_trees),
    Bug(
        "deeper than asked for",
        "draft_tree.cu",
        "count < budget && level < depth",
        "count < budget && level <= depth",
        predicted_trees,
    ),
    Bug(
        "off the prediction's path after one token",
        "draft_tree.cu",
        "token == expected ? at + 1 : -1",
        "token == expected ? -1 : -1",
        predicted_trees,
    ),
    Bug(
        "others before the likely chain",
        "draft_tree.cu",
        "placed + __popcll",
        "__popcll",
        drafted_trees,
    ),
    Bug(
        "ancestors one short",
        "drafted_batch.cu",
        "node >= 0; node",
        "node > 0; node",
        drafted_batch,
    ),
    Bug(
        "a hole is fed",
        "drafted_batch.cu",
        "counts[r] = hole ? 0 :",
        "counts[r] =",
        drafted_batch,
    ),
    Bug(
        "rows at their end are fed",
        "drafted_batch.cu",
        "length >= args.ends[r]",
        "length > args.ends[r]",
        lagging_batch,
    ),
    Bug(
        "a tree behind a lagging row",
        "drafted_batch.cu",
        "length - cached + j",
        "1 + j",
        lagging_batch,
    ),
    Bug(
        "drafts before the row are not reviewed",
        "drafted_batch.cu",
        "args.frontiers == nullptr ? length : args.frontiers[r]",
        "length",
        lagging_batch,
    ),
    *[
        Bug(name, "segment.cu", old, new, segments)
        for name, old, new in (
            ("copied before all is searched", "__syncthreads();  // matches are complete", ""),
            (
                "confidence without the own token",
                "i < gained; ++i) conf",
                "i < accepted; ++i) conf",
            ),
            ("a segment goes on for a token", "got < args.wanted[r]", "got <= args.wanted[r]"),
            ("no room for the own token", "- s.length - 1;", "- s.length;"),
            ("asked once too often", "drafted >= args.leasts[r]", "drafted > args.leasts[r]"),
            ("rows that are done go on", "args.slots[r] = s.slot;", ""),
        )
    ],
    Bug(
        "the own token has its draft's probability",
        "accept.cu",
        "args.probs[2 * (first + node + 1)]",
        "args.probs[2 * (first + node + 1) + 1]",
        reviews,
    ),
]


def mutated(bug: Bug) -> dict[str, str]:
    """A header is changed inside every source that reaches it."""
    text = (FOLDER / bug.file).read_text()
    assert bug.old in text, f"{bug.name}: {bug.file} has no {bug.old!r}"
    text = text.replace(bug.old, bug.new)
    if bug.file.endswith(".cu"):
        return {bug.file: text}
    found = {name: with_header((FOLDER / name).read_text(), bug.file, text) for name in KERNELS}
    return {name: changed for name, changed in found.items() if changed is not None}


def with_header(source: str, header: str, text: str) -> str | None:
    """A source in which an included header reads otherwise; None where it is not reached."""
    for other in re.findall(r'#include "cuda/(.+)"', source):
        inner = text if other == header else None
        inner = inner or with_header((FOLDER / other).read_text(), header, text)
        if inner is not None:
            return source.replace(f'#include "cuda/{other}"', inner)
    return None


@pytest.fixture(scope="module")
def modules(emulated: Launcher) -> dict[str, Path]:
    """A module for each bug, two compilations at a time."""
    paths = emulation.build_all([mutated(bug) for bug in BUGS], warnings=False)
    return {bug.name: path for bug, path in zip(BUGS, paths, strict=True)}


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_is_caught(bug: Bug, modules: dict[str, Path]) -> None:
    module = emulation.load(modules[bug.name])
    module.set_seed(1)
    torch.manual_seed(0)
    # Wrong results fail assertions, misuse of the thread model raises ValueError.
    with pytest.raises((AssertionError, ValueError)):
        bug.check(Launcher(module, torch.device("cpu")))
