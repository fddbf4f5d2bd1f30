// From logits to tokens: processors, filters, and arg max or Gumbel-max, in the order of
// sampling.h. Sums of probabilities are integers (weights in units of 2^-44), so that they do not
// depend on the order in which threads add.
#include "cuda/distribution.h"

namespace ce::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr int kVocabBlock = 4 * kThreads;  // tokens a block looks at in one go: a Philox block each

// Copies a row of logits and applies biases, penalties, stop ids and masks to the copy.
__global__ void __launch_bounds__(kThreads) edit_kernel(ChooseArgs args) {
  after_previous_launch();
  const int64_t logit_row = blockIdx.x;
  const Choice c = choice_at(args, logit_row);
  if (c.query.index < 0) return;
  const DeviceSampler& s = *c.sampler;
  const int thread = static_cast<int>(threadIdx.x);
  const float* logits = args.logits + logit_row * args.logits_stride;
  float* values = args.processed + logit_row * args.vocab;
  int32_t* seen = args.seen + logit_row * args.vocab;  // 1 + 2 x occurrences in the output
  for (int i = thread; i < args.vocab; i += kThreads) values[i] = logits[i];
  __syncthreads();
  for (int i = s.bias_begin + thread; i < s.bias_end; i += kThreads)
    if (args.bias_ids[i] < args.vocab) values[args.bias_ids[i]] += args.bias_values[i];
  __syncthreads();
  const bool penalises =
      s.repetition_penalty != 1.0f || s.presence_penalty != 0.0f || s.frequency_penalty != 0.0f;
  const int32_t prefix = penalises ? c.query.position + 1 : 0;
  const int32_t* tokens = args.batch.tokens + c.query.slot * args.batch.token_stride;
  for (int32_t p = s.source_length + thread; p < prefix; p += kThreads) {
    const int32_t token = tokens[index_of_position(c.query, p)];
    if (token < 0 || token >= args.vocab) continue;
    atomicOr(&seen[token], 1);
    if (p >= s.prompt_length) atomicAdd(&seen[token], 2);
  }
  __syncthreads();  // counts are complete
  for (int32_t p = s.source_length + thread; p < prefix; p += kThreads) {
    const int32_t token = tokens[index_of_position(c.query, p)];
    if (token < 0 || token >= args.vocab) continue;
    const int32_t times = atomicExch(&seen[token], 0);  // one thread gets it, and clears it
    if (times == 0) continue;
    float value = values[token];
    value = value > 0.0f ? value / s.repetition_penalty : value * s.repetition_penalty;
    if (times / 2 > 0)
      value -= s.frequency_penalty * static_cast<float>(times / 2) + s.presence_penalty;
    values[token] = value;
  }
  __syncthreads();
  if (c.query.position + 1 < s.prompt_length + s.min_tokens)
    for (int i = s.stop_begin + thread; i < s.stop_end; i += kThreads)
      if (args.stop_ids[i] < args.vocab) values[args.stop_ids[i]] = -INFINITY;
  if (args.allowed == nullptr) return;
  const uint32_t* allowed = args.allowed + logit_row * ceil_div(args.vocab, 32);
  __syncthreads();
  for (int i = thread; i < args.vocab; i += kThreads)
    if ((allowed[i / 32] >> (i % 32) & 1u) == 0) values[i] = -INFINITY;
}

// Without filters: blocks share out the vocabulary, the largest key wins.
__global__ void __launch_bounds__(kThreads) choose_kernel(ChooseArgs args) {
  after_previous_launch();
  const Choice c = choice_at(args, blockIdx.y);
  if (c.query.index < 0) return;
  uint64_t best = 0;
  const int stride = static_cast<int>(gridDim.x) * kVocabBlock;
  for (int first = (static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x)) * 4;
       first < args.vocab; first += stride) {
    const PhiloxBlock noise = noise_block(c, static_cast<uint32_t>(first) / 4);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (first + i >= args.vocab) break;
      const uint64_t key =
          choice_key(perturbed(c.values[first + i], *c.sampler, noise.lane[i]), first + i);
      best = key > best ? key : best;
    }
  }
  best = warp_largest(best);
  if (threadIdx.x % kWarp == 0 && best != 0)
    atomicMax(reinterpret_cast<unsigned long long*>(&args.best[blockIdx.y]),
              static_cast<unsigned long long>(best));
}

