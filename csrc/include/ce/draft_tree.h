// Drafting by n-gram statistics: trees of likely continuations, and chains.
//
// The probability of the next token is blended from layers, the most trusted first: contexts of
// 8..1 tokens of the request itself, of 8..4 tokens of finished requests, of a static table's
// orders, of 3..2 tokens of finished requests. A layer that saw its context C times takes the share
// C / (C + doubt) of what the layers before it left and spreads it over the successors it saw (a
// table's successors that were cut off leave their part to later layers). Nodes are added best
// first, by the product of these probabilities along their path.
#pragma once

#include <cstdint>

#include "ce/kernels.h"
#include "ce/max_gram.h"
#include "ce/ngram.h"
#include "ce/occurrences.h"

namespace ce {

// Occurrences of one context that are looked at, the latest first; successors of a table's context.
inline constexpr int kWindow = 16;
// A layer is left out where what is left for it is below kLeastRest, or its best path below
// kLeastOfFloor times the worst path that is still to become a node.
inline constexpr float kLeastRest = 0.005f;
inline constexpr float kLeastOfFloor = 0.1f;
// Doubt of a predicted text that a match of so many tokens points into.
inline constexpr float kPredictionDoubt = 0.5f;

enum DraftSource { kFromRow, kFromFinished, kFromTable, kDraftSources };

// [source][1 where all successors looked at are one token, else 0][order - 1]
struct DraftWeights {
  float doubt[kDraftSources][2][kMaxOrder];
};

// Weights for trees are calibrated for path probabilities, those for chains for the first choice.
extern const DraftWeights kTreeWeights, kChainWeights;

struct DraftSources {
  const Occurrences* row = nullptr;
  const Occurrences* finished = nullptr;  // may be null
  const NgramTable* table = nullptr;      // may be null
  Corpus prediction;                      // may be empty
};

struct TreeLimits {
  int budget = 0;      // nodes, at most kMaxTreeNodes
  int depth = 0;       // of the deepest node; a node behind the row's last token has depth 1
  float least = 0.0f;  // nodes are drafted only above this path probability
};

// Nodes in topological order, the likely chain (the best child of each node, from the row's last
// token on) first, then best first. parents are node indices, -1 for the row's last token.
struct DraftTree {
  int32_t* tokens;
  int32_t* parents;
  float* probs;  // of the whole path
};

// Fills `tree` behind tokens[0:length] and returns the number of nodes. The row's occurrences may
// be those of fewer tokens (the final ones): the others are context only.
int draft_tree(const Kernels& kernels, const DraftSources& sources, const DraftWeights& weights,
               const int32_t* tokens, int64_t length, const TreeLimits& limits,
               const DraftTree& tree);

// The same as a chain: each node is the likeliest successor of the one before it.
int draft_chain(const Kernels& kernels, const DraftSources& sources, const DraftWeights& weights,
                const int32_t* tokens, int64_t length, const TreeLimits& limits,
                const DraftTree& tree);

}  // namespace ce
