#include "ce/ngram.h"

#include <algorithm>
#include <cmath>

#include "ce/check.h"

namespace ce {

NgramTable::NgramTable(int order, int64_t vocab, int block_shift, const NgramOrder* orders)
    : order_(order), vocab_(vocab), block_shift_(block_shift), wide_(vocab > 65536) {
  CE_CHECK(order >= 1 && order <= kMaxOrder, "order must be in 1..", kMaxOrder, ", got ", order);
  CE_CHECK(vocab >= 1 && vocab < INT32_MAX, "vocab_size must be in [1, 2^31), got ", vocab);
  CE_CHECK(block_shift >= 0 && block_shift <= 16, "block_shift must be in 0..16, got ",
           block_shift);
  std::copy(orders, orders + order, orders_);
  for (int q = 0; q < 256; ++q)
    counts_[q] = std::exp2(static_cast<float>(q) / static_cast<float>(kCountSteps));
  for (int n = 1; n <= order; ++n) check_items(n);  // all sizes before any link is followed
  for (int n = 1; n <= order; ++n) check_links(n);
}

void NgramTable::check_items(int order) const {
  const NgramOrder& o = orders_[order - 1];
  CE_CHECK(order > 1 || o.contexts == vocab_, "order 1 has ", o.contexts,
           " contexts for a vocabulary of ", vocab_);
  CE_CHECK(order == 1 || o.token.size == o.contexts, "order ", order, ": ", o.token.size,
           " context tokens for ", o.contexts, " contexts");
  CE_CHECK(o.total_size == o.contexts, "order ", order, ": ", o.total_size, " totals for ",
           o.contexts, " contexts");
  CE_CHECK(o.count_size == o.successor.size, "order ", order, ": ", o.count_size, " counts for ",
           o.successor.size, " successors");
  if (order > 1) check_tokens(o.token, order, "context token");
  check_tokens(o.successor, order, "successor");
}

void NgramTable::check_links(int order) const {
  const NgramOrder& o = orders_[order - 1];
  check_runs(o.successors, order, o.successor.size, "successors");
  if (order == order_) return;
  check_runs(o.children, order, orders_[order].contexts, "children");
  const TokenArray& tokens = orders_[order].token;
  for (int64_t c = 0; c < o.contexts; ++c) {  // binary search needs each run sorted
    const Run r = run(o.children, c);
    for (int64_t i = r.first + 1; i < r.first + r.size; ++i)
      CE_CHECK(token_at(tokens, i - 1) < token_at(tokens, i), "order ", order + 1,
               ": the contexts are not sorted at ", i);
  }
}

void NgramTable::check_tokens(const TokenArray& array, int order, const char* what) const {
  for (int64_t i = 0; i < array.size; ++i) {
    const int32_t token = token_at(array, i);
    CE_CHECK(token >= 0 && token < vocab_, "order ", order, ": ", what, " ", i, " is token ", token,
             ", outside the vocabulary of ", vocab_);
  }
}

void NgramTable::check_runs(const NgramRuns& runs, int order, int64_t items,
                            const char* what) const {
  const int64_t contexts = orders_[order - 1].contexts;
  CE_CHECK(runs.delta_size == contexts + 1 && runs.base_size == (contexts >> block_shift_) + 1,
           "order ", order, ": offsets of the ", what, " have ", runs.base_size, " + ",
           runs.delta_size, " entries, ", contexts, " contexts need ",
           (contexts >> block_shift_) + 1, " + ", contexts + 1);
  int64_t before = 0;
  for (int64_t c = 0; c <= contexts; ++c) {
    const int64_t now = offset(runs, c);
    CE_CHECK(now >= before && now <= items && (c > 0 || now == 0), "order ", order,
             ": offset of the ", what, " of context ", c, " is ", now, ", outside [", before, ", ",
             items, "]");
    before = now;
  }
  CE_CHECK(before == items, "order ", order, ": the contexts own ", before, " ", what, " of ",
           items);
}

int64_t NgramTable::child(int order, int64_t context, int32_t token) const {
  const Run r = run(orders_[order - 1].children, context);
  int64_t low = r.first, high = r.first + r.size;
  const TokenArray& tokens = orders_[order].token;
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    if (token_at(tokens, middle) < token)
      low = middle + 1;
    else
      high = middle;
  }
  return low < r.first + r.size && token_at(tokens, low) == token ? low : -1;
}

int NgramTable::layers(const int32_t* end, int64_t available, NgramLayer* out) const {
  const int deepest = static_cast<int>(std::min<int64_t>(order_, available));
  int64_t context = -1;
  for (int n = 1; n <= deepest; ++n) {
    const int32_t token = end[-n];
    if (n == 1)
      context = token >= 0 && token < vocab_ ? token : -1;
    else
      context = child(n - 1, context, token);
    if (context < 0) return n - 1;
    const NgramOrder& o = orders_[n - 1];
    const Run r = run(o.successors, context);
    if (r.size == 0) return n - 1;
    out[n - 1] = {n, r.first, r.size, counts_[o.total[context]]};
  }
  return deepest;
}

int32_t NgramTable::most_likely(const int32_t* end, int64_t available) const {
  NgramLayer found[kMaxOrder];
  const int count = layers(end, available, found);
  return count == 0 ? -1 : successor(found[count - 1].order, found[count - 1].first);
}

int64_t ngram_chain(const NgramTable& table, int32_t* tokens, int64_t length, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const int32_t token = table.most_likely(tokens + length + i, length + i);
    if (token < 0) return i;
    tokens[length + i] = token;
  }
  return std::max<int64_t>(count, 0);
}

}  // namespace ce
