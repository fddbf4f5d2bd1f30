// What the arithmetic of attention shares: sizes, loads, and how a partial lies in memory.
#pragma once

#include "ce/kernels.h"
#include "ce/simd.h"

namespace ce::CE_ISA {
namespace {

constexpr int kChunkPages = kAttentionChunk / kPageTokens;
constexpr int kTreePages = (kMaxTreeNodes + kPageTokens - 2) / kPageTokens + 1;  // at most, touched

#if defined(__AVX512F__)
constexpr int kTileQueries = 12;  // queries that share a load, at most
constexpr int kTileVectors = 4;   // pages of keys, or vectors of values, in registers at a time
constexpr int kPagesAhead = 4;    // from the page that is used to the one that is fetched
#elif defined(__AVX2__)
constexpr int kTileQueries = 2;
constexpr int kTileVectors = 2;
constexpr int kPagesAhead = 2;
#else
constexpr int kTileQueries = 1;
constexpr int kTileVectors = 1;
constexpr int kPagesAhead = 1;
#endif
// The next smaller tile of queries.
constexpr int fewer_queries(int queries) {
  return queries > 8 ? 8 : queries / 2;
}
// Many queries leave registers for two vectors.
constexpr int tile_vectors(int queries) {
  return queries > 4 ? 2 : kTileVectors;
}

static inline f32x16 load_any(const float* p) {
  return load(p);
}
static inline f32x16 load_any(const bf16* p) {
  return load_bf16(p);
}
static inline f32x16 load_any_part(const float* p, int count) {
  return load_part(p, count);
}
static inline f32x16 load_any_part(const bf16* p, int count) {
  return load_bf16_part(p, count);
}

static inline int64_t smaller(int64_t a, int64_t b) {
  return a < b ? a : b;
}
static inline int64_t larger(int64_t a, int64_t b) {
  return a > b ? a : b;
}
static inline int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

// A query's partial in scratch: [maximum, sum, 14 unused][output, padded to 16].
constexpr int kPartialHead = 16;
static inline int64_t partial_floats(int head_dim) {
  return kPartialHead + ceil_div(head_dim, 16) * 16;
}

using Scores = float[kAttentionChunk];

// Vectors of 16 elements that fill a cache line.
template <typename T>
constexpr int kLineVectors = 4 / sizeof(T);

// What a tile of queries fetches while it uses a page. own: a page further on, to the first cache,
// where it is the first to see them. next: a page of the chunk to come, to the second, where it is
// the second tile and memory has nothing to do.
enum class Fetch { none, own, next };
template <Fetch kFetch>
static inline void fetch(const void* p) {
  if constexpr (kFetch == Fetch::own) __builtin_prefetch(p, 0, 3);
  if constexpr (kFetch == Fetch::next) __builtin_prefetch(p, 0, 2);
}

// The values of a node's ancestors and its own within one chunk, in order of position; where pairs
// are multiplied, from an even position on.
template <typename T>
struct Path {
  int64_t count;
  const T* rows[kMaxTreeNodes + 1];
};

}  // namespace
}  // namespace ce::CE_ISA
