"""Bugs planted in the kernels that choose and accept tokens."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from tests.cuda import planted, test_runners_up
from tests.cuda import test_rejection_kernel as rejecting
from tests.cuda import test_sampling as sampling
from tests.cuda.planted import Bug

reviews = partial(sampling.test_reviews_are_the_oracles, lenience=1.0)
lenient_reviews = partial(sampling.test_reviews_are_the_oracles, lenience=3.0)
lenient_trees = partial(sampling.test_trees_are_the_oracles, lenience=3.0)
tree_reviews = partial(sampling.test_trees, temperature=0.0)
rejections = partial(rejecting.test_reviews_are_the_oracles, lenience=1.0)
lenient_rejections = partial(rejecting.test_reviews_are_the_oracles, lenience=2.5)
chains = rejecting.test_long_chains
runners_up = partial(test_runners_up.test_they_are_the_cpus, seed=1)
few = test_runners_up.test_a_filter_leaves_none
parts = rejecting.test_a_large_vocabulary_is_shared_out

BUGS = [
    Bug(
        "ties go to the highest id",
        "noise.h",
        "(0xffffffffu - static_cast<uint32_t>(id))",
        "static_cast<uint32_t>(id)",
        sampling.test_ties_and_what_is_not_a_number,
    ),
    Bug("the upper tail of the noise", "noise.h", "upper ? ~bits : bits", "bits", reviews),
    Bug(
        "penalties count the source",
        *("sampling.cu", "p = s.source_length + thread", "p = thread", tree_reviews),
    ),
    Bug(
        "noise of the position before",
        "distribution.h",
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
        "the own token has its draft's probability",
        "accept.cu",
        "args.probs[2 * (first + node + 1)]",
        "args.probs[2 * (first + node + 1) + 1]",
        reviews,
    ),
    Bug("another uniform", "rejection.h", "<< 20 | low >> 12", "<< 19 | low >> 12", rejections),
    Bug("rounds share their noise", "rejection.h", "<< 8)", "<< 0) * 0", rejections),
    Bug(
        "reviews share their noise",
        *("rejection.h", "philox4x32(number,", "philox4x32(0 * number,", rejections),
    ),
    Bug(
        "a draft behind the one that it follows",
        *("rejection.h", "row.first + d.parents[j] + 1", "row.first + j", rejections),
    ),
    Bug("reaches above one", "rejection.h", "reach < 1.0 ? reach : 1.0", "reach", chains),
    Bug(
        "every draft is certain",
        *("rejection.h", "drawn == nullptr ? 1.0f :", "true ? 1.0f :", rejections),
    ),
    Bug(
        "what was tried is drawn again",
        *("rejection.h", "== id) return 0", "== id) break", rejections),
    ),
    Bug(
        "negative rests",
        *("rejection.h", "return value > 0.0 ? static_cast", "return true ? static_cast"),
        rejections,
    ),
    Bug(
        "a mixture as if nothing was kept",
        *("rejection.h", "(1.0 - accepted) / total", "1.0 / total", lenient_rejections),
    ),
    Bug(
        "lenience in the level's own law",
        *("rejection.h", "m.lenience <= 1.0", "m.lenience <= 100.0", lenient_rejections),
    ),
    Bug(
        "no lenience for the first child",
        *("rejection.cu", "first ? lenience * d.prob[c]", "first ? d.prob[c]", lenient_rejections),
    ),
    Bug(
        "the rest of another draft",
        *("rejection.cu", "args.rests[2 * (row.first + c)] :", "args.rests[2 * row.first] :"),
        rejections,
    ),
    Bug(
        "stops at the first failure",
        *(
            "rejection.cu",
            "if (j == row.nodes || d.reach[j + 1] <= 0.0) break",
            "if (w.node < j - 1 || j == row.nodes || d.reach[j + 1] <= 0.0) break",
        ),
        rejections,
    ),
    Bug(
        "no reach in the rest",
        *("rejection.cu", "blocks ? shared.drafts.reach[j] : 1.0", "1.0", rejections),
    ),
    Bug(
        "sums before a lane that are none",
        *("rejection.cu", "lane >= by ? below : 0", "below", rejections),
    ),
    Bug(
        "a warp's part is forgotten",
        *("rejection.cu", "begin += found * part", "begin += (found & 7) * part", parts),
    ),
    Bug(
        "keeps one distribution too few",
        *("rejection.cu", "i > args.accepted.num_accepted", "i >= args.accepted.num_accepted"),
        rejections,
    ),
    Bug(
        "judges rows that reject by the other rule",
        *("accept.cu", "args.samplers[r].rejects) return", "false) return", rejections),
    ),
    Bug(
        "filters are not part of the law",
        *("sampling.cu", "{f.least, total, f.highest, 0}", "{1, total, f.highest, 0}", rejections),
    ),
    Bug("the first of equals again", "runners_up.cu", "key < above", "key <= above", runners_up),
    Bug("what filters left out", "runners_up.cu", "if (!law.filter.keeps(i)) continue;", "", few),
    Bug(
        "runners-up without the noise",
        *("runners_up.cu", "c.sampler->rejects ? c.values[i] : decided_by(c, i)", "c.values[i]"),
        runners_up,
    ),
    Bug(
        "no reason for no law",
        *("sampling.cu", "{0, 0, 0.0f, favourite}", "{0, 0, 0.0f, 0}"),
        rejecting.test_logits_that_are_no_numbers,
    ),
]


modules = planted.modules_of(BUGS)


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_is_caught(bug: Bug, modules: dict[str, Path]) -> None:
    planted.check(bug, modules)
