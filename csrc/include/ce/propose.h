// The statistical level's drafts: Max-Gram, filled up from an n-gram table.
#pragma once

#include <cstdint>

#include "ce/kernels.h"
#include "ce/max_gram.h"
#include "ce/ngram.h"

namespace ce {

// Where drafts come from beside the row and its corpus.
struct Statistics {
  const Kernels& kernels;
  int64_t max_match;
  const NgramTable* table;  // null: none
};

// Drafts up to `count` tokens at tokens[length..], the table's most likely successors behind what
// Max-Gram finds; sets their probs to 1 (probs null: none). Returns how many.
int64_t propose(const Statistics& statistics, int32_t* tokens, float* probs, int64_t length,
                int64_t count, const Corpus& corpus);

}  // namespace ce
