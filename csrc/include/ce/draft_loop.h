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
};

struct DraftLoopArgs {
  Program& program;
  int logits;         // its buffer, of one logit row for each row of a pass
  bool left_padded;   // of the first pass; the others feed one token each
  ReviewArgs review;  // what accept() takes, but for the logits
};

// The tokens that as many reviews of nothing but the row's end would append: each pass feeds what
// is not cached of every row that wants more, then accept() writes a token, its probability and,
// where its sampler rejects, its distribution. Returns the passes made, so that row i has
// min(rows[i].tokens, passes) tokens more and all of them but the last one cached. A pass whose
// logits allow no token ends the loop, and throws InvalidArgument if it is the first.
int64_t draft_tokens(const DraftLoopArgs& args, const std::vector<DraftRow>& rows,
                     const Kernels& kernels, ThreadPool& pool);

}  // namespace ce