struct Shared {
  unsigned long long buckets[256];
  uint64_t keys[kWarps];
  unsigned long long total;
  uint64_t prefix, above;
};

__device__ __forceinline__ uint64_t block_largest(uint64_t key, Shared& shared) {
  key = warp_largest(key);
  __syncthreads();  // the last call's keys have been read
  if (threadIdx.x % kWarp == 0) shared.keys[threadIdx.x / kWarp] = key;
  __syncthreads();
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  return warp_largest(lane < kWarps ? shared.keys[lane] : 0);
}

template <typename Measure>
__device__ __forceinline__ unsigned long long kept_total(const Filter& f, const Measure& measure,
                                                         Shared& shared) {
  __syncthreads();
  if (threadIdx.x == 0) shared.total = 0;
  __syncthreads();
  unsigned long long sum = 0;
  for (int i = static_cast<int>(threadIdx.x); i < f.vocab; i += kThreads)
    if (f.keeps(i)) sum += measure(i);
  for (int with = kWarp / 2; with > 0; with /= 2) sum += __shfl_xor_sync(kAllLanes, sum, with);
  if (threadIdx.x % kWarp == 0) atomicAdd(&shared.total, sum);
  __syncthreads();
  return shared.total;
}

// Raises f.least to the largest key whose kept keys measure `wanted` together: one byte of the key
// after the other, from histograms.
template <typename Measure>
__device__ __forceinline__ void keep_top(Filter& f, const Measure& measure, uint64_t wanted,
                                         Shared& shared) {
  if (threadIdx.x == 0) shared.prefix = shared.above = 0;
  for (int shift = 56; shift >= 0; shift -= 8) {
    for (int i = static_cast<int>(threadIdx.x); i < 256; i += kThreads) shared.buckets[i] = 0;
    __syncthreads();
    const uint64_t prefix = shared.prefix;
    for (int i = static_cast<int>(threadIdx.x); i < f.vocab; i += kThreads) {
      const uint64_t key = f.key(i);
      const bool inside = shift == 56 || (key ^ prefix) >> (shift + 8) == 0;
      if (key >= f.least && inside) atomicAdd(&shared.buckets[key >> shift & 255], measure(i));
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      int bucket = 255;
      uint64_t above = shared.above;
      for (; bucket > 0 && above + shared.buckets[bucket] < wanted; --bucket)
        above += shared.buckets[bucket];
      shared.above = above;
      shared.prefix = prefix | static_cast<uint64_t>(bucket) << shift;
    }
    __syncthreads();
  }
  f.least = shared.prefix > f.least ? shared.prefix : f.least;
}

__device__ __forceinline__ void apply_filters(Filter& f, const DeviceSampler& s, Shared& shared) {
  const auto one = [](int) { return 1ull; };
  const auto mass = [&](int i) { return f.mass(i); };
  if (s.top_k > 0 && s.top_k < f.vocab) keep_top(f, one, static_cast<uint64_t>(s.top_k), shared);
  if (s.top_p < 1.0f) {
    const double total = static_cast<double>(kept_total(f, mass, shared));
    keep_top(f, mass, static_cast<uint64_t>(ceil(static_cast<double>(s.top_p) * total)), shared);
  }
  if (s.min_p > 0.0f) {  // weights fall with the keys: the last key that is heavy enough
    uint64_t least = ~uint64_t{0};
    for (int i = static_cast<int>(threadIdx.x); i < f.vocab; i += kThreads)
      if (f.keeps(i) && f.weight(i) >= s.min_p && f.key(i) < least) least = f.key(i);
    least = ~block_largest(~least, shared);
    f.least = least > f.least ? least : f.least;
  }
}

