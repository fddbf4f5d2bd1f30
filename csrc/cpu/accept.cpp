#include "ce/accept.h"

#include <algorithm>
#include <vector>

#include "ce/check.h"
#include "ce/parallel.h"

namespace ce {
namespace {

// Returns the number of tokens on the longest path.
int64_t check_tree(const ReviewRow& r, int64_t i) {
  const int64_t nodes = r.length - r.frontier;
  std::vector<int64_t> depths(static_cast<size_t>(nodes));
  int64_t deepest = 0;
  for (int64_t j = 0; j < nodes; ++j) {
    const int32_t parent = r.tree.parents[j];
    CE_CHECK(parent >= -1 && parent < j, "trees[", i, "]: parents[", j, "] must be in -1..", j - 1,
             ", got ", parent);
    CE_CHECK(r.tree.tokens[j] >= 0, "trees[", i, "]: tokens[", j, "] is ", r.tree.tokens[j]);
    int64_t& depth = depths[static_cast<size_t>(j)];
    depth = 1 + (parent < 0 ? 0 : depths[static_cast<size_t>(parent)]);
    deepest = std::max(deepest, depth);
  }
  return deepest;
}

void check_rejection(const ReviewArgs& args, const ReviewRow& r, int64_t i) {
  CE_CHECK(args.distributions != nullptr, "samplers[", i,
           "] asks for rejection, which compares whole distributions: pass distributions");
  CE_CHECK(args.distributions->vocab() == args.vocab && r.row < args.distributions->rows(),
           "distributions are of ", args.distributions->rows(), " rows and a vocabulary of ",
           args.distributions->vocab(), "; rows[", i, "] = ", r.row, " has ", args.vocab);
  const int64_t trunk = r.rejection.trunk;
  CE_CHECK(trunk >= 0 && (r.tree.tokens == nullptr || trunk <= r.length - r.frontier), "trunks[", i,
           "] must be in 0..", r.length - r.frontier, " (nodes), got ", trunk);
  if (r.tree.tokens == nullptr) return;
  for (int64_t j = 0; j < trunk; ++j)
    CE_CHECK(r.tree.parents[j] == j - 1, "trees[", i, "]: the first ", trunk,
             " nodes must be a chain, but parents[", j, "] is ", r.tree.parents[j]);
}

void check_arguments(const ReviewArgs& args, ReviewRow* rows, int64_t count) {
  CE_CHECK(args.vocab > 0 && args.vocab <= INT32_MAX, "vocab must be in [1, 2^31), got ",
           args.vocab);
  CE_CHECK(args.logits_stride >= args.vocab, "logits_stride must be >= vocab ", args.vocab,
           ", got ", args.logits_stride);
  CE_CHECK(args.lenience >= 1.0f, "lenience must be >= 1 (1: lossless), got ", args.lenience);
  CE_CHECK(args.lenience == 1.0f || args.probs != nullptr, "lenience ", args.lenience,
           " compares probabilities: pass probs, or lenience 1");
  int64_t logit_rows = 0;
  std::vector<int64_t> seen;
  for (int64_t i = 0; i < count; ++i) {
    ReviewRow& r = rows[i];
    CE_CHECK(r.row >= 0, "rows[", i, "] must be >= 0, got ", r.row);
    CE_CHECK(r.frontier >= 1, "frontiers[", i, "] must be >= 1, got ", r.frontier,
             "; the first token has no logits before it");
    CE_CHECK(r.length >= r.frontier, "lengths[", i, "] = ", r.length, " is below frontiers[", i,
             "] = ", r.frontier);
    const int64_t reach = r.tree.tokens == nullptr ? r.length : r.frontier + check_tree(r, i);
    CE_CHECK(reach < args.token_stride, "lengths[", i, "] = ", reach,
             " leaves no place for the bonus token in rows of ", args.token_stride,
             "; draft fewer tokens or make the rows longer");
    r.first_logit_row = logit_rows;
    logit_rows += r.length - r.frontier + 1;
    seen.push_back(r.row);
  }
  for (int64_t i = 0; i < count; ++i) {
    if (rows[i].sampler->rejects()) {
      check_rejection(args, rows[i], i);
      continue;
    }
    CE_CHECK(
        args.lenience == 1.0f || rows[i].tree.tokens == nullptr || rows[i].tree.probs != nullptr,
        "lenience ", args.lenience, " compares probabilities: trees[", i, "] has none");
  }
  CE_CHECK(args.logit_rows < 0 || logit_rows == args.logit_rows, "the rows need ", logit_rows,
           " logit rows (length - frontier + 1 each), got ", args.logit_rows);
  std::sort(seen.begin(), seen.end());
  const auto twice = std::adjacent_find(seen.begin(), seen.end());
  CE_CHECK(twice == seen.end(), "row ", *twice, " is reviewed twice in one call");
}

// The child of node `at` to go to: the level's own token, else the best that lenience lets pass,
// else -1.
int32_t next_node(const ReviewRow& r, int32_t at, float lenience, Decision& decision) {
  const int32_t nodes = static_cast<int32_t>(r.length - r.frontier);
  const int32_t own = decision.token();
  for (int32_t c = at + 1; c < nodes; ++c)
    if (r.tree.parents[c] == at && r.tree.tokens[c] == own) return c;
  if (lenience == 1.0f) return -1;
  int32_t best = -1;
  float highest = 0.0f;
  for (int32_t c = at + 1; c < nodes; ++c) {
    if (r.tree.parents[c] != at) continue;
    const float prob = decision.prob_of(r.tree.tokens[c]);
    if (prob <= r.tree.probs[c] / lenience || prob <= highest) continue;
    best = c;
    highest = prob;
  }
  return best;
}

Accepted review_tree(const ReviewArgs& args, const ReviewRow& r, const Kernels& kernels) {
  SamplerScratch& scratch = sampler_scratch();
  int32_t* tokens = args.tokens + r.row * args.token_stride;
  float* probs = args.probs == nullptr ? nullptr : args.probs + r.row * args.token_stride;
  const int64_t mask_words = (args.vocab + 31) / 32;
  std::vector<int32_t> path;
  for (int32_t at = -1;; path.push_back(at)) {
    const int64_t position = r.frontier + static_cast<int64_t>(path.size());
    const uint32_t* allowed = r.allowed == nullptr ? nullptr : r.allowed + (at + 1) * mask_words;
    const float* logits = args.logits + (r.first_logit_row + at + 1) * args.logits_stride;
    Decision decision(kernels, *r.sampler,
                      {logits, args.vocab, tokens, position, allowed, path.empty()}, scratch);
    at = next_node(r, at, args.lenience, decision);
    const int32_t token = at < 0 ? decision.token() : r.tree.tokens[at];
    tokens[position] = token;
    if (probs != nullptr)
      probs[position] = at < 0 || args.lenience > 1.0f || r.tree.probs == nullptr
                            ? decision.prob_of(token)
                            : r.tree.probs[at];
    if (at < 0) return {static_cast<int32_t>(path.size()), token, std::move(path)};
  }
}

Accepted review(const ReviewArgs& args, const ReviewRow& r, const Kernels& kernels) {
  if (r.sampler->rejects()) return review_by_rejection(args, r, kernels);
  if (r.tree.tokens != nullptr) return review_tree(args, r, kernels);
  SamplerScratch& scratch = sampler_scratch();
  int32_t* tokens = args.tokens + r.row * args.token_stride;
  float* probs = args.probs == nullptr ? nullptr : args.probs + r.row * args.token_stride;
  const bool lenient = args.lenience > 1.0f;
  const int64_t mask_words = (args.vocab + 31) / 32;

  for (int64_t position = r.frontier;; ++position) {
    const int64_t j = position - r.frontier;
    const uint32_t* allowed = r.allowed == nullptr ? nullptr : r.allowed + j * mask_words;
    const float* logits = args.logits + (r.first_logit_row + j) * args.logits_stride;
    Decision decision(kernels, *r.sampler, {logits, args.vocab, tokens, position, allowed, j == 0},
                      scratch);
    const int32_t own = decision.token();
    if (position < r.length) {
      const int32_t drafted = tokens[position];
      CE_CHECK(drafted >= 0, "row ", r.row, " holds token ", drafted, " at position ", position,
               ", before its length ", r.length);
      bool accepted = drafted == own;
      if (lenient) {
        const float prob = decision.prob_of(drafted);
        accepted = accepted || prob > probs[position] / args.lenience;
        if (accepted) probs[position] = prob;
      }
      if (accepted) continue;
    }
    tokens[position] = own;
    if (probs != nullptr) probs[position] = decision.prob_of(own);
    return {static_cast<int32_t>(j), own, {}};
  }
}

}  // namespace

void accept(const ReviewArgs& args, ReviewRow* rows, int64_t count, const Kernels& kernels,
            ThreadPool& pool, Accepted* out) {
  check_arguments(args, rows, count);
  for_each_item(pool, count, [&](int64_t i) { out[i] = review(args, rows[i], kernels); });
}

}  // namespace ce
