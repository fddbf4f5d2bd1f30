// A tree that grows in a block's shared memory: candidates, nodes and what a context was followed
// by. See draft_tree.cu; every step is the one of csrc/cpu/draft_tree.cpp, in its order.
#pragma once

#include "ce/draft_tree.h"
#include "cuda/ngram_table.h"

namespace ce::cuda {

inline constexpr int kTreeThreads = 512;
inline constexpr int kTreeWarps = kTreeThreads / kWarp;
inline constexpr int kSearchers = kTreeWarps - 1;  // the last warp walks the table meanwhile
inline constexpr int kTexts = 2;                   // kFromRow, kFromFinished
// 19 layers of texts (8 of the row, 5 and 2 of finished requests), 8 of the table, the prediction.
inline constexpr int kMostBlended = (8 + 5 + 8 + 2) * kWindow + 1;

struct TableLayer {
  int64_t first;
  int32_t size;
  float total;
};

struct TreeNodes {
  float prob[kMaxTreeNodes];
  int32_t parent[kMaxTreeNodes], token[kMaxTreeNodes], depth[kMaxTreeNodes];
  int32_t predicted[kMaxTreeNodes];  // index in the prediction of the next token, -1 off its path
};

struct TreeShared {
  // The context under search, last token first, and the node whose children are wanted.
  int32_t context[kMaxOrder], available, parent;
  int32_t seen[kTexts][kSearchers][kRowOrder][kWindow];  // what followed, latest first
  int32_t counts[kTexts][kSearchers][kRowOrder];
  TableLayer layers[kMaxOrder];
  int32_t orders;      // of the table that know the context
  uint64_t predicted;  // match_key in the prediction
  int32_t blend_tokens[kMostBlended];
  float blend_shares[kMostBlended];
  TreeNodes open, nodes;
  int32_t place[kMaxTreeNodes];
};

__device__ __forceinline__ int lane_of() {
  return static_cast<int>(threadIdx.x) % kWarp;
}
__device__ __forceinline__ uint32_t lanes_below(int lane) {
  return (uint32_t{1} << lane) - 1;
}

// How many tokens in front of text[at] are the context's, of which `matched` are known to be.
__device__ __forceinline__ int matching(const TreeShared& s, const int32_t* text, int32_t at,
                                        int matched) {
  while (matched < s.available && matched < at && text[at - 1 - matched] == s.context[matched])
    ++matched;
  return matched;
}

// Notes what each lane found behind its `matched` last tokens of the context, the first lane being
// the latest. Lane n - 1 keeps the `count` of order n.
__device__ __forceinline__ void note(TreeShared& s, int which, int warp, int matched, int32_t token,
                                     int32_t& count) {
  const int lane = lane_of();
  for (int n = 1; n <= kRowOrder; ++n) {
    const uint32_t found = __ballot_sync(kAllLanes, matched >= n);
    if (found == 0) break;
    const int before = __shfl_sync(kAllLanes, count, n - 1);
    const int place = before + __popcll(found & lanes_below(lane));
    if (matched >= n && place < kWindow) s.seen[which][warp][n - 1][place] = token;
    if (lane == n - 1) count = before + __popcll(found);
  }
}

__device__ __forceinline__ void write_counts(TreeShared& s, int which, int warp, int32_t count) {
  const int lane = lane_of();
  if (lane < kRowOrder) s.counts[which][warp][lane] = count < kWindow ? count : kWindow;
}

// What followed the context's last 1..kRowOrder tokens in the warp's part of a row. Warp 0 has the
// row's end; each goes backwards and keeps the latest kWindow of every order.
__device__ __forceinline__ void search_row(TreeShared& s, int warp, const int32_t* text,
                                           int32_t length) {
  constexpr int kAhead = 4;
  const int lane = lane_of();
  const int32_t part = static_cast<int32_t>(ceil_div(length, kSearchers));
  const int32_t high = length - warp * part, low = high - part > 1 ? high - part : 1;
  int32_t count = 0;
  for (int32_t top = high; top > low; top -= kAhead * kWarp) {
    bool hits[kAhead], any = false;
    for (int u = 0; u < kAhead; ++u) {
      const int32_t at = top - 1 - lane - u * kWarp;
      hits[u] = s.available > 0 && at >= low && text[at - 1] == s.context[0];
      any = any || hits[u];
    }
    if (__ballot_sync(kAllLanes, any) == 0) continue;
    for (int u = 0; u < kAhead; ++u) {
      const int32_t at = top - 1 - lane - u * kWarp;
      const int matched = hits[u] ? matching(s, text, at, 1) : 0;
      note(s, kFromRow, warp, matched, matched > 0 ? text[at] : kBoundary, count);
    }
  }
  write_counts(s, kFromRow, warp, count);
}

// How many of `size` ascending numbers are below `wanted`: the lanes of a warp, all of which call
// this, probe together, because a step costs the latency of memory.
__device__ __forceinline__ int32_t count_below(const int64_t* numbers, int32_t size,
                                               int64_t wanted) {
  int32_t low = 0, high = size;
  while (low < high) {
    const int32_t step = static_cast<int32_t>(ceil_div(high - low, kWarp));
    const int32_t probe = low + lane_of() * step;
    const bool below = probe < high && numbers[probe] < wanted;
    const int votes = __popcll(__ballot_sync(kAllLanes, below));
    if (votes == 0) break;
    low += (votes - 1) * step + 1;
    high = low + step - 1 < high ? low + step - 1 : high;
  }
  return low;
}

// The same in the warp's part of the places of finished requests behind the context's last two
// tokens. (No layer is about one token of theirs.)
__device__ __forceinline__ void search_finished(TreeShared& s, int warp,
                                                const DraftTreeArgs& args) {
  const int lane = lane_of();
  const int32_t size = args.finished == nullptr || s.available < 2 ? 0 : *args.finished_length - 2;
  int32_t count = 0;
  if (size > 0) {
    const int64_t pair = static_cast<int64_t>(s.context[0]) << 32 | s.context[1];
    const int32_t first = count_below(args.finished_pairs, size, pair);
    const int32_t end = count_below(args.finished_pairs, size, pair + 1);
    const int32_t part = static_cast<int32_t>(ceil_div(end - first, kSearchers));
    const int32_t high = end - warp * part, low = high - part > first ? high - part : first;
    for (int32_t top = high; top > low; top -= kWarp) {
      const int32_t i = top - 1 - lane, at = i < low ? 0 : args.finished_places[i];
      const int32_t token = i < low ? kBoundary : args.finished[at];
      const int matched = token == kBoundary ? 0 : matching(s, args.finished, at, 2);
      note(s, kFromFinished, warp, matched, token, count);
    }
  }
  write_counts(s, kFromFinished, warp, count);
}

__device__ __forceinline__ void search_table(TreeShared& s, const NgramView& table) {
  int orders = 0;
  if (table.order > 0)
    walk_contexts(
        table, s.available, [&](int n) { return s.context[n - 1]; },
        [&](int n, int64_t context, int64_t first, int64_t end) {
          if (lane_of() == 0)
            s.layers[n - 1] = {first, static_cast<int32_t>(end - first),
                               table.counts[table.orders[n - 1].total[context]]};
          orders = n;
        });
  if (lane_of() == 0) s.orders = orders;
}

// One warp's blend of the layers' shares by token, in the order in which tokens were found.
struct Blend {
  TreeShared& s;
  int size = 0;

