// Chains from a static n-gram table: each token is the most frequent successor of the longest
// context that the table knows. One warp a row.
#include "cuda/ngram_table.h"

namespace ce::cuda {
namespace {

__global__ void __launch_bounds__(kWarp) chain_kernel(DraftArgs args, NgramView table) {
  after_previous_launch();
  const int r = static_cast<int>(blockIdx.x);
  const int32_t slot = args.slots[r];
  if (slot < 0) return;
  int32_t* row = args.tokens + slot * args.token_stride;
  const int32_t length = args.lengths[r], first = args.drafted[r];
  const int32_t count = extend_chain(table, row, length, first, args.counts[r]);
  if (args.draft_probs != nullptr)
    for (int32_t i = first + static_cast<int32_t>(threadIdx.x); i < count; i += kWarp)
      args.draft_probs[slot * args.token_stride + length + i] = 1.0f;
  __syncwarp();  // everybody has read how many there were
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
