#include "ce/draft_distributions.h"

#include <algorithm>

#include "ce/check.h"

namespace ce {

DraftDistributions::DraftDistributions(int64_t rows, int64_t vocab) : vocab_(vocab) {
  CE_CHECK(rows >= 0, "rows must be >= 0, got ", rows);
  CE_CHECK(vocab >= 1 && vocab <= INT32_MAX, "vocab must be in [1, 2^31), got ", vocab);
  rows_.resize(static_cast<size_t>(rows));
}

const float* DraftDistributions::find(int64_t row, int64_t position) const {
  for (const Entry& entry : rows_[static_cast<size_t>(row)].entries)
    if (entry.position == position) return entry.probs.data();
  return nullptr;
}

std::span<float> DraftDistributions::put(int64_t row, int64_t position) {
  auto& [entries, spare] = rows_[static_cast<size_t>(row)];
  auto at = std::lower_bound(entries.begin(), entries.end(), position,
                             [](const Entry& e, int64_t p) { return e.position < p; });
  if (at == entries.end() || at->position != position) {
    std::vector<float> probs;
    if (!spare.empty()) {
      probs = std::move(spare.back());
      spare.pop_back();
    }
    probs.resize(static_cast<size_t>(vocab_));
    at = entries.insert(at, {position, std::move(probs)});
  }
  return at->probs;
}

void DraftDistributions::truncate(int64_t row, int64_t length) {
  CE_CHECK(row >= 0 && row < rows(), "row must be in 0..", rows() - 1, ", got ", row);
  auto& [entries, spare] = rows_[static_cast<size_t>(row)];
  while (!entries.empty() && entries.back().position >= length) {
    spare.push_back(std::move(entries.back().probs));
    entries.pop_back();
  }
}

void DraftDistributions::clear(int64_t row) {
  CE_CHECK(row >= 0 && row < rows(), "row must be in 0..", rows() - 1, ", got ", row);
  rows_[static_cast<size_t>(row)] = {};
}

int64_t DraftDistributions::held() const {
  int64_t count = 0;
  for (const Row& row : rows_) count += static_cast<int64_t>(row.entries.size());
  return count;
}

}  // namespace ce
