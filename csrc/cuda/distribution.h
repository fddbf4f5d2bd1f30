// What a row of logits says: who chooses by it, and the distribution that its filters leave.
#pragma once

#include "cuda/batch.h"
#include "cuda/noise.h"

namespace ce::cuda {

constexpr double kUnit = 0x1p44;  // of a weight, in sums

// The token that a logit row chooses, and what it chooses by; index -1: none.
struct Choice {
  Query query;  // of the token before it
  int row, j;
  const DeviceSampler* sampler;
  const float* values;
};

__device__ __forceinline__ Choice choice_at(const ChooseArgs& args, int64_t logit_row) {
  const int r = static_cast<int>(logit_row / args.logit_width);
  const int j = static_cast<int>(logit_row % args.logit_width);
  Choice c{{}, r, j, args.samplers + r, args.logits + logit_row * args.logits_stride};
  const int t = j < args.wanted[r] ? args.batch.counts[r] - args.wanted[r] + j : -1;
  c.query = query_at(args.batch, r, t);
  if (args.edits) c.values = args.processed + logit_row * args.vocab;
  return c;
}

// The number that decides: the value itself, or perturbed by the noise of its token.
__device__ __forceinline__ float perturbed(float value, const DeviceSampler& s, uint32_t bits) {
  return s.temperature == 0.0f ? value : value / s.temperature + gumbel(bits);
}

__device__ __forceinline__ PhiloxBlock noise_block(const Choice& c, uint32_t block) {
  const DeviceSampler& s = *c.sampler;
  if (s.temperature == 0.0f) return {};
  return philox4x32(block, static_cast<uint32_t>(c.query.position + 1),
                    static_cast<uint32_t>(s.sample_index), kTokenStream,
                    static_cast<uint32_t>(s.seed), static_cast<uint32_t>(s.seed >> 32));
}

__device__ __forceinline__ float decided_by(const Choice& c, int id) {
  const PhiloxBlock noise = noise_block(c, static_cast<uint32_t>(id) / 4);
  const uint32_t low = (id & 1) != 0 ? noise.lane[1] : noise.lane[0];
  const uint32_t high = (id & 1) != 0 ? noise.lane[3] : noise.lane[2];
  return perturbed(c.values[id], *c.sampler, (id & 2) != 0 ? high : low);
}

// A row of values with its filters.
struct Filter {
  const float* values;
  int vocab;
  float highest, divisor;
  uint64_t least = 1;  // keys from here on are kept

  __device__ uint64_t key(int id) const {
    return values[id] == -INFINITY ? 0 : choice_key(values[id], id);
  }
  __device__ float weight(int id) const { return expf((values[id] - highest) / divisor); }
  __device__ unsigned long long mass(int id) const {
    return static_cast<unsigned long long>(static_cast<double>(weight(id)) * kUnit);
  }
  __device__ bool keeps(int id) const { return key(id) >= least; }
};

// The distribution that choose() found for a logit row. Probabilities are rounded to float32, as
// the CPU's are.
struct Law {
  Filter filter;
  uint64_t total;  // of the kept masses; 0: there is no distribution
  double scale;

  __device__ float prob(int id) const {
    const bool kept = total > 0 && id < filter.vocab && filter.keeps(id);
    return kept ? static_cast<float>(static_cast<double>(filter.weight(id)) * scale) : 0.0f;
  }
  __device__ unsigned long long mass(int id) const {
    return total > 0 && id < filter.vocab && filter.keeps(id) ? filter.mass(id) : 0;
  }
};

__device__ __forceinline__ Law law_at(const ChooseArgs& args, int64_t logit_row) {
  const DeviceDistribution d = args.distributions[logit_row];
  const float* values = args.edits ? args.processed + logit_row * args.vocab
                                   : args.logits + logit_row * args.logits_stride;
  const float temperature = args.samplers[logit_row / args.logit_width].temperature;
  const float divisor = temperature == 0.0f ? 1.0f : temperature;
  return {{values, args.vocab, d.highest, divisor, d.least},
          d.total,
          d.total > 0 ? kUnit / static_cast<double>(d.total) : 0.0};
}

}  // namespace ce::cuda
