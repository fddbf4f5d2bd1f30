// A model that drafts on its own: token after token, each chosen from the logits behind the one
// before, without a way back to the caller between them.
#pragma once

#include <cstdint>
#include <vector>

#include "ce/accept.h"
#include "ce/program.h"

namespace ce {

// One row that is drafted for. Its tokens up to `length` stand in the bound rows, those before
// `cached` < length are in the cache, and the block table has room for length + tokens - 1.
struct DraftRow {
  int row;
  int cached;
  int length;
  int tokens;  // wanted, >= 1
  const Sampler* sampler;
  RejectionRow rejection;  // of the first token; each further one is a review of its own
  double min_confidence;   // in 0..1; 0: the row drafts all its tokens
};

struct DraftLoopArgs {
  Program& program;
  int logits;         // its buffer, of one logit row for each row of a pass
  bool left_padded;   // of the first pass; the others feed one token each
  ReviewArgs review;  // what accept() takes, but for the logits
};

// The tokens that as many reviews of nothing but the row's end would append: each pass feeds what
// is not cached of every row that wants more, then accept() writes a token, its probability and,
// where its sampler rejects, its distribution. A row stops early behind the token with which the
// product of the probabilities of its tokens here, its confidence, falls below min_confidence, or
// which ends its request, and takes no part in further passes. Returns the tokens that each row has
// more, of which all but the last one are cached. A pass whose logits allow no token ends the loop,
// and throws InvalidArgument if it is the first.
//
// Stopping keeps the distribution of what a review by the rejection rule leaves: whether there is a
// token at a position is settled by the tokens before it, so that each token that is there was
// drawn from the whole of its distribution. That is why the token that ends a draft stays in it: a
// draft that left out unlikely tokens would be drawn from another distribution than it tells.
std::vector<int> draft_tokens(const DraftLoopArgs& args, const std::vector<DraftRow>& rows,
                              const Kernels& kernels, ThreadPool& pool);

}  // namespace ce
