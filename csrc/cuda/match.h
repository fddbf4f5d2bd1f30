// Where a text has the longest suffix of a row: Max-Gram's search, brute force.
#pragma once

#include "cuda/intrinsics.h"

namespace ce::cuda {

// A match of `length` tokens that token `next` of the text follows; larger is better (longer, then
// later), 0 is none.
__device__ __forceinline__ uint64_t match_key(int length, int32_t next) {
  return length == 0 ? 0 : static_cast<uint64_t>(length) << 32 | static_cast<uint32_t>(next);
}
__device__ __forceinline__ int match_length(uint64_t key) {
  return static_cast<int>(key >> 32);
}
__device__ __forceinline__ int32_t match_next(uint64_t key) {
  return static_cast<int32_t>(key & 0xffffffffu);
}

// The best match of up to `limit` tokens that ends at last[0], among those that end at every
// `step`-th place of the text from `first` on; of all lanes of the warp together.
__device__ __forceinline__ uint64_t best_match(const int32_t* text, int32_t text_length,
                                               const int32_t* last, int32_t limit, int32_t first,
                                               int32_t step) {
  const int32_t wanted = *last;
  uint64_t best = 0;
  for (int32_t end = first; end < text_length - 1; end += step) {  // a token follows every match
    if (text[end] != wanted) continue;
    const int32_t reach = end + 1 < limit ? end + 1 : limit;
    int matched = 1;
    while (matched < reach && text[end - matched] == last[-matched]) ++matched;
    const uint64_t key = match_key(matched, end + 1);
    best = key > best ? key : best;
  }
  for (int with = kWarp / 2; with > 0; with /= 2) {
    const uint64_t other = __shfl_xor_sync(kAllLanes, best, with);
    best = other > best ? other : best;
  }
  return best;
}

// Writes what followed a match behind the row's `length` tokens, up to `count` tokens; all lanes of
// a warp call it. `own` is the best match in the row, `other` in a corpus, which wins at equal
// length. A copy from the row itself goes on with its own tokens when it reaches the row's end: the
// text repeats with the period of the match. Returns how many there were.
__device__ __forceinline__ int32_t copy_match(int32_t* row, int32_t length, const int32_t* corpus,
                                              int32_t corpus_length, uint64_t own, uint64_t other,
                                              int32_t count) {
  const bool from_corpus = other != 0 && match_length(other) >= match_length(own);
  const int32_t next = match_next(from_corpus ? other : own);
  if (own == 0 && other == 0) count = 0;
  if (from_corpus && corpus_length - next < count) count = corpus_length - next;
  for (int32_t i = static_cast<int32_t>(threadIdx.x) % kWarp; i < count; i += kWarp)
    row[length + i] = from_corpus ? corpus[next + i] : row[next + i % (length - next)];
  return count;
}

}  // namespace ce::cuda
