// Trees of likely continuations by n-gram statistics, node for node those of
// csrc/cpu/draft_tree.cpp (layers and weights: ce/draft_tree.h). One block a row. The row's own
// n-grams need no index here: for each node that is expanded, all warps but one search the row for
// its context, and finished requests where its last two tokens are; the last warp walks the table,
// and the first one blends what they found.
#include "cuda/draft_tree.h"
#include "cuda/match.h"

namespace ce::cuda {
namespace {

constexpr int kDone = -2;

// The layers in the order of trust, as in csrc/cpu/draft_tree.cpp: source * 16 + order.
constexpr int kLayerCount = 23;
__device__ __forceinline__ int layer_at(int i) {
  if (i < 8) return kFromRow * 16 + 8 - i;
  if (i < 13) return kFromFinished * 16 + 16 - i;
  if (i < 21) return kFromTable * 16 + 21 - i;
  return kFromFinished * 16 + 24 - i;
}

struct Grower {
  const DraftTreeArgs& args;
  const NgramView& table;
  TreeShared& s;
  int r, budget, depth;
  int count = 0, waiting = 0;  // nodes, candidates

  __device__ __forceinline__ int room() const { return budget - count; }
  // A path must be likelier than this to become a node.
  __device__ __forceinline__ float floor() const {
    return waiting >= room() ? s.open.prob[waiting - 1] : args.least;
  }

  // The context of the children of `parent`.
  __device__ __forceinline__ void set_context(int parent) {
    const int lane = lane_of();
    const int32_t length = args.lengths[r];
    const int32_t* end = args.tokens + args.slots[r] * args.token_stride + length;
    int above = parent, nodes = 0;  // every lane walks as far as its token
    for (; above >= 0 && nodes < lane; ++nodes) above = s.nodes.parent[above];
    const int known = parent < 0 ? 0 : s.nodes.depth[parent];
    if (lane < kMaxOrder) {
      if (lane < known)
        s.context[lane] = s.nodes.token[above];
      else if (lane - known < length)
        s.context[lane] = end[known - lane - 1];
    }
    if (lane == 0) {
      s.parent = parent;
      s.available = known + length < kMaxOrder ? known + length : kMaxOrder;
    }
  }

  __device__ __forceinline__ void expand(int parent) {
    const float* doubts = args.doubts;
    const float path = parent < 0 ? 1.0f : s.nodes.prob[parent];
    const int32_t at =
        parent < 0 ? (s.predicted == 0 ? -1 : match_next(s.predicted)) : s.nodes.predicted[parent];
    const int32_t length = args.predictions == nullptr ? 0 : args.prediction_lengths[r];
    const bool follows = at >= 0 && at < length;
    const int32_t expected = follows ? args.predictions[r][at] : kBoundary;
    Blend blend{s};
    float rest = 1.0f;
    if (follows) {
      const float matched = static_cast<float>(match_length(s.predicted)) +
                            static_cast<float>(parent < 0 ? 0 : s.nodes.depth[parent]);
      rest -= matched / (matched + kPredictionDoubt);
      blend.add(1, expected, 1.0f - rest);
    }
    const int known[] = {known_orders(s, kFromRow), known_orders(s, kFromFinished), s.orders};
    const float least = kLeastOfFloor * floor() / path;
    const float enough = kLeastRest < least ? least : kLeastRest;
    for (int i = 0; i < kLayerCount && rest >= enough; ++i) {
      const int source = layer_at(i) / 16, order = layer_at(i) % 16;
      if (order > (source == kFromRow ? known[0] : source == kFromFinished ? known[1] : known[2]))
        continue;
      if (source == kFromTable)
        rest -= blend.from_table(table, order, doubts, rest);
      else
        rest -= blend.text(source, order, doubts, rest);
    }
    for (int i = 0; i < blend.size; ++i) {
      const int32_t token = s.blend_tokens[i];
      push(path * s.blend_shares[i], parent, token, follows && token == expected ? at + 1 : -1);
    }
    __syncwarp();
  }

  // Keeps the candidates sorted, the earlier one first among equals, and no more of them than nodes
  // that may still be added.
  __device__ __forceinline__ void push(float prob, int32_t parent, int32_t token,
                                       int32_t predicted) {
    const int lane = lane_of();
    if (!(prob > args.least)) return;
    if (waiting >= room()) {
      if (s.open.prob[waiting - 1] >= prob) return;
      --waiting;
    }
    int at = 0;
    for (int half = 0; half < kMaxTreeNodes; half += kWarp) {
      const int i = half + lane;
      at += __popcll(__ballot_sync(kAllLanes, i < waiting && s.open.prob[i] >= prob));
    }
    move(s.open, at, waiting, 1);
    if (lane == 0) {
      s.open.prob[at] = prob;
      s.open.parent[at] = parent;
      s.open.token[at] = token;
      s.open.predicted[at] = predicted;
    }
    ++waiting;
    __syncwarp();
  }

