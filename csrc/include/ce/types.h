// Element types and the few plain structs that kernels, programs and bindings share.
// No torch, no pybind11, no STL: the files compiled for one instruction set include this header.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define CE_HOST_DEVICE __host__ __device__
#else
#define CE_HOST_DEVICE
#endif

namespace ce {

// i8 and coded are for packed weights alone: their activations and caches are bf16.
enum class DType : int32_t { f32 = 0, bf16 = 1, i8 = 2, coded = 3 };

// Element types of checkpoints; kernels compute on DType only.
enum class SourceDType : int32_t { f32 = 0, bf16 = 1, f16 = 2 };

inline constexpr int dtype_size(DType dtype) {
  return dtype == DType::f32 ? 4 : dtype == DType::bf16 ? 2 : 1;
}
// What weights of a dtype are multiplied with.
inline constexpr DType activation_dtype(DType weights) {
  return weights == DType::f32 ? DType::f32 : DType::bf16;
}

// bfloat16 as bits; conversions are in bf16.h.
struct bf16 {
  uint16_t bits;
};

// Columns of a packed weight block; see PackedMatrix.
inline constexpr int kBlockColumns = 32;
// Tokens in one page of the key/value cache.
inline constexpr int kPageTokens = 16;
// Positions whose attention partial is computed in one go and merged in ascending order.
inline constexpr int kAttentionChunk = 256;

// The weights of a model lie within few powers of two, so that the high bytes of bf16 (sign and
// seven bits of the exponent) are nearly always among a few: a code of four bits says which.
//   data: [ceil(n / 32)][ceil(k / 4)] units of four k of a block, each [2][64] low bytes, then [64]
//   codes: byte p has the code of low byte p in its low half and of low byte 64 + p in its high
//   one.
// coded_place() says which element lies where: interleaving low and high bytes within 16 bytes
// gives the pairs of 16 columns. A code is an entry of the block's table. Where an element's high
// byte is not in it, the code means nothing and an exception has the byte.
struct CodedBytes {
  const uint8_t* tables = nullptr;       // [blocks][16] high bytes
  const uint32_t* exceptions = nullptr;  // place << 8 | high byte, ascending, kNoPlace behind each
                                         // block's
  const uint32_t* first = nullptr;       // [blocks] where a block's exceptions begin
};
inline constexpr int kUnitPlaces = 128, kUnitBytes = 192;
inline constexpr uint32_t kNoPlace = ~0u;
inline constexpr int64_t kMaxCodedColumns = 1 << 18;  // for places of 23 bits

inline constexpr int64_t coded_units(int64_t k) {
  return (k + 3) / 4;
}
// Of column `column` (0..31) of a block at `i` of k: unit, step and low byte, counted through.
inline constexpr int64_t coded_place(int64_t column, int64_t i) {
  return i / 4 * kUnitPlaces + i / 2 % 2 * 64 + column % 16 / 4 * 16 + column / 16 * 8 +
         column % 4 * 2 + i % 2;
}

// A weight matrix W [n, k] (y = x W^T) in the layout that `linear` streams, blocks of 32 outputs:
//   f32:  [ceil(n / 32)][k][32]               element (b, i, c)    = W[32 b + c][i]
//   bf16: [ceil(n / 32)][ceil(k / 2)][32][2]  element (b, i, c, j) = W[32 b + c][2 i + j]
//   i8:   [ceil(n / 32)][ceil(k / 2)][2][2][16], integers -127..127:
//         element (b, i, h, j, c) times scales[r] = W[r][2 i + j], r = 32 b + 16 h + c
//   coded: bf16 without loss in 12 bits an element, see CodedBytes
// Entries past n or k are zero.
struct PackedMatrix {
  const void* data = nullptr;
  DType dtype = DType::f32;
  int64_t n = 0;
  int64_t k = 0;
  float* scales = nullptr;  // i8: [n rounded up to 32]
  CodedBytes coded = {};    // coded: what `data` lacks
};

inline constexpr int64_t packed_blocks(int64_t n) {
  return (n + kBlockColumns - 1) / kBlockColumns;
}

// Elements of `data`; of coded, bytes.
inline constexpr int64_t packed_elements(int64_t n, int64_t k, DType dtype) {
  const int64_t blocks = packed_blocks(n);
  if (dtype == DType::coded) return blocks * coded_units(k) * kUnitBytes;
  return blocks * kBlockColumns * (dtype == DType::f32 ? k : (k + 1) / 2 * 2);
}

// Where an i8 matrix has column `column` (0..31) of a block at `i` of k.
inline constexpr int64_t byte_in_block(int64_t column, int64_t i) {
  return i / 2 * 2 * kBlockColumns + column / 16 * 32 + i % 2 * 16 + column % 16;
}

// Nodes of one drafted tree: an ancestor word has a bit for each.
inline constexpr int kMaxTreeNodes = 64;

// Numbers added to attention scores: table[head * width() + reach + kBiasMargin + offset] for a key
// at the query's position + offset. Past `reach` either way the number stays the same; the margin
// repeats it, so that 16 neighbouring keys find theirs side by side.
inline constexpr int kBiasMargin = kPageTokens - 1;
struct RelativeBias {
  const float* table = nullptr;  // [heads][width()], null: nothing is added
  int reach = 0;

  CE_HOST_DEVICE int64_t width() const { return 2 * (int64_t{reach} + kBiasMargin) + 1; }
};

// Tokens of one sequence in a forward pass: `count` new tokens in slots start..start+count-1 of the
// cache, activation rows first_row..first_row+count-1. Keys and values of slots < start are cached.
//
// The slot of a token is its position, but for the last `nodes` tokens, which form a tree behind
// the token in slot base() - 1: node j stands in slot base() + j, parents come before children, and
// its position is base() + its depth (0: a child of the root). It sees the slots before base() and
// those of its ancestors and its own.
//
// Behind an encoder, the sequence begins with the `source` tokens that the encoder reads. Their
// slots hold keys and values for cross-attention; the tokens behind them do not count them as their
// own.
struct Segment {
  int32_t start = 0;
  int32_t count = 0;
  int32_t first_row = 0;
  const int32_t* block_table = nullptr;  // page of slot s is block_table[s / kPageTokens]
  int32_t nodes = 0;
  const uint64_t* ancestors = nullptr;  // [nodes] bit i of word j: i is j or an ancestor of j
  int32_t source = 0;

  int64_t base() const { return int64_t{start} + count - nodes; }
};

// One layer's part of the paged cache, per page and key/value head:
//   keys   [pages][kv_heads][head_dim][kPageTokens]  (transposed: 16 positions make one vector)
//   values [pages][kv_heads][kPageTokens][head_dim]
struct CacheLayer {
  void* keys = nullptr;
  void* values = nullptr;
  DType dtype = DType::f32;
  int32_t kv_heads = 0;
  int32_t head_dim = 0;
};

}  // namespace ce
