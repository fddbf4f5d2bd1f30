// A static n-gram table: for contexts of 1..order tokens, the tokens seen to follow them with
// counts. Flat arrays only, so that a file can be mapped as it is and copied to a GPU as it is.
//
// Contexts form a trie read backwards: the context (a b c) is a child of (b c), which is a child
// of (c). One walk from the last token back therefore finds the contexts of all orders, and
// back-off is to stop walking. Order 1 has one context for each token id, whether seen or not;
// the contexts of a higher order are sorted by (parent, added token).
//
// A run of items belonging to context c (its children in the next order, its successors) is
// [offset(c), offset(c + 1)), where offset(c) = base[c >> block_shift] + delta[c]: two bytes a
// context instead of four. Successors are sorted by falling count, then rising id. Counts are
// logarithmic: q stands for 2^(q / 8), that is to about 4%.
#pragma once

#include <cstdint>

namespace ce {

inline constexpr int kMaxOrder = 8;
inline constexpr int kCountSteps = 8;  // steps of q that double a count

struct NgramRuns {
  const uint32_t* base = nullptr;   // [(contexts >> block_shift) + 1]
  const uint16_t* delta = nullptr;  // [contexts + 1]
  int64_t base_size = 0;
  int64_t delta_size = 0;
};

// Token ids take two bytes where the vocabulary allows it, else four.
struct TokenArray {
  const void* data = nullptr;
  int64_t size = 0;
};

struct NgramOrder {
  int64_t contexts = 0;
  TokenArray
      token;  // [contexts] the token by which a context is longer than its parent; order 1: empty
  const uint8_t* total =
      nullptr;  // [contexts] how often the context was seen, successors cut off included
  int64_t total_size = 0;
  NgramRuns children;    // in the next order; the last order has none
  NgramRuns successors;  // in `successor` and `count`
  TokenArray successor;
  const uint8_t* count = nullptr;
  int64_t count_size = 0;
};

// Successors of one context, most frequent first.
struct NgramLayer {
  int order = 0;
  int64_t first = 0;  // for NgramTable::successor and count
  int64_t size = 0;
  float total = 0.0f;
};

class NgramTable {
 public:
  // Borrows the arrays of orders[0..order-1]. Checks every size, offset and id, so that lookups
  // need not; throws InvalidArgument when something does not fit.
  NgramTable(int order, int64_t vocab, int block_shift, const NgramOrder* orders);

  int order() const { return order_; }
  int64_t vocab() const { return vocab_; }
  int64_t contexts(int order) const { return orders_[order - 1].contexts; }
  int64_t successors(int order) const { return orders_[order - 1].count_size; }

  // The layers for the context that ends before `end` and has `available` tokens, shortest
  // context first, without gaps; returns how many (0..order).
  int layers(const int32_t* end, int64_t available, NgramLayer* out) const;
  int32_t successor(int order, int64_t index) const {
    return token_at(orders_[order - 1].successor, index);
  }
  const float* counts() const { return counts_; }  // [256] what a stored count stands for
  float count(int order, int64_t index) const { return counts_[orders_[order - 1].count[index]]; }
  // The most frequent successor of the longest known context, -1 when even the last token has none.
  int32_t most_likely(const int32_t* end, int64_t available) const;

 private:
  struct Run {
    int64_t first, size;
  };
  int32_t token_at(const TokenArray& array, int64_t i) const {
    return wide_ ? static_cast<const int32_t*>(array.data)[i]
                 : static_cast<const uint16_t*>(array.data)[i];
  }
  int64_t offset(const NgramRuns& runs, int64_t context) const {
    return static_cast<int64_t>(runs.base[context >> block_shift_]) + runs.delta[context];
  }
  Run run(const NgramRuns& runs, int64_t context) const {
    const int64_t first = offset(runs, context);
    return {first, offset(runs, context + 1) - first};
  }
  // The child of `context` by `token` in the next order, or -1.
  int64_t child(int order, int64_t context, int32_t token) const;
  void check_runs(const NgramRuns& runs, int order, int64_t items, const char* what) const;
  void check_tokens(const TokenArray& array, int order, const char* what) const;
  void check_items(int order) const;
  void check_links(int order) const;

  int order_;
  int64_t vocab_;
  int block_shift_;
  bool wide_;
  NgramOrder orders_[kMaxOrder];
  float counts_[256];
};

// Appends up to `count` most likely tokens to tokens[0:length], each in the context of those
// before it; returns how many.
int64_t ngram_chain(const NgramTable& table, int32_t* tokens, int64_t length, int64_t count);

}  // namespace ce