  // Adds each of the first `count` lanes' shares to its token, one lane after the other.
  __device__ __forceinline__ void add(int count, int32_t token, float share) {
    const int lane = lane_of();
    int place = -1;
    for (int i = 0; i < size; ++i)
      if (s.blend_tokens[i] == token) place = i;
    const bool known = place >= 0;
    bool first = lane < count;
    float sum = known ? s.blend_shares[place] : 0.0f;
    for (int i = 0; i < count; ++i) {
      const int32_t other = __shfl_sync(kAllLanes, token, i);
      const float more = __shfl_sync(kAllLanes, share, i);
      if (other != token) continue;
      sum += more;
      first = first && i >= lane;
    }
    const uint32_t fresh = __ballot_sync(kAllLanes, first && !known);
    if (!known) place = size + __popcll(fresh & lanes_below(lane));
    __syncwarp();  // every lane has read its token's share
    if (first) {
      s.blend_tokens[place] = token;
      s.blend_shares[place] = sum;
    }
    size += __popcll(fresh);
    __syncwarp();
  }

  // One order of a text; returns its share of `rest`.
  __device__ __forceinline__ float text(int which, int order, const float* doubts, float rest) {
    const int lane = lane_of();
    int32_t token = kBoundary;
    int left = lane, count = 0;
    for (int w = 0; w < kSearchers; ++w) {
      const int found = s.counts[which][w][order - 1];
      if (left >= 0 && left < found) token = s.seen[which][w][order - 1][left];
      left -= found;
      count += found;
    }
    count = count < kWindow ? count : kWindow;
    const int32_t latest = __shfl_sync(kAllLanes, token, 0);
    const bool one = __ballot_sync(kAllLanes, lane < count && token != latest) == 0;
    const float doubt = doubts[(2 * which + one) * kMaxOrder + order - 1];
    const float each = rest / (static_cast<float>(count) + doubt);
    const float share = each * static_cast<float>(count);
    if (one)
      add(1, token, share);
    else
      add(count, token, each);
    return share;
  }

  __device__ __forceinline__ float from_table(const NgramView& table, int order,
                                              const float* doubts, float rest) {
    const int lane = lane_of();
    const TableLayer layer = s.layers[order - 1];
    const int size = layer.size < kWindow ? layer.size : kWindow;
    const float doubt = doubts[(2 * kFromTable + (size == 1)) * kMaxOrder + order - 1];
    const float each = rest / (layer.total + doubt);
    int32_t token = kBoundary;
    float share = 0.0f;
    if (lane < size) {
      const NgramOrder& o = table.orders[order - 1];
      token = token_at(table, o.successor, layer.first + lane);
      share = each * table.counts[o.count[layer.first + lane]];
    }
    float spent = 0.0f;
    for (int i = 0; i < size; ++i) {
      // Rounded counts may add up to more than the rounded total.
      const float wanted = __shfl_sync(kAllLanes, share, i), left = rest - spent;
      const float given = left < wanted ? left : wanted;
      if (lane == i) share = given;
      spent += given;
    }
    add(size, token, share);
    return spent;
  }
};

// The orders of a text that know the context, counted by one warp.
__device__ __forceinline__ int known_orders(const TreeShared& s, int which) {
  const int lane = lane_of();
  int count = 0;
  for (int w = 0; w < kSearchers && lane < kRowOrder; ++w) count += s.counts[which][w][lane];
  return __popcll(__ballot_sync(kAllLanes, count > 0));
}

}  // namespace ce::cuda
