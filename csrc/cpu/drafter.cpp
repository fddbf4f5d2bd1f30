#include "ce/drafter.h"

#include <algorithm>

#include "ce/check.h"

namespace ce {
namespace {

void check_tokens(const int32_t* tokens, int64_t count, int64_t before) {
  for (int64_t i = 0; i < count; ++i)
    CE_CHECK(tokens[i] >= 0, "token ", i, " must be >= 0, got ", tokens[i]);
  CE_CHECK(before + count <= kMostTokens, "a row may have up to ", kMostTokens, " tokens, got ",
           before + count);
}

}  // namespace

Drafter::Drafter(int64_t rows, const NgramTable* table, int64_t learn_tokens)
    : table_(table), learn_tokens_(learn_tokens) {
  CE_CHECK(rows >= 1, "rows must be >= 1, got ", rows);
  CE_CHECK(learn_tokens == 0 || (learn_tokens >= kLeastLearned && learn_tokens <= kMostTokens),
           "learn_tokens must be 0 (learn nothing) or in ", kLeastLearned, "..", kMostTokens,
           ", got ", learn_tokens);
  rows_.resize(static_cast<size_t>(rows));
}

const Drafter::Row& Drafter::at(int64_t row) const {
  CE_CHECK(row >= 0 && row < rows(), "row must be in 0..", rows() - 1, ", got ", row);
  return rows_[static_cast<size_t>(row)];
}

void Drafter::begin(int64_t row, const int32_t* tokens, int64_t count, int64_t prompt) {
  Row& r = at(row);
  CE_CHECK(prompt >= 0 && prompt <= count, "prompt must be in 0..", count, ", got ", prompt);
  check_tokens(tokens, count, 0);
  r.text.clear(false);
  r.text.append(tokens, count);
  r.prompt = prompt;
}

void Drafter::extend(int64_t row, const int32_t* tokens, int64_t count) {
  Occurrences& text = at(row).text;
  check_tokens(tokens, count, text.length());
  text.append(tokens, count);
}

void Drafter::truncate(int64_t row, int64_t length) {
  Row& r = at(row);
  CE_CHECK(length >= 0 && length <= r.text.length(), "length must be in 0..", r.text.length(),
           ", got ", length);
  r.text.truncate(length);
  r.prompt = std::min(r.prompt, length);
}

void Drafter::release(int64_t row) {
  Row& r = at(row);
  r.text.clear(false);
  r.prompt = 0;
}

void Drafter::finish(int64_t row) {
  const Row& r = at(row);
  // The prompt's last tokens are the contexts of the output's first.
  const int64_t half = learn_tokens_ / 2, length = r.text.length();
  const int64_t from = std::max({int64_t{0}, r.prompt - kRowOrder, length - half + 1});
  if (learn_tokens_ > 0 && length > r.prompt) {
    const int64_t added = length - from + 1;
    if (finished_.length() + added > learn_tokens_)
      finished_.drop_front(
          std::max(finished_.length() - half, finished_.length() + added - learn_tokens_));
    finished_.append(r.text.text() + from, length - from);
    finished_.append(&kBoundary, 1);
    ++learned_changes_;
  }
  release(row);
}

int64_t Drafter::nbytes() const {
  int64_t bytes = finished_.nbytes();
  for (const Row& row : rows_) bytes += row.text.nbytes();
  return bytes;
}

int Drafter::propose(const Kernels& kernels, int64_t row, const int32_t* tokens, int64_t length,
                     const Corpus& prediction, bool chain, const TreeLimits& limits,
                     const DraftTree& tree) const {
  const DraftSources sources{&at(row).text, learned() > 0 ? &finished_ : nullptr, table_,
                             prediction};
  return chain ? draft_chain(kernels, sources, chain_weights, tokens, length, limits, tree)
               : draft_tree(kernels, sources, tree_weights, tokens, length, limits, tree);
}

}  // namespace ce
