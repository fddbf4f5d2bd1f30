// Max-Gram (CS Drafting, Chen et al., arXiv 2312.11462) by brute force: every place of the row, and
// of a corpus beside it, is compared with the row's end; the longest match wins, then the latest.
#include "cuda/match.h"

namespace ce::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kBlocks = 16;  // that share out one text

__global__ void __launch_bounds__(kThreads) match_kernel(DraftArgs args) {
  after_previous_launch();
  const int r = static_cast<int>(blockIdx.y), which = static_cast<int>(blockIdx.z);
  const int32_t slot = args.slots[r], length = args.lengths[r];
  if (slot < 0 || args.counts[r] <= 0 || length <= 0) return;
  const int32_t* tokens = args.tokens + slot * args.token_stride;
  const int32_t* text = which == 0 ? tokens : args.corpora[r];
  const int32_t text_length = which == 0 ? length : text == nullptr ? 0 : args.corpus_lengths[r];
  const int32_t* last = tokens + length - 1;
  const int32_t limit = length < args.max_match ? length : args.max_match;
  const int32_t first = static_cast<int32_t>(blockIdx.x * kThreads + threadIdx.x);
  const uint64_t best = best_match(text, text_length, last, limit, first, kBlocks * kThreads);
  if (threadIdx.x % kWarp == 0 && best != 0)
    atomicMax(reinterpret_cast<unsigned long long*>(&args.matches[2 * r + which]),
              static_cast<unsigned long long>(best));
}

__global__ void __launch_bounds__(kWarp) copy_kernel(DraftArgs args) {
  after_previous_launch();
  const int r = static_cast<int>(blockIdx.x), lane = static_cast<int>(threadIdx.x);
  const uint64_t own = args.matches[2 * r], other = args.matches[2 * r + 1];
  const int32_t slot = args.slots[r], length = args.lengths[r];
  __syncwarp();  // everybody has read the matches
  if (lane < 2) args.matches[2 * r + lane] = 0;
  int32_t* row = args.tokens + slot * args.token_stride;
  const int32_t* corpus = args.corpora == nullptr ? nullptr : args.corpora[r];
  const int32_t corpus_length = corpus == nullptr ? 0 : args.corpus_lengths[r];
  const int32_t wanted = slot < 0 ? 0 : args.counts[r];
  const int32_t count = copy_match(row, length, corpus, corpus_length, own, other, wanted);
  if (args.draft_probs != nullptr)
    for (int32_t i = lane; i < count; i += kWarp)
      args.draft_probs[slot * args.token_stride + length + i] = 1.0f;
  if (lane == 0) args.drafted[r] = count;
}

}  // namespace

void max_gram(const DraftArgs& args, Stream stream) {
  CE_CHECK(args.max_match >= 1, "max_match must be >= 1, got ", args.max_match);
  if (args.rows <= 0) return;
  const unsigned rows = static_cast<unsigned>(args.rows);
  const dim3 grid(kBlocks, rows, args.corpora == nullptr ? 1 : 2);
  CE_LAUNCH(match_kernel, grid, kThreads, 0, stream, args);
  CE_LAUNCH(copy_kernel, rows, kWarp, 0, stream, args);
}

}  // namespace ce::cuda
