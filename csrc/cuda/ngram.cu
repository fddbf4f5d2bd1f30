// Chains from a static n-gram table (layout: ngram.h): each token is the most frequent successor of
// the longest context that the table knows. One warp a row; contexts are found by a search in which
// the lanes probe together, because a step costs the latency of memory.
#include "cuda/intrinsics.h"

namespace ce::cuda {
namespace {

__device__ __forceinline__ int32_t token_at(const NgramView& table, const TokenArray& array,
                                            int64_t i) {
  return table.vocab > 65536 ? static_cast<const int32_t*>(array.data)[i]
                             : static_cast<const uint16_t*>(array.data)[i];
}

__device__ __forceinline__ int64_t offset_of(const NgramView& table, const NgramRuns& runs,
                                             int64_t context) {
  return static_cast<int64_t>(runs.base[context >> table.block_shift]) + runs.delta[context];
}

// The child of `context` by `token` in the next order, or -1. All lanes of a warp call it.
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

__device__ __forceinline__ int32_t most_likely(const NgramView& table, const int32_t* end,
                                               int64_t available) {
  int32_t found = -1;
  int64_t context = -1;
  for (int n = 1; n <= table.order && n <= available; ++n) {
    const int32_t token = end[-n];
    if (n == 1)
      context = token >= 0 && token < table.vocab ? token : -1;
    else
      context = child_of(table, n - 1, context, token);
    if (context < 0) break;
    const NgramOrder& order = table.orders[n - 1];
    const int64_t first = offset_of(table, order.successors, context);
    if (first == offset_of(table, order.successors, context + 1)) break;
    found = token_at(table, order.successor, first);
  }
  return found;
}

__global__ void __launch_bounds__(kWarp) chain_kernel(DraftArgs args, NgramView table) {
  const int r = static_cast<int>(blockIdx.x);
  const int32_t slot = args.slots[r];
  if (slot < 0) return;
  int32_t* row = args.tokens + slot * args.token_stride;
  int32_t count = args.drafted[r];
  for (; count < args.counts[r]; ++count) {
    const int32_t end = args.lengths[r] + count;
    const int32_t token = most_likely(table, row + end, end);
    if (token < 0) break;
    __syncwarp();  // no lane reads the row's end any more
    if (threadIdx.x == 0) {
      row[end] = token;
      if (args.draft_probs != nullptr) args.draft_probs[slot * args.token_stride + end] = 1.0f;
    }
    __syncwarp();
  }
  if (threadIdx.x == 0) args.drafted[r] = count;
}

}  // namespace

void ngram_chain(const DraftArgs& args, const NgramView& table, Stream stream) {
  CE_CHECK(table.order >= 1 && table.order <= kMaxOrder, "ngram_chain: order must be in 1..",
           kMaxOrder, ", got ", table.order);
  if (args.rows <= 0) return;
  CE_LAUNCH(chain_kernel, static_cast<unsigned>(args.rows), kWarp, 0, stream, args, table);
}

}  // namespace ce::cuda
