// A model that drafts with statistics below it, the vertical cascade of CS Drafting (Chen et al.,
// arXiv 2312.11462, section 3.1): statistics propose, the model reviews, until its segment is long
// enough, without a way back to the caller between.
#pragma once

#include <cstdint>
#include <vector>

#include "ce/accept.h"
#include "ce/program.h"
#include "ce/propose.h"

namespace ce {

// One row whose segment is drafted. Its tokens up to `length` stand in the bound rows, those before
// `cached` < length are in the cache, and the block table has room for all that can be fed: up to
// length + min(most, tokens + max(least, 1) + width - 1) - 1.
struct SegmentRow {
  int row;
  int cached;
  int length;
  int tokens;  // a review that brings the segment so far is its last one, >= 1
  int most;    // tokens that the segment may have, >= 1: the last drafts get shorter
  int width;   // tokens asked of the statistics in one go, >= 1
  int least;   // while fewer stand behind the model's, the statistics are asked again
  const Sampler* sampler;
  uint32_t reviews;  // RejectionRow::number of the first one
  Corpus corpus;     // that the statistics search beside the row
  // A review behind which the product of the probabilities of the segment's tokens is below is the
  // last one as well (see draft_loop.h); in 0..1.
  double min_confidence;
};

struct SegmentArgs {
  Program& program;
  int logits;         // its buffer, of a logit row for each token under review and one more
  bool left_padded;   // passes
  ReviewArgs review;  // what accept() takes, but for the logits
  Statistics statistics;
};

// What a row has got: review i saw `proposed[i]` drafts and kept `accepted[i]`, then comes the
// model's own token.
struct DraftedSegment {
  std::vector<int32_t> proposed, accepted;
  int32_t asked = 0;  // times that the statistics were
};

// A review: one pass over `rows` rows, of which it read `tokens` tokens. Or what the statistics
// gave for it: `tokens` tokens, asked for `rows` rows in all, for one row up to `passes` times.
struct SegmentPass {
  int64_t passes = 1;
  int64_t rows = 0;
  int64_t tokens = 0;
  double seconds = 0.0;
};

struct DraftedSegments {
  std::vector<DraftedSegment> rows;
  std::vector<SegmentPass> proposals, reviews;
};

// For each row, in passes that rows share while their segments last: the statistics draft, unless
// there is room for the model's own token alone; the model is fed what it has not cached, and
// accept() reviews. A token that ends the request ends its segment. Afterwards all of a row's
// tokens but the last one are cached. A pass whose logits allow no token ends the loop and leaves
// what the reviews before it left; it throws InvalidArgument if it is the first.
DraftedSegments draft_segments(const SegmentArgs& args, const std::vector<SegmentRow>& rows,
                               const Kernels& kernels, ThreadPool& pool);

}  // namespace ce
