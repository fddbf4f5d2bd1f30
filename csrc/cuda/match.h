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

}  // namespace ce::cuda
