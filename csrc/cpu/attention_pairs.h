// Attention over a bf16 cache where the machine multiplies pairs of bf16: queries and softmax
// numerators are rounded to bf16, sums stay in float32. attention_tile.h includes this header.
//
// Row invariance: a score adds its pairs of dimensions in ascending order, an output its pairs of
// positions (even and odd, counted from position 0). A position that a query does not see is a zero
// in its pair, so that nothing depends on what stands there.
#pragma once

#include "attention_base.h"

namespace ce::CE_ISA {
namespace {

// Machines with AMX multiply pairs in vector registers at half the pace of floats or less.
#if defined(__AVX512BF16__) && !defined(__AMX_TILE__)
#define CE_ATTENTION_IN_PAIRS
template <typename T>
constexpr bool kInPairs = sizeof(T) == 2;
#else
template <typename T>
constexpr bool kInPairs = false;
#endif

// e^x for x <= 0, relative error below 4e-6: for what is rounded to bf16. x below -88 gives exactly
// 0.
static inline f32x16 exp_for_rounding(f32x16 x) {
  const f32x16 t = x * set1(1.44269504088896341f);
  const f32x16 n = round_int(t);
  const f32x16 r = t - n;  // e^x = 2^n 2^r, the latter by its series
  f32x16 p = set1(1.3333558e-3f);
  p = fma(p, r, set1(9.6181291e-3f));
  p = fma(p, r, set1(5.5504109e-2f));
  p = fma(p, r, set1(2.4022651e-1f));
  p = fma(p, r, set1(6.9314718e-1f));
  p = fma(p, r, set1(1.0f));
  return select(less(t, set1(-126.0f)), zero(), scale_pow2(p, n));
}

// Writes 16 softmax numerators, rounded, to where score number i was read. Returns them.
static inline f32x16 round_weights(float* scores, int64_t i, f32x16 difference) {
  const f32x16 weight = exp_for_rounding(difference);
  store_bf16_part(reinterpret_cast<bf16*>(scores) + i, weight, 16);
  return weight;
}

#if defined(CE_ATTENTION_IN_PAIRS)
constexpr int kPairDims = 256;  // of a query that are rounded in one go

// Words of a and of b alternating: lane i is (a[i], b[i]).
static inline __m512i alternate(__m256i a, __m256i b) {
  const __m512i low = _mm512_cvtepu16_epi32(a), high = _mm512_cvtepu16_epi32(b);
  return _mm512_or_si512(low, _mm512_slli_epi32(high, 16));
}
static inline __m512bh twin(const bf16* p) {
  int both;
  std::memcpy(&both, p, 4);
  return (__m512bh)_mm512_set1_epi32(both);
}
static inline f32x16 add_pairs(f32x16 sum, __m512i pairs, __m512bh with) {
  return {_mm512_dpbf16_ps(sum.v, (__m512bh)pairs, with)};
}

// Adds dimensions first..first+dims-1 to the scores of Q queries against the 16 positions of each
// of P pages; the last ones of all are scaled.
template <int Q, int P, Fetch kFetch>
static inline void score_pairs(const bf16 (*queries)[kPairDims], const bf16* const* pages,
                               const bf16* const* ahead, int first, int dims, bool last,
                               float scale, Scores* scores, int64_t offset) {
  f32x16 sum[Q][P];
  for (int q = 0; q < Q; ++q)
    for (int p = 0; p < P; ++p)
      sum[q][p] = first == 0 ? zero() : load(scores[q] + offset + p * kPageTokens);
  // A line holds two dimensions of 16 positions.
  alignas(64) static constexpr uint16_t kBothHalves[32] = {
      0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
      8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  const __m512i order = _mm512_load_si512(kBothHalves);
  int d = 0;
  for (; d + 1 < dims; d += 2) {
    __m512i keys[P];
    for (int p = 0; p < P; ++p) {
      const int64_t at = int64_t{first + d} * kPageTokens;
      fetch<kFetch>(ahead[p] + at);
      keys[p] = _mm512_permutexvar_epi16(order, _mm512_loadu_si512(pages[p] + at));
    }
    for (int q = 0; q < Q; ++q) {
      const __m512bh value = twin(queries[q] + d);
      for (int p = 0; p < P; ++p) sum[q][p] = add_pairs(sum[q][p], keys[p], value);
    }
  }
  if (d < dims)
    for (int p = 0; p < P; ++p) {
      const bf16* row = pages[p] + int64_t{first + d} * kPageTokens;
      const __m512i keys =
          _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(row)));
      for (int q = 0; q < Q; ++q) sum[q][p] = add_pairs(sum[q][p], keys, twin(queries[q] + d));
    }
  for (int q = 0; q < Q; ++q)
    for (int p = 0; p < P; ++p)
      store(scores[q] + offset + p * kPageTokens, last ? sum[q][p] * set1(scale) : sum[q][p]);
}

// Scores of Q queries against `count` pages from the chunk's first position on.
template <int Q, Fetch kFetch>
static inline void score_all_in_pairs(const float* const* queries, const bf16* const* pages,
                                      const bf16* const* ahead, int64_t count, int head_dim,
                                      float scale, Scores* scores) {
  for (int first = 0; first < head_dim; first += kPairDims) {
    const int dims = static_cast<int>(smaller(head_dim - first, kPairDims));
    const bool last = first + dims == head_dim;
    alignas(64) bf16 rounded[Q][kPairDims];
    for (int q = 0; q < Q; ++q)
      for (int d = 0; d < dims; d += 16)
        store_bf16_part(rounded[q] + d,
                        load_part(queries[q] + first + d, dims - d < 16 ? dims - d : 16), 16);
    int64_t p = 0;
    constexpr int P = tile_vectors(Q);
    for (; p + P <= count; p += P)
      score_pairs<Q, P, kFetch>(rounded, pages + p, ahead + p, first, dims, last, scale, scores,
                                p * kPageTokens);
    for (; p < count; ++p)
      score_pairs<Q, 1, kFetch>(rounded, pages + p, ahead + p, first, dims, last, scale, scores,
                                p * kPageTokens);
  }
}

// Dimensions d.. of two positions, V vectors of pairs (one of `lanes` when V is 1).
template <int V>
static inline void load_two(const bf16* even, const bf16* odd, int lanes, __m512i (&pairs)[V]) {
  const auto part = [](const bf16* p, int count) {
    return _mm256_maskz_loadu_epi16(static_cast<__mmask16>((1u << count) - 1u), p);
  };
  const auto whole = [](const bf16* p) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  };
  for (int v = 0; v < V; ++v)
    pairs[v] = V == 1 ? alternate(part(even, lanes), part(odd, lanes))
                      : alternate(whole(even + 16 * v), whole(odd + 16 * v));
}

