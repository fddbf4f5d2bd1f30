// What a statistical drafter keeps: the occurrences of each running row's own tokens, and, where
// asked for, of finished requests.
#pragma once

#include <cstdint>
#include <vector>

#include "ce/draft_tree.h"

namespace ce {

inline constexpr int64_t kLeastLearned = 64;

class Drafter {
 public:
  // `table` may be null. learn_tokens: how many tokens of finished requests are kept, 0: none.
  Drafter(int64_t rows, const NgramTable* table, int64_t learn_tokens);

  int64_t rows() const { return static_cast<int64_t>(rows_.size()); }
  // Starts a row over. The first `prompt` tokens are not learnt from.
  void begin(int64_t row, const int32_t* tokens, int64_t count, int64_t prompt);
  void extend(int64_t row, const int32_t* tokens, int64_t count);
  // Takes back the tokens from `length` on.
  void truncate(int64_t row, int64_t length);
  // Forgets a row; its memory is kept for the next one.
  void release(int64_t row);
  // Learns from a row's tokens behind its prompt (where the drafter learns) and releases it. When
  // the bound is reached, the older half of what was learnt goes.
  void finish(int64_t row);
  void clear_learned() {
    finished_.clear(true);
    ++learned_changes_;
  }

  int64_t length(int64_t row) const { return at(row).text.length(); }
  int64_t learned() const { return finished_.length(); }
  // What was learnt, learned() tokens and boundaries, and how often it has changed.
  const int32_t* learned_text() const { return finished_.text(); }
  int64_t learned_changes() const { return learned_changes_; }
  int64_t nbytes() const;

  // Drafts behind tokens[0:length] of a row, of which the row's own tokens are the first.
  int propose(const Kernels& kernels, int64_t row, const int32_t* tokens, int64_t length,
              const Corpus& prediction, bool chain, const TreeLimits& limits,
              const DraftTree& tree) const;

  DraftWeights tree_weights = kTreeWeights, chain_weights = kChainWeights;

 private:
  struct Row {
    Occurrences text;
    int64_t prompt = 0;
  };
  const Row& at(int64_t row) const;
  Row& at(int64_t row) { return const_cast<Row&>(static_cast<const Drafter&>(*this).at(row)); }

  std::vector<Row> rows_;
  const NgramTable* table_;
  int64_t learn_tokens_;
  Occurrences finished_;
  int64_t learned_changes_ = 0;
};

}  // namespace ce
