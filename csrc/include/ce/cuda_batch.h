// What the CUDA launchers' arguments have in common: streams, element types, the rows of a pass and
// the paged cache.
#pragma once

#include <atomic>
#include <cstdint>

#include "ce/types.h"

namespace ce::cuda {

using Stream = std::uintptr_t;  // a cudaStream_t

// Launches that follow may start before those in front of them have ended (programmatic dependent
// launch); kernels then wait themselves. For compute capability 9.0 and newer.
inline std::atomic<bool> dependent_launch{false};

// IEEE half precision as bits.
struct f16 {
  uint16_t bits;
};
// Element types of weights, caches and matrix operands.
enum class Element : int32_t { bf16 = 1, f16 = 2 };

// Rows of one pass. Row r feeds tokens starts[r] .. starts[r] + counts[r] - 1 of token row
// slots[r]; activation row r * width + t belongs to its t-th. slots[r] = -1 and t >= counts[r] are
// holes: operations write zeros there or nothing, and nothing sees them.
//
// Token i of a row is cached at index i of its block table. Up to bases[r] the row is a chain:
// token i stands at position i. From there on it is a tree (Miao et al., arXiv 2305.09781) of up to
// 64 nodes numbered topologically: node j is token bases[r] + j, bit i of its ancestor word says
// that node i is on its path (bit j is always set), and its position is bases[r] + depth.
struct Batch {
  int32_t rows = 0, width = 0;
  const int32_t* slots = nullptr;       // [rows]
  const int32_t* starts = nullptr;      // [rows]
  const int32_t* counts = nullptr;      // [rows]
  const int32_t* bases = nullptr;       // [rows], or null: chains
  const uint64_t* ancestors = nullptr;  // [rows, width] where there are bases
  const int32_t* tokens = nullptr;
  int64_t token_stride = 0;
  const int32_t* block_tables = nullptr;  // page of token i: block_tables[slot * stride + i / 16]
  int64_t table_stride = 0;
};

// One layer of the paged cache: keys and values [pages][kv_heads][kPageTokens][head_dim].
struct CacheView {
  void* keys = nullptr;
  void* values = nullptr;
  Element dtype = Element::bf16;
  int32_t kv_heads = 0, head_dim = 0;
};

}  // namespace ce::cuda
