#include "ce/max_gram.h"

#include <algorithm>

namespace ce {

GramMatch longest_suffix(const Kernels& kernels, const int32_t* text, int64_t searchable,
                         const int32_t* tokens, int64_t length, int64_t max_match) {
  const int64_t limit = std::min(length, max_match);
  GramMatch best;
  if (limit <= 0) return best;
  const int32_t* last = tokens + length - 1;
  int64_t end = searchable - 1;  // a match ends before it, so that a token follows
  while (best.matched < limit) {
    end = kernels.find_last(text, end, *last);
    if (end < best.matched) break;  // too near to the start to be longer (or -1: none left)
    // A longer match must agree where the best one ends.
    if (text[end - best.matched] != last[-best.matched]) continue;
    const int64_t reach = std::min(limit, end + 1);
    int64_t matched = 1;
    while (matched < reach && text[end - matched] == last[-matched]) ++matched;
    if (matched > best.matched) best = {matched, end + 1};
  }
  return best;
}

int64_t max_gram(const Kernels& kernels, int32_t* tokens, int64_t length, int64_t count,
                 int64_t max_match, const Corpus& corpus) {
  if (count <= 0) return 0;
  const GramMatch own = longest_suffix(kernels, tokens, length, tokens, length, max_match);
  const GramMatch other =
      longest_suffix(kernels, corpus.tokens, corpus.length, tokens, length, max_match);
  if (other.matched > 0 && other.matched >= own.matched) {
    const int64_t copied = std::min(count, corpus.length - other.next);
    std::copy(corpus.tokens + other.next, corpus.tokens + other.next + copied, tokens + length);
    return copied;
  }
  if (own.matched == 0) return 0;
  for (int64_t i = 0; i < count; ++i) tokens[length + i] = tokens[own.next + i];  // may overlap
  return count;
}

}  // namespace ce
