// Which token an activation row stands for, and where a position's keys lie. See Batch in
// ce/cuda_batch.h.
#pragma once

#include "cuda/intrinsics.h"

namespace ce::cuda {

// The t-th new token of row r; index -1 in a hole.
struct Query {
  int32_t slot;      // token row and block table
  int32_t index;     // in the row: where its token stands and its keys are cached
  int32_t position;  // of the rotation, the masks and the noise
  int32_t base;      // from this position on, positions are nodes of its path
  uint64_t ancestors;
};

__device__ __forceinline__ Query query_at(const Batch& batch, int r, int t) {
  Query q{batch.slots[r], -1, -1, 0x7fffffff, 0};
  if (q.slot < 0 || t < 0 || t >= batch.counts[r]) return q;
  q.index = q.position = batch.starts[r] + t;
  if (batch.bases != nullptr && q.index >= batch.bases[r]) {
    q.base = batch.bases[r];
    q.ancestors = batch.ancestors[static_cast<int64_t>(r) * batch.width + t];
    q.position = q.base + __popcll(q.ancestors) - 1;
  }
  return q;
}

// The drafted token before drafted token j of a row, -1: the token before them all. `q` is token j.
__device__ __forceinline__ int parent_of(const Query& q, int j) {
  const uint64_t above = q.ancestors & ~(uint64_t{1} << j);
  return q.base > q.index ? j - 1 : 63 - __clzll(above);
}

// Node at depth `depth` of a path: nodes of a path have ascending numbers.
__device__ __forceinline__ int path_node(uint64_t ancestors, int depth) {
  for (; depth > 0; --depth) ancestors &= ancestors - 1;
  return __ffsll(ancestors) - 1;
}

// Where the row keeps position p <= q.position as the query sees it.
__device__ __forceinline__ int32_t index_of_position(const Query& q, int32_t p) {
  return p < q.base ? p : q.base + path_node(q.ancestors, p - q.base);
}

// Token i of a row as a row of the cache: page * kPageTokens + place in the page.
__device__ __forceinline__ int64_t cache_row(const Batch& batch, int32_t slot, int32_t index) {
  const int32_t page = batch.block_tables[slot * batch.table_stride + index / kPageTokens];
  return static_cast<int64_t>(page) * kPageTokens + index % kPageTokens;
}

// Element offset of a cache row's vector of one key/value head.
__device__ __forceinline__ int64_t cache_offset(int64_t row, int head, int kv_heads, int head_dim) {
  return ((row / kPageTokens * kv_heads + head) * kPageTokens + row % kPageTokens) * head_dim;
}

}  // namespace ce::cuda
