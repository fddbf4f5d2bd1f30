// Reviewing drafted tokens: a level compares them with the tokens it would have chosen itself.
#pragma once

#include <cstdint>
#include <vector>

#include "ce/draft_distributions.h"
#include "ce/sampling.h"

namespace ce {

// Drafts of one row as a tree: node j is a child of node parents[j] < j, or of the row's token
// before the frontier (-1).
struct ReviewTree {
  const int32_t* tokens;
  const int32_t* parents;
  const float* probs;  // the drafting level's probability of each node; null where nobody needs it
};

// What the rejection rule must know of a row, beside its tokens.
struct RejectionRow {
  uint32_t number;  // of this review among all of the row, by any level: no two share their noise
  bool keeps;       // a better level will review what this one leaves: keep its distributions
  int64_t trunk;    // of a tree: leading nodes, a chain, that are the row's own drafts
};

// One row under review. Tokens at positions frontier..length-1 are drafted; the level's pass left
// length - frontier + 1 logit rows, of which row j predicts position frontier + j. With a tree,
// length - frontier is the number of its nodes, logit row 0 predicts what follows the frontier and
// row 1 + j what follows node j.
struct ReviewRow {
  int64_t row;
  int64_t frontier;
  int64_t length;
  const Sampler* sampler;
  const uint32_t* allowed;  // null, or one mask of ceil(vocab / 32) words for each logit row
  ReviewTree tree;          // tokens null: the drafts are the row's own
  RejectionRow rejection;   // where sampler->rejects()
  int64_t first_logit_row;  // set by accept()
};

struct ReviewArgs {
  const float* logits;  // [logit rows, vocab], logit rows of one review row after the other's
  int64_t logits_stride;
  int64_t logit_rows;  // how many there are, to be checked; -1: unknown
  int64_t vocab;
  int32_t* tokens;  // [rows, token_stride]
  int64_t token_stride;
  float* probs;  // [rows, token_stride] the drafting level's probability of each token (1 for
                 // tokens from statistics); null where nobody needs probabilities
  float lenience;
  DraftDistributions* distributions;  // null where no sampler rejects
};

struct Accepted {
  int32_t num_accepted;       // without the level's own token
  int32_t token;              // the level's own: correction or bonus token
  std::vector<int32_t> path;  // of a tree: the accepted nodes, from the root on
};

// Walks each row up to the first drafted token that the level disagrees with, and writes the
// level's own token there (or past the draft when it agrees with all). With lenience l > 1 a
// drafted token x also passes when level probability(x) > draft probability(x) / l, and accepted
// tokens' probs become the level's. Rows run in parallel; nothing is computed past a row's first
// disagreement. Throws InvalidArgument; rows reviewed before it was found keep their new tokens.
//
// A tree is walked from its root: to the child that is the level's own token, else, with lenience,
// to the most probable child (by the level, the first among equals) that passes as above; without
// one the walk ends with the own token. Tokens and probs of the path are written into the row, so
// that each position is judged on exactly its own prefix.
//
// Rows whose sampler rejects() are judged by review_by_rejection instead.
void accept(const ReviewArgs& args, ReviewRow* rows, int64_t count, const Kernels& kernels,
            ThreadPool& pool, Accepted* out);

// The `rejection` rule: what a review leaves has the distribution of the level's own sampling,
// whatever was drafted. A drafted token x counts as drawn from its draft distribution, which
// args.distributions has where a model drafted it; else it was proposed with certainty.
//   Chains at lenience 1: block verification (Sun et al., arXiv 2403.10444, algorithm 2).
//   Trees, and chains with lenience l > 1: from the root, a round for each child in order. x stays
//     with probability min(1, l level(x) / draft(x)) (Leviathan et al., arXiv 2211.17192, algorithm
//     1 and appendix A.5; Chen et al., arXiv 2302.01318); else the level's distribution becomes
//     the normalised residual max(0, l level - draft) for the next child (SpecInfer, arXiv
//     2305.09781, multi-step speculative sampling), and in the end for the own token. Children
//     beside the trunk count as proposed with certainty, so that they may be chosen by any means
//     after the trunk; lenience is for a node's first child.
// rejection.keeps: the distributions of the tokens that the review leaves are kept: the level's,
// or with lenience the one that the round has in fact (its tokens are not the level's own then).
Accepted review_by_rejection(const ReviewArgs& args, const ReviewRow& row, const Kernels& kernels);

}  // namespace ce
