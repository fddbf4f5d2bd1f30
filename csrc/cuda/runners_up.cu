// The tokens that a logit row would choose first, second, ...: a block a logit row, one pass over
// the vocabulary for each of them, below the one before.
#include "cuda/distribution.h"

namespace ce::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;

struct Shared {
  uint64_t keys[kWarps];
};

// The largest of all threads' keys, for all of them.
__device__ __forceinline__ uint64_t block_largest(uint64_t key, Shared& shared) {
  key = warp_largest(key);
  __syncthreads();  // the last call's keys have been read
  if (threadIdx.x % kWarp == 0) shared.keys[threadIdx.x / kWarp] = key;
  __syncthreads();  // the keys of all warps
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  return warp_largest(lane < kWarps ? shared.keys[lane] : 0);
}

__global__ void __launch_bounds__(kThreads) runners_up_kernel(RunnersUpArgs args) {
  after_previous_launch();
  auto& shared = shared_memory<Shared>();
  const int64_t logit_row = blockIdx.x;
  const Choice c = choice_at(args.chosen, logit_row);
  if (c.query.index < 0) return;
  const Law law = law_at(args.chosen, logit_row);
  uint64_t above = ~uint64_t{0};
  for (int k = 0; k < args.count; ++k) {
    uint64_t best = 0;
    for (int i = static_cast<int>(threadIdx.x); law.total > 0 && i < args.chosen.vocab;
         i += kThreads) {
      if (!law.filter.keeps(i)) continue;
      // The rejection rule draws tokens anew in each review: the most probable ones are likeliest.
      const uint64_t key = choice_key(c.sampler->rejects ? c.values[i] : decided_by(c, i), i);
      best = key < above && key > best ? key : best;
    }
    above = block_largest(best, shared);
    if (threadIdx.x != 0) continue;
    const int32_t token = above == 0 ? -1 : choice_token(above);
    args.tokens[logit_row * args.count + k] = token;
    args.probs[logit_row * args.count + k] = token < 0 ? 0.0f : law.prob(token);
  }
}

}  // namespace

void runners_up(const RunnersUpArgs& args, Stream stream) {
  CE_CHECK(args.chosen.distributions != nullptr, "runners_up: choose() must leave distributions");
  CE_CHECK(args.count >= 1, "runners_up: count must be >= 1, got ", args.count);
  const int64_t rows = int64_t{args.chosen.batch.rows} * args.chosen.logit_width;
  if (rows <= 0) return;
  CE_LAUNCH(runners_up_kernel, static_cast<unsigned>(rows), kThreads, sizeof(Shared), stream, args);
}

}  // namespace ce::cuda