// Adds weights x values of lanes begin..end-1 of a chunk to Q outputs (which are `fresh`: still to
// be set), V vectors of them from dimension d on.
template <int Q, int V, Fetch kFetch>
static inline void add_value_pairs(const bf16* const* pages, const bf16* const* ahead, int head_dim,
                                   int d, int lanes, bool fresh, int64_t begin, int64_t end,
                                   const Scores* weights, float* const* partials) {
  f32x16 sum[Q][V];
  for (int q = 0; q < Q; ++q)
    for (int v = 0; v < V; ++v)
      sum[q][v] = fresh ? zero() : load(partials[q] + kPartialHead + d + 16 * v);
  for (int64_t i = begin < end ? begin / 2 * 2 : end; i < end; i += 2) {
    const int64_t offset = i % kPageTokens * head_dim + d;
    const bf16* even = pages[i / kPageTokens] + offset;
    if constexpr (kFetch != Fetch::none) {
      const bf16* later = ahead[i / kPageTokens] + offset;
      for (int v = 0; v < V; v += kLineVectors<bf16>) {
        fetch<kFetch>(later + 16 * v);
        fetch<kFetch>(later + head_dim + 16 * v);
      }
    }
    __m512i pairs[V];
    load_two<V>(even, even + head_dim, lanes, pairs);
    if (i < begin || i + 1 == end) {
      const __m512i seen = _mm512_set1_epi32(static_cast<int>(i < begin ? 0xffff0000u : 0xffffu));
      for (int v = 0; v < V; ++v) pairs[v] = _mm512_and_si512(pairs[v], seen);
    }
    for (int q = 0; q < Q; ++q) {
      const __m512bh weight = twin(reinterpret_cast<const bf16*>(weights[q]) + i);
      for (int v = 0; v < V; ++v) sum[q][v] = add_pairs(sum[q][v], pairs[v], weight);
    }
  }
  for (int q = 0; q < Q; ++q)
    for (int v = 0; v < V; ++v) store(partials[q] + kPartialHead + d + 16 * v, sum[q][v]);
}

// Adds weights x values of a path from the even lane `lane` on to one output, V vectors from
// dimension d on.
template <int V>
static inline void add_path_pairs(const Path<bf16>& path, int d, int lanes, const float* weights,
                                  int64_t lane, float* output) {
  const bf16* rounded = reinterpret_cast<const bf16*>(weights) + lane;
  f32x16 sum[V];
  for (int v = 0; v < V; ++v) sum[v] = load(output + d + 16 * v);
  for (int64_t i = 0; i < path.count; i += 2) {
    const bool alone = i + 1 == path.count;
    const bf16* even = path.rows[i] + d;
    __m512i pairs[V];
    load_two<V>(even, alone ? even : path.rows[i + 1] + d, lanes, pairs);
    for (int v = 0; v < V; ++v) {
      if (alone) pairs[v] = _mm512_and_si512(pairs[v], _mm512_set1_epi32(0xffff));
      sum[v] = add_pairs(sum[v], pairs[v], twin(rounded + i));
    }
  }
  for (int v = 0; v < V; ++v) store(output + d + 16 * v, sum[v]);
}
#endif

}  // namespace
}  // namespace ce::CE_ISA
