"""Bugs planted in the kernels that draft."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from cascade_engine.ops.launch import Launcher
from tests.cuda import planted, test_drafting, test_segments
from tests.cuda import test_draft_trees as trees_of
from tests.cuda.planted import Bug

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
]


modules = planted.modules_of(BUGS)


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_is_caught(bug: Bug, modules: dict[str, Path]) -> None:
    planted.check(bug, modules)
