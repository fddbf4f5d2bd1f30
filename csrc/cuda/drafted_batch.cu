// What a review of drafts needs to know of them, from the drafts themselves: one warp a row.
#include "ce/draft_tree.h"
#include "cuda/intrinsics.h"

namespace ce::cuda {
namespace {

constexpr int32_t kNoTree = 0x7fffffff;

__global__ void __launch_bounds__(kWarp) batch_kernel(DraftedBatchArgs args) {
  after_previous_launch();
  const int r = static_cast<int>(blockIdx.x), lane = static_cast<int>(threadIdx.x);
  const int32_t slot = args.slots[r], length = args.lengths[r];
  const bool hole = slot < 0 || (args.ends != nullptr && length >= args.ends[r]);
  const int32_t drafted = hole || args.drafted == nullptr ? 0 : args.drafted[r];
  const int32_t cached = args.cached == nullptr ? length - 1 : args.cached[r];
  const int32_t frontier = args.frontiers == nullptr ? length : args.frontiers[r];
  const int32_t* parents = args.parents == nullptr ? nullptr : args.parents + r * kMaxTreeNodes;
  const int32_t* tokens = args.tokens + slot * args.token_stride + length;
  for (int j = lane; j < drafted; j += kWarp) {
    uint64_t path = 0;
    if (parents != nullptr) {
      for (int node = j; node >= 0; node = parents[node]) path |= uint64_t{1} << node;
      args.ancestors[static_cast<int64_t>(r) * args.width + length - cached + j] = path;
    }
    args.nodes[r * kMaxTreeNodes + j] = tokens[j];
  }
  if (lane != 0) return;
  args.starts[r] = hole ? 0 : cached;
  args.counts[r] = hole ? 0 : length - cached + drafted;
  args.wanted[r] = hole ? 0 : length - frontier + drafted + 1;
  args.bases[r] = hole || parents == nullptr ? kNoTree : length;
}

}  // namespace

void drafted_batch(const DraftedBatchArgs& args, Stream stream) {
  CE_CHECK(args.width >= 1, "drafted_batch: width must be >= 1, got ", args.width);
  if (args.rows <= 0) return;
  CE_LAUNCH(batch_kernel, static_cast<unsigned>(args.rows), kWarp, 0, stream, args);
}

}  // namespace ce::cuda
