// A table in device memory (layout: ce/ngram.h) as the warps of a kernel read it.
#pragma once

#include "cuda/intrinsics.h"

namespace ce::cuda {

__device__ __forceinline__ int32_t token_at(const NgramView& table, const TokenArray& array,
                                            int64_t i) {
  return table.vocab > 65536 ? static_cast<const int32_t*>(array.data)[i]
                             : static_cast<const uint16_t*>(array.data)[i];
}

__device__ __forceinline__ int64_t offset_of(const NgramView& table, const NgramRuns& runs,
                                             int64_t context) {
  return static_cast<int64_t>(runs.base[context >> table.block_shift]) + runs.delta[context];
}

// The child of `context` by `token` in the next order, or -1: the lanes of a warp, all of which
// call this, probe together, because a step costs the latency of memory.
__device__ __forceinline__ int64_t child_of(const NgramView& table, int order, int64_t context,
                                            int32_t token) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const NgramRuns& runs = table.orders[order - 1].children;
  const TokenArray& tokens = table.orders[order].token;
  int64_t low = offset_of(table, runs, context), high = offset_of(table, runs, context + 1);
  while (high - low > 1) {  // the answer is in [low, high), if anywhere
    const int64_t step = ceil_div(high - low, kWarp), probe = low + lane * step;
    const bool reached = probe < high && token_at(table, tokens, probe) <= token;
    const uint32_t votes = __ballot_sync(kAllLanes, reached);
    const int below = __popcll(votes);  // probes are sorted: the first ones vote
    if (below == 0) return -1;
    low += (below - 1) * step;
    high = low + step < high ? low + step : high;
  }
  return low < high && token_at(table, tokens, low) == token ? low : -1;
}

// Walks from the context of one token to longer ones, in which token_before(n) is the n-th last
// token, as long as they have successors; visit(n, context, first, end of the successors). All
// lanes of a warp call it.
template <typename TokenBefore, typename Visit>
__device__ __forceinline__ void walk_contexts(const NgramView& table, int64_t available,
                                              const TokenBefore& token_before, const Visit& visit) {
  int64_t context = -1;
  for (int n = 1; n <= table.order && n <= available; ++n) {
    const int32_t token = token_before(n);
    if (n == 1)
      context = token >= 0 && token < table.vocab ? token : -1;
    else
      context = child_of(table, n - 1, context, token);
    if (context < 0) return;
    const NgramRuns& successors = table.orders[n - 1].successors;
    const int64_t first = offset_of(table, successors, context);
    const int64_t end = offset_of(table, successors, context + 1);
    if (first == end) return;
    visit(n, context, first, end);
  }
}

// The most frequent successor of the longest known context that ends before `end`, or -1.
__device__ __forceinline__ int32_t most_likely(const NgramView& table, const int32_t* end,
                                               int64_t available) {
  int32_t found = -1;
  walk_contexts(
      table, available, [&](int n) { return end[-n]; },
      [&](int n, int64_t, int64_t first, int64_t) {
        found = token_at(table, table.orders[n - 1].successor, first);
      });
  return found;
}

// Goes on with a chain of `drafted` tokens behind the row's `length` tokens, up to `count` tokens;
// returns how many there are then. All lanes of a warp call it.
__device__ __forceinline__ int32_t extend_chain(const NgramView& table, int32_t* row,
                                                int32_t length, int32_t drafted, int32_t count) {
  for (; drafted < count; ++drafted) {
    const int32_t end = length + drafted;
    const int32_t token = most_likely(table, row + end, end);
    if (token < 0) break;
    __syncwarp();  // no lane reads the row's end any more
    if (threadIdx.x % kWarp == 0) row[end] = token;
    __syncwarp();
  }
  return drafted;
}

}  // namespace ce::cuda
