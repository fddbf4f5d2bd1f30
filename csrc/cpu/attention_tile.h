// The arithmetic of attention on one instruction set: scores, softmax numerators and weighted
// values of a tile of queries over pages of one chunk. attention.cpp alone includes this header
// (by attention_plan.h).
//
// Row invariance: a query's partial over one chunk (maximum, sum, unnormalised output) comes from
// fixed chains: a score adds its products over ascending dimensions, sum and output go over
// ascending positions (in pairs: attention_pairs.h). How many queries and pages share the registers
// decides the speed alone.
#pragma once

#include "attention_pairs.h"

namespace ce::CE_ISA {
namespace {

// Scores of Q queries against the 16 positions of each of P pages.
template <int Q, int P, Fetch kFetch, typename T>
static inline void score_pages(const float* const* queries, const T* const* pages,
                               const T* const* ahead, int head_dim, float scale, Scores* scores,
                               int64_t offset) {
  f32x16 sum[Q][P];
  for (int q = 0; q < Q; ++q)
    for (int p = 0; p < P; ++p) sum[q][p] = zero();
  for (int64_t d = 0; d < head_dim; ++d) {
    if constexpr (kFetch != Fetch::none)
      for (int64_t p = d % kLineVectors<T>; p < P; p += kLineVectors<T>)
        fetch<kFetch>(ahead[p] + d * kPageTokens);
    f32x16 keys[P];
    for (int p = 0; p < P; ++p) keys[p] = load_any(pages[p] + d * kPageTokens);
    for (int q = 0; q < Q; ++q) {
      const f32x16 value = set1(queries[q][d]);
      for (int p = 0; p < P; ++p) sum[q][p] = fma(keys[p], value, sum[q][p]);
    }
  }
  for (int q = 0; q < Q; ++q)
    for (int p = 0; p < P; ++p)
      store(scores[q] + offset + p * kPageTokens, sum[q][p] * set1(scale));
}

// Scores of Q queries against `count` pages from the chunk's first position on.
template <int Q, Fetch kFetch, typename T>
static inline void score_all_pages(const float* const* queries, const T* const* pages,
                                   const T* const* ahead, int64_t count, int head_dim, float scale,
                                   Scores* scores) {
  if constexpr (kInPairs<T>)
    return score_all_in_pairs<Q, kFetch>(queries, pages, ahead, count, head_dim, scale, scores);
  constexpr int P = tile_vectors(Q);
  int64_t p = 0;
  for (; p + P <= count; p += P)
    score_pages<Q, P, kFetch>(queries, pages + p, ahead + p, head_dim, scale, scores,
                              p * kPageTokens);
  for (; p < count; ++p)
    score_pages<Q, 1, kFetch>(queries, pages + p, ahead + p, head_dim, scale, scores,
                              p * kPageTokens);
}

// Adds a head's bias to scores; the first one is of the key at `offset` from the query.
static inline void add_bias(float* scores, int64_t count, const float* head, int64_t reach,
                            int64_t offset) {
  for (int64_t i = 0; i < count; i += 16) {
    const int64_t column = larger(smaller(offset + i, reach) + reach + kBiasMargin, 0);
    store(scores + i, load(scores + i) + load(head + column));
  }
}

// Turns scores skipped..counts[r]-1 of R queries, skipped < 16, into softmax numerators; those
// before them and the rest of the last page that any of them sees, which may hold anything, become
// zeros. Where pairs are multiplied they are bf16, from the beginning of `scores` on. Queries take
// turns because one alone waits for its own latencies.
template <int R, typename T>
static inline void exponentiate(Scores* scores, int64_t skipped, const int64_t* counts,
                                float* const* partials) {
  const f32x16 nothing = set1(-__builtin_inff());
  int64_t end = 0;
  for (int r = 0; r < R; ++r) end = larger(end, counts[r]);
  f32x16 highest[R], sum[R];
  for (int r = 0; r < R; ++r) {
    float* own = scores[r];
    if (skipped > 0) store(own, select(first(static_cast<int>(skipped)), nothing, load(own)));
    int64_t i = counts[r] / 16 * 16;
    if (i < counts[r]) {
      const mask16 seen = first(static_cast<int>(counts[r] - i));
      store(own + i, select(seen, load(own + i), nothing));
      i += 16;
    }
    for (; i < end; i += 16) store(own + i, nothing);
    highest[r] = nothing;
  }
  for (int64_t i = 0; i < end; i += 16)
    for (int r = 0; r < R; ++r) highest[r] = max(highest[r], load(scores[r] + i));
  for (int r = 0; r < R; ++r) {
    partials[r][0] = reduce_max(highest[r]);
    highest[r] = set1(partials[r][0]);
    sum[r] = zero();
  }
  for (int64_t i = 0; i < end; i += 16)
    for (int r = 0; r < R; ++r) {
      const f32x16 difference = load(scores[r] + i) - highest[r];
      if constexpr (kInPairs<T>) {
        sum[r] = sum[r] + round_weights(scores[r], i, difference);
      } else {
        const f32x16 weight = exp(difference);
        store(scores[r] + i, weight);
        sum[r] = sum[r] + weight;
      }
    }
  for (int r = 0; r < R; ++r) partials[r][1] = reduce_add(sum[r]);
}

// Adds weights x values of positions begin..end-1 of a chunk to Q outputs (which are `fresh`: still
// to be set), V vectors of them from dimension d on (the last one `lanes` wide when V is 1).
template <int Q, int V, Fetch kFetch, typename T>
static inline void add_values(const T* const* pages, const T* const* ahead, int head_dim, int d,
                              int lanes, bool fresh, int64_t begin, int64_t end,
                              const Scores* weights, float* const* partials) {
  if constexpr (kInPairs<T>)
    return add_value_pairs<Q, V, kFetch>(pages, ahead, head_dim, d, lanes, fresh, begin, end,
                                         weights, partials);
  f32x16 sum[Q][V];
  for (int q = 0; q < Q; ++q)
    for (int v = 0; v < V; ++v)
      sum[q][v] = fresh ? zero() : load(partials[q] + kPartialHead + d + 16 * v);
  for (int64_t i = begin; i < end;) {
    const int64_t page = i / kPageTokens, stop = smaller(end, (page + 1) * kPageTokens);
    const T* row = pages[page] + i % kPageTokens * head_dim + d;
    const T* later = ahead[page] + i % kPageTokens * head_dim + d;
    for (; i < stop; ++i, row += head_dim, later += head_dim) {
      if constexpr (kFetch != Fetch::none)
        for (int v = 0; v < V; v += kLineVectors<T>) fetch<kFetch>(later + 16 * v);
      f32x16 values[V];
      for (int v = 0; v < V; ++v)
        values[v] = V > 1 || lanes == 16 ? load_any(row + 16 * v) : load_any_part(row, lanes);
      for (int q = 0; q < Q; ++q) {
        const f32x16 weight = set1(weights[q][i]);
        for (int v = 0; v < V; ++v) sum[q][v] = fma(weight, values[v], sum[q][v]);
      }
    }
  }
  for (int q = 0; q < Q; ++q)
    for (int v = 0; v < V; ++v) store(partials[q] + kPartialHead + d + 16 * v, sum[q][v]);
}

// add_values over all dimensions.
template <int Q, Fetch kFetch, typename T>
static inline void add_all_values(const T* const* pages, const T* const* ahead, int head_dim,
                                  bool fresh, int64_t begin, int64_t end, const Scores* weights,
                                  float* const* partials) {
  constexpr int V = tile_vectors(Q);
  int d = 0;
  for (; d + 16 * V <= head_dim; d += 16 * V)
    add_values<Q, V, kFetch>(pages, ahead, head_dim, d, 16, fresh, begin, end, weights, partials);
  if constexpr (V > 2)
    for (; d + 32 <= head_dim; d += 32)
      add_values<Q, 2, kFetch>(pages, ahead, head_dim, d, 16, fresh, begin, end, weights, partials);
  for (; d < head_dim; d += 16)
    add_values<Q, 1, kFetch>(pages, ahead, head_dim, d, static_cast<int>(smaller(head_dim - d, 16)),
                             fresh, begin, end, weights, partials);
}

// Adds weights x values of a path from lane `lane` on to one output, V vectors from dimension d on.
template <int V, typename T>
static inline void add_path(const Path<T>& path, int d, int lanes, const float* weights,
                            int64_t lane, float* output) {
  if constexpr (kInPairs<T>) return add_path_pairs<V>(path, d, lanes, weights, lane, output);
  f32x16 sum[V];
  for (int v = 0; v < V; ++v) sum[v] = load(output + d + 16 * v);
  for (int64_t i = 0; i < path.count; ++i) {
    const f32x16 weight = set1(weights[lane + i]);
    const T* row = path.rows[i] + d;
    for (int v = 0; v < V; ++v)
      sum[v] =
          fma(weight, V > 1 || lanes == 16 ? load_any(row + 16 * v) : load_any_part(row, lanes),
              sum[v]);
  }
  for (int v = 0; v < V; ++v) store(output + d + 16 * v, sum[v]);
}

// add_path over all dimensions: goes on where add_all_values ended.
template <typename T>
static inline void add_path_values(const Path<T>& path, int head_dim, const float* weights,
                                   int64_t lane, float* partial) {
  float* output = partial + kPartialHead;
  int d = 0;
  for (; d + 16 * kTileVectors <= head_dim; d += 16 * kTileVectors)
    add_path<kTileVectors>(path, d, 16, weights, lane, output);
  for (; d < head_dim; d += 16)
    add_path<1>(path, d, static_cast<int>(smaller(head_dim - d, 16)), weights, lane, output);
}

// Merges the partial of a later chunk into the one of all earlier chunks.
static inline void merge(float* sofar, const float* next, int head_dim) {
  const float maximum = sofar[0] > next[0] ? sofar[0] : next[0];
  float scales[16];
  store(scales, exp(set1(sofar[0]) - set1(maximum)));
  const f32x16 keep = load(scales);
  const f32x16 add = exp(set1(next[0]) - set1(maximum));
  sofar[0] = maximum;
  float sums[16];
  store(sums, fma(set1(next[1]), add, set1(sofar[1]) * keep));
  sofar[1] = sums[0];
  for (int64_t d = kPartialHead; d < kPartialHead + head_dim; d += 16)
    store(sofar + d, fma(load(next + d), add, load(sofar + d) * keep));
}

}  // namespace
}  // namespace ce::CE_ISA