// Probabilities of the chosen token and of the drafted ones that this logit row decides on.
template <typename ProbOf>
__device__ __forceinline__ void write_probs(const ChooseArgs& args, const Choice& c,
                                            const ProbOf& prob_of, int32_t chosen) {
  const int64_t first = static_cast<int64_t>(c.row) * args.logit_width;
  const int nodes = args.wanted[c.row] - 1, before = args.batch.counts[c.row] - nodes;
  const int32_t* tokens = args.batch.tokens + c.query.slot * args.batch.token_stride;
  if (threadIdx.x == 0) args.probs[2 * (first + c.j)] = prob_of(chosen);
  for (int node = static_cast<int>(threadIdx.x); node < nodes; node += kThreads) {
    const Query q = query_at(args.batch, c.row, before + node);
    if (parent_of(q, node) == c.j - 1)
      args.probs[2 * (first + node + 1) + 1] = prob_of(tokens[q.index]);
  }
}

// With filters or probabilities: a block a logit row.
__global__ void __launch_bounds__(kThreads) filter_kernel(ChooseArgs args) {
  after_previous_launch();
  auto& shared = shared_memory<Shared>();
  const Choice c = choice_at(args, blockIdx.x);
  if (c.query.index < 0) return;
  const int thread = static_cast<int>(threadIdx.x);
  const DeviceSampler& s = *c.sampler;
  uint64_t best = 0;
  for (int i = thread; i < args.vocab; i += kThreads) {
    const uint64_t key = choice_key(c.values[i], i);
    best = key > best ? key : best;
  }
  best = block_largest(best, shared);
  const int32_t favourite = choice_token(best);
  if (favourite < 0) {  // no distribution: accept() says why
    if (thread == 0 && args.distributions != nullptr)
      args.distributions[blockIdx.x] = {0, 0, 0.0f, favourite};
    if (thread == 0 && !s.rejects) args.best[blockIdx.x] = best;
    if (args.probs != nullptr) write_probs(args, c, [](int32_t) { return 0.0f; }, -1);
    return;
  }
  const bool greedy = s.temperature == 0.0f;
  Filter f{c.values, args.vocab, c.values[favourite], greedy ? 1.0f : s.temperature};
  if (!greedy) {
    apply_filters(f, s, shared);
    if (s.rejects) {  // rejection() draws from it
      const uint64_t total = kept_total(f, [&](int i) { return f.mass(i); }, shared);
      if (thread == 0) args.distributions[blockIdx.x] = {f.least, total, f.highest, 0};
      return;
    }
    best = 0;
    for (int i = thread; i < args.vocab; i += kThreads) {
      if (!f.keeps(i)) continue;
      const uint64_t key = choice_key(decided_by(c, i), i);
      best = key > best ? key : best;
    }
    best = block_largest(best, shared);
  }
  if (thread == 0) args.best[blockIdx.x] = best;
  if (args.probs == nullptr) return;
  const uint64_t total = kept_total(f, [&](int i) { return f.mass(i); }, shared);
  if (thread == 0 && args.distributions != nullptr)
    args.distributions[blockIdx.x] = {f.least, total, f.highest, 0};
  const double whole = static_cast<double>(total);
  const auto prob_of = [&](int32_t token) {
    const bool kept = token >= 0 && token < args.vocab && f.keeps(token);
    return kept ? static_cast<float>(static_cast<double>(f.weight(token)) * kUnit / whole) : 0.0f;
  };
  write_probs(args, c, prob_of, choice_token(best));
}

}  // namespace

void choose(const ChooseArgs& args, Stream stream) {
  CE_CHECK(args.vocab > 0 && args.logits_stride >= args.vocab,
           "choose: logits_stride must be >= vocab > 0, got ", args.logits_stride, " and ",
           args.vocab);
  CE_CHECK(args.probs == nullptr || args.filters, "choose: probs need filters");
  CE_CHECK(args.distributions == nullptr || args.filters, "choose: distributions need filters");
  const int64_t rows = int64_t{args.batch.rows} * args.logit_width;
  if (rows <= 0) return;
  CE_CHECK(rows <= 65535, "choose: at most 65535 logit rows, got ", rows);
  const unsigned count = static_cast<unsigned>(rows);
  if (args.edits) CE_LAUNCH(edit_kernel, count, kThreads, 0, stream, args);
  if (args.filters) {
    CE_LAUNCH(filter_kernel, count, kThreads, sizeof(Shared), stream, args);
  } else {
    const dim3 grid(static_cast<unsigned>(ceil_div(args.vocab, kVocabBlock)), count);
    CE_LAUNCH(choose_kernel, grid, kThreads, 0, stream, args);
  }
}

}  // namespace ce::cuda
