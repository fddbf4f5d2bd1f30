// What is left of a level's distribution when drafts were rejected, and its uniforms, as
// csrc/cpu/rejection.cpp has them. Sums are integers: of the distribution itself in units of
// DeviceDistribution's weights, of what a drawn draft leaves in units of kRest.
#pragma once

#include "ce/draft_tree.h"
#include "cuda/distribution.h"

namespace ce::cuda {

constexpr double kRest = 0x1p60;
constexpr int kMaxNodes = kMaxTreeNodes;

struct Uniforms {
  double accept, choose;  // in (0, 1)
};

__device__ __forceinline__ double uniform(uint32_t high, uint32_t low) {
  const uint64_t bits = static_cast<uint64_t>(high) << 20 | low >> 12;
  return (static_cast<double>(bits) + 0.5) * 0x1p-52;
}

__device__ __forceinline__ Uniforms uniforms(const DeviceSampler& s, uint32_t number,
                                             int32_t position, int round) {
  const PhiloxBlock b =
      philox4x32(number, static_cast<uint32_t>(position), static_cast<uint32_t>(s.sample_index),
                 kRejectionStream + (static_cast<uint32_t>(round) << 8),
                 static_cast<uint32_t>(s.seed), static_cast<uint32_t>(s.seed >> 32));
  return {uniform(b.lane[0], b.lane[1]), uniform(b.lane[2], b.lane[3])};
}

__device__ __forceinline__ unsigned long long warp_total(unsigned long long sum) {
  for (int with = kWarp / 2; with > 0; with /= 2) sum += __shfl_xor_sync(kAllLanes, sum, with);
  return sum;
}

// A row's drafts and what its level makes of them; in shared memory.
struct Drafts {
  uint64_t children[kMaxNodes + 1];  // of the token before the drafts, and of each of them
  uint64_t mass[kMaxNodes];          // of each node by the logits behind its parent
  double reach[kMaxNodes + 1];       // of a chain: the probability that j drafts stay
  float prob[kMaxNodes];             // likewise
  float drawn[kMaxNodes];            // of what it was drawn from; 1: with certainty
  int32_t tokens[kMaxNodes], parents[kMaxNodes], reasons[kMaxNodes + 1];
};

struct Row {
  int r, nodes, before;  // tokens of its pass before the drafts
  int64_t first;         // logit row, and entry of what there is one of for each
  int32_t slot, base;    // position of the first draft
  bool is_tree;
};

__device__ __forceinline__ Row row_at(const RejectionArgs& args, int r) {
  const ChooseArgs& c = args.chosen;
  Row row{r, c.wanted[r] - 1, 0, static_cast<int64_t>(r) * c.logit_width, c.batch.slots[r], 0, 0};
  if (row.slot < 0 || row.nodes < 0 || !c.samplers[r].rejects) return {r, -1, 0, 0, -1, 0, false};
  row.before = c.batch.counts[r] - row.nodes;
  row.base = c.batch.starts[r] + row.before;
  row.is_tree = c.batch.bases != nullptr && row.base >= c.batch.bases[r];
  return row;
}

// Filled by all threads of a block; ends with a barrier. Of a chain at lenience 1 (block
// verification) with the reaches.
__device__ __forceinline__ void read_drafts(const RejectionArgs& args, const Row& row, Drafts& d) {
  const int threads = static_cast<int>(blockDim.x), thread = static_cast<int>(threadIdx.x);
  const int32_t* tokens = args.accepted.tokens + row.slot * args.chosen.batch.token_stride;
  for (int j = thread; j <= row.nodes; j += threads) {
    d.reasons[j] = args.chosen.distributions[row.first + j].reason;
    d.children[j] = 0;
  }
  for (int j = thread; j < row.nodes; j += threads) {
    d.parents[j] = parent_of(query_at(args.chosen.batch, row.r, row.before + j), j);
    const Law law = law_at(args.chosen, row.first + d.parents[j] + 1);
    const int32_t token = tokens[row.base + j];
    const float* drawn = args.drawn[row.first + j];
    d.tokens[j] = token;
    d.prob[j] = law.prob(token);
    d.mass[j] = law.mass(token);
    d.drawn[j] = drawn == nullptr ? 1.0f : token < args.chosen.vocab ? drawn[token] : 0.0f;
  }
  __syncthreads();
  for (int j = thread; j <= row.nodes; j += threads)  // of node j - 1
    for (int c = j; c < row.nodes; ++c)
      if (d.parents[c] == j - 1) d.children[j] |= uint64_t{1} << c;
  if (thread == 0) {
    d.reach[0] = 1.0;
    for (int j = 0; j < row.nodes; ++j) {
      const double own = d.prob[j], other = d.drawn[j];
      const double ratio = own > 0.0 ? own / other : 0.0;
      const double reach = d.reach[j] * ratio;
      d.reach[j + 1] = reach < 1.0 ? reach : 1.0;
    }
  }
  __syncthreads();
}

// max(0, scale * level - share * draft) of the law of one logit row, without removed tokens; where
// nothing was drawn, the law itself without them.
struct Left {
  Law law;
  const float* drawn;
  double scale, share;
  const int32_t* tokens;
  uint64_t removed;  // of these

  __device__ unsigned long long rest(int id) const {
    const double value = scale * static_cast<double>(law.prob(id)) - share * drawn[id];
    return value > 0.0 ? static_cast<unsigned long long>(value * kRest) : 0;
  }
  __device__ unsigned long long mass(int id) const {
    for (uint64_t bits = removed; bits != 0; bits &= bits - 1)
      if (tokens[__ffsll(bits) - 1] == id) return 0;
    return drawn == nullptr ? law.mass(id) : rest(id);
  }
};

// A lenient round leaves min(draft, l level) + (1 - sum of that) * normalised max(0, l level -
// draft); without lenience, or without drafts, the level's distribution stays itself.
struct Mixture {
  Law law;
  const float* drawn;
  int32_t token;  // that was tried, -1: none
  double lenience, scale;

  __device__ float prob(int id) const {
    const double own = law.prob(id);
    if (token < 0) return static_cast<float>(own);
    const double drafted = drawn != nullptr ? drawn[id] : id == token ? 1.0 : 0.0;
    const double left = lenience * own - drafted;
    const double kept = left < 0.0 ? lenience * own : drafted;
    return static_cast<float>(kept + scale * (left > 0.0 ? left : 0.0));
  }
};

// Of logit row first + at, where node `tried` was (-1: none).
__device__ __forceinline__ Mixture mixture_at(const RejectionArgs& args, int64_t first, int at,
                                              int tried, int32_t token) {
  Mixture m{law_at(args.chosen, first + at), nullptr, -1, args.accepted.lenience, 0.0};
  if (tried < 0 || m.lenience <= 1.0) return m;
  m.token = token;
  m.drawn = args.drawn[first + tried];
  double total, accepted;
  if (m.drawn != nullptr) {
    const uint64_t* rests = args.rests + 2 * (first + tried);
    total = m.lenience * static_cast<double>(rests[0]) / kRest;
    accepted = static_cast<double>(rests[1]) / kRest;
  } else {
    const double own = m.lenience * m.law.prob(token);
    const double others = static_cast<double>(m.law.total - m.law.mass(token));
    accepted = own < 1.0 ? own : 1.0;
    total = m.lenience * others / static_cast<double>(m.law.total) + (own > 1.0 ? own - 1.0 : 0.0);
  }
  m.scale = total > 0.0 && accepted < 1.0 ? (1.0 - accepted) / total : 0.0;
  return m;
}

}  // namespace ce::cuda
