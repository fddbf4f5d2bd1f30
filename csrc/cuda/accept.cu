// The acceptance rule over the tokens that choose() left: one warp a row. A chain is a tree in
// which every node has one child.
#include "cuda/batch.h"
#include "cuda/noise.h"

namespace ce::cuda {
namespace {

constexpr int kMaxNodes = 64;

struct Shared {
  int32_t tokens[kMaxNodes], parents[kMaxNodes], chosen[kMaxNodes + 1], path[kMaxNodes];
  float draft_probs[kMaxNodes], probs[kMaxNodes];
};

// The child of node `at` that lenience lets pass: the likeliest, the first of equals; -1: none.
__device__ __forceinline__ int lenient_child(const AcceptArgs& args, const Shared& shared,
                                             int nodes, int at) {
  uint64_t best = 0;
  for (int j = static_cast<int>(threadIdx.x); j < nodes; j += kWarp) {
    const float prob = shared.probs[j];
    if (shared.parents[j] != at || prob <= shared.draft_probs[j] / args.lenience) continue;
    // Positive floats are ordered as their bits.
    const uint64_t key = static_cast<uint64_t>(__float_as_uint(prob)) << 32 |
                         (0xffffffffu - static_cast<uint32_t>(j));
    best = prob > 0.0f && key > best ? key : best;
  }
  best = warp_largest(best);
  return best == 0 ? -1 : static_cast<int>(0xffffffffu - static_cast<uint32_t>(best));
}

// The child of node `at` that is the level's own token, the first of equals; -1: none.
__device__ __forceinline__ int own_child(const Shared& shared, int nodes, int at) {
  const auto is = [&](int j) {
    return j < nodes && shared.parents[j] == at && shared.tokens[j] == shared.chosen[at + 1];
  };
  const int lane = static_cast<int>(threadIdx.x);
  const uint64_t low = __ballot_sync(kAllLanes, is(lane));
  const uint64_t high = __ballot_sync(kAllLanes, is(lane + kWarp));
  return __ffsll(low | high << kWarp) - 1;
}

__global__ void __launch_bounds__(kWarp) accept_kernel(AcceptArgs args) {
  after_previous_launch();
  auto& shared = shared_memory<Shared>();
  const int r = static_cast<int>(blockIdx.x), lane = static_cast<int>(threadIdx.x);
  const int32_t slot = args.batch.slots[r];
  if (slot < 0 || args.wanted[r] <= 0) return;
  if (args.samplers != nullptr && args.samplers[r].rejects) return;
  const int nodes = args.wanted[r] - 1, before = args.batch.counts[r] - nodes;
  const int32_t base = args.batch.starts[r] + before;
  const int64_t first = static_cast<int64_t>(r) * args.logit_width;
  int32_t* tokens = args.tokens + slot * args.batch.token_stride + base;
  float* draft_probs = args.draft_probs == nullptr
                           ? nullptr
                           : args.draft_probs + slot * args.batch.token_stride + base;
  for (int j = lane; j <= nodes; j += kWarp) {
    shared.chosen[j] = choice_token(args.best[first + j]);
    args.best[first + j] = 0;
    if (j == nodes) break;
    const Query q = query_at(args.batch, r, before + j);
    shared.tokens[j] = tokens[j];
    shared.draft_probs[j] = draft_probs == nullptr ? 1.0f : draft_probs[j];
    shared.probs[j] = args.lenience > 1.0f ? args.probs[2 * (first + j + 1) + 1] : 0.0f;
    shared.parents[j] = parent_of(q, j);
  }
  __syncwarp();
  float* kept_probs = args.kept_probs == nullptr
                          ? nullptr
                          : args.kept_probs + static_cast<int64_t>(r) * args.kept_stride;
  int accepted = 0, node = -1;
  for (;;) {
    if (shared.chosen[node + 1] < 0) break;
    int child = own_child(shared, nodes, node);
    if (child < 0 && args.lenience > 1.0f) child = lenient_child(args, shared, nodes, node);
    if (child < 0) break;
    if (lane == 0) {
      shared.path[accepted] = child;
      tokens[accepted] = shared.tokens[child];
      const float prob = args.lenience > 1.0f ? shared.probs[child] : shared.draft_probs[child];
      if (draft_probs != nullptr) draft_probs[accepted] = prob;
      if (kept_probs != nullptr) kept_probs[accepted] = prob;
    }
    node = child;
    ++accepted;
  }
  __syncwarp();
  if (args.paths != nullptr)
    for (int i = lane; i < accepted; i += kWarp)
      args.paths[static_cast<int64_t>(r) * kMaxNodes + i] = shared.path[i];
  if (lane != 0) return;
  const int32_t own = shared.chosen[node + 1];
  if (own >= 0) tokens[accepted] = own;
  if (own >= 0 && args.probs != nullptr) {
    const float prob = args.probs[2 * (first + node + 1)];
    if (draft_probs != nullptr) draft_probs[accepted] = prob;
    if (kept_probs != nullptr) kept_probs[accepted] = prob;
  }
  args.num_accepted[r] = accepted;
  args.own[r] = own;
  args.lengths[r] = base + accepted + (own >= 0 ? 1 : 0);
  if (args.paths != nullptr) args.path_lengths[r] = accepted;
}

}  // namespace

void accept(const AcceptArgs& args, Stream stream) {
  CE_CHECK(args.logit_width <= kMaxNodes + 1, "accept: at most ", kMaxNodes,
           " drafted tokens a row, got ", args.logit_width - 1);
  CE_CHECK(args.lenience >= 1.0f, "lenience must be >= 1 (1: lossless), got ", args.lenience);
  CE_CHECK(args.lenience == 1.0f || args.probs != nullptr, "lenience ", args.lenience,
           " compares probabilities: pass probs, or lenience 1");
  CE_CHECK(args.kept_probs == nullptr || args.kept_stride >= args.logit_width,
           "accept: kept_stride must be >= logit_width = ", args.logit_width, ", got ",
           args.kept_stride);
  if (args.batch.rows <= 0) return;
  CE_LAUNCH(accept_kernel, static_cast<unsigned>(args.batch.rows), kWarp, sizeof(Shared), stream,
            args);
}

}  // namespace ce::cuda
