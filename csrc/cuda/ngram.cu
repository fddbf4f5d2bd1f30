// Chains from a static n-gram table: each token is the most frequent successor of the longest
// context that the table knows. One warp a row.
#include "cuda/ngram_table.h"

namespace ce::cuda {
namespace {

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

__global__ void __launch_bounds__(kWarp) chain_kernel(DraftArgs args, NgramView table) {
  after_previous_launch();
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
