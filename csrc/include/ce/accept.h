// Reviewing drafted tokens: a level compares them with the tokens it would have chosen itself.
#pragma once

#include <cstdint>

#include "ce/sampling.h"

namespace ce {

// One row under review. Tokens at positions frontier..length-1 are drafted; the level's pass left
// length - frontier + 1 logit rows, of which row j predicts position frontier + j.
struct ReviewRow {
  int64_t row;
  int64_t frontier;
  int64_t length;
  const Sampler* sampler;
  const uint32_t* allowed;  // null, or one mask of ceil(vocab / 32) words for each logit row
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
};

struct Accepted {
  int32_t num_accepted;  // without the level's own token
  int32_t token;         // the level's own: correction or bonus token
};

// Walks each row up to the first drafted token that the level disagrees with, and writes the
// level's own token there (or past the draft when it agrees with all). With lenience l > 1 a
// drafted token x also passes when level probability(x) > draft probability(x) / l, and accepted
// tokens' probs become the level's. Rows run in parallel; nothing is computed past a row's first
// disagreement. Throws InvalidArgument; rows reviewed before it was found keep their new tokens.
void accept(const ReviewArgs& args, ReviewRow* rows, int64_t count, const Kernels& kernels,
            ThreadPool& pool, Accepted* out);

}  // namespace ce
