// The distributions that drafted tokens were drawn from, kept until the target has reviewed them.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace ce {

// One distribution [vocab] for each drafted token of a row that a model vouches for; a token
// without one was proposed with certainty (by a table, or copied). Memory: what the rows held at
// most at one time, which is as many tokens as models drafted between two target reviews; clear()
// gives a row's back. Calls for different rows may run in parallel.
class DraftDistributions {
 public:
  // Throws InvalidArgument unless rows >= 0 and vocab >= 1.
  DraftDistributions(int64_t rows, int64_t vocab);

  int64_t rows() const { return static_cast<int64_t>(rows_.size()); }
  int64_t vocab() const { return vocab_; }
  // Null: the token at this position was proposed with certainty.
  const float* find(int64_t row, int64_t position) const;
  // Memory for the distribution of the token at this position, where there is one: that one's.
  std::span<float> put(int64_t row, int64_t position);
  // The row was cut to `length` tokens.
  void truncate(int64_t row, int64_t length);
  // Forgets a row and frees its memory.
  void clear(int64_t row);
  // Distributions in use.
  int64_t held() const;

 private:
  struct Entry {
    int64_t position;
    std::vector<float> probs;
  };
  struct Row {
    std::vector<Entry> entries;  // ascending positions
    std::vector<std::vector<float>> spare;
  };
  int64_t vocab_;
  std::vector<Row> rows_;
};

}  // namespace ce