  // Entries from..end-1 go `by` places up or down.
  __device__ __forceinline__ void move(TreeNodes& list, int from, int end, int by) {
    constexpr int kHalves = kMaxTreeNodes / kWarp;
    const int lane = lane_of();
    float prob[kHalves];
    int32_t parent[kHalves], token[kHalves], predicted[kHalves];
    for (int h = 0; h < kHalves; ++h) {
      const int i = h * kWarp + lane;
      if (i < from || i >= end) continue;
      prob[h] = list.prob[i];
      parent[h] = list.parent[i];
      token[h] = list.token[i];
      predicted[h] = list.predicted[i];
    }
    __syncwarp();
    for (int h = 0; h < kHalves; ++h) {
      const int i = h * kWarp + lane;
      if (i < from || i >= end) continue;
      list.prob[i + by] = prob[h];
      list.parent[i + by] = parent[h];
      list.token[i + by] = token[h];
      list.predicted[i + by] = predicted[h];
    }
    __syncwarp();
  }

  // Makes the best candidates nodes, up to one whose children are wanted: returns it, or kDone.
  __device__ __forceinline__ int next() {
    while (count < budget && waiting > 0) {
      const int32_t parent = s.open.parent[0];
      const int32_t level = parent < 0 ? 1 : s.nodes.depth[parent] + 1;
      __syncwarp();
      if (lane_of() == 0) {
        s.nodes.prob[count] = s.open.prob[0];
        s.nodes.parent[count] = parent;
        s.nodes.token[count] = s.open.token[0];
        s.nodes.predicted[count] = s.open.predicted[0];
        s.nodes.depth[count] = level;
      }
      __syncwarp();
      move(s.open, 1, waiting, -1);
      ++count;
      --waiting;
      if (count < budget && level < depth) return count - 1;
    }
    return kDone;
  }

  // The nodes with the likely chain first; the others keep their order.
  __device__ __forceinline__ void write() {
    const int lane = lane_of();
    uint64_t chosen = 0;
    int placed = 0;
    for (int tip = -1;;) {
      uint64_t children = 0;
      for (int half = kMaxTreeNodes - kWarp; half >= 0; half -= kWarp) {
        const int i = half + lane;
        const bool is_child = i < count && s.nodes.parent[i] == tip;
        children = children << kWarp | __ballot_sync(kAllLanes, is_child);
      }
      if (children == 0) break;
      tip = __ffsll(static_cast<long long>(children)) - 1;  // the first child is the likeliest
      chosen |= uint64_t{1} << tip;
      if (lane == 0) s.place[tip] = placed;
      ++placed;
    }
    for (int i = lane; i < count; i += kWarp) {
      const uint64_t below = (uint64_t{1} << i) - 1;
      if ((chosen >> i & 1) == 0) s.place[i] = placed + __popcll(~chosen & below);
    }
    __syncwarp();
    int32_t* row = args.tokens + args.slots[r] * args.token_stride + args.lengths[r];
    for (int i = lane; i < count; i += kWarp) {
      const int to = s.place[i], parent = s.nodes.parent[i];
      row[to] = s.nodes.token[i];
      args.parents[r * kMaxTreeNodes + to] = parent < 0 ? -1 : s.place[parent];
      args.probs[r * kMaxTreeNodes + to] = s.nodes.prob[i];
    }
    if (lane == 0) args.drafted[r] = count;
  }
};

__global__ void __launch_bounds__(kTreeThreads) tree_kernel(DraftTreeArgs args, NgramView table) {
  after_previous_launch();
  auto& s = shared_memory<TreeShared>();
  const int r = static_cast<int>(blockIdx.x), warp = static_cast<int>(threadIdx.x) / kWarp;
  const int32_t slot = args.slots[r], length = args.lengths[r];
  if (slot < 0 || args.budgets[r] <= 0 || args.depths[r] <= 0) {
    if (threadIdx.x == 0) args.drafted[r] = 0;
    return;
  }
  const int32_t* row = args.tokens + slot * args.token_stride;
  Grower grower{args, table, s, r, args.budgets[r], args.depths[r]};
  if (threadIdx.x == 0) s.predicted = 0;
  if (warp == 0) grower.set_context(-1);
  __syncthreads();  // the first context
  const int32_t predicted = args.predictions == nullptr ? 0 : args.prediction_lengths[r];
  if (predicted > 0 && length > 0) {
    const int32_t limit = length < kMaxMatch ? length : kMaxMatch;
    const uint64_t best = best_match(args.predictions[r], predicted, row + length - 1, limit,
                                     static_cast<int32_t>(threadIdx.x), kTreeThreads);
    if (lane_of() == 0 && best != 0)
      atomicMax(reinterpret_cast<unsigned long long*>(&s.predicted),
                static_cast<unsigned long long>(best));
  }
  do {
    if (warp == kTreeWarps - 1) {
      search_table(s, table);
    } else {
      search_row(s, warp, row, args.searched[r]);
      search_finished(s, warp, args);
    }
    __syncthreads();  // all is found
    if (warp == 0) {
      grower.expand(s.parent);
      grower.set_context(grower.next());
    }
    __syncthreads();  // the next context
  } while (s.parent != kDone);
  if (warp == 0) grower.write();
}

}  // namespace

void draft_tree(const DraftTreeArgs& args, const NgramView& table, Stream stream) {
  CE_CHECK(table.order >= 0 && table.order <= kMaxOrder, "draft_tree: order must be in 0..",
           kMaxOrder, ", got ", table.order);
  CE_CHECK(args.least >= 0.0f, "least must be >= 0, got ", args.least);
  if (args.rows <= 0) return;
  CE_LAUNCH(tree_kernel, static_cast<unsigned>(args.rows), kTreeThreads, sizeof(TreeShared), stream,
            args, table);
}

}  // namespace ce::cuda
