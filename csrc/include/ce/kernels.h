// The CPU kernels: one struct of arguments per operation, one table of functions per instruction
// set. Every kernel obeys the row-invariance contract (docs/kernels.md): the order of
// floating-point operations behind one output row depends on the model's shape and the row's
// absolute position only, never on how many rows are in the call, which rows, the thread count or
// the page layout.
#pragma once

#include <cstdint>

#include "ce/thread_pool.h"
#include "ce/types.h"

namespace ce {

// out[r, c] = table[ids[r], c]; table is row-major, or packed (a tied head's matrix).
struct EmbeddingArgs {
  const int32_t* ids;
  int64_t rows;
  PackedMatrix table;  // n = vocabulary, k = columns
  bool packed;         // false: table.data is row-major [n, k] of table.dtype, not i8
  float* out;          // [rows, k]
};

// out = x / sqrt(mean(x^2) + eps) * weight, statistics in float32.
struct RmsNormArgs {
  const float* x;  // [rows, cols]
  const float* weight;
  float eps;
  int64_t rows, cols;
  void* out;  // [rows, cols] of out_dtype
  DType out_dtype;
};

// y = x W^T (+ bias) (+ y). Each y[r, c] is a sum over slabs of kLinearSlab steps, in ascending
// order, then (i8) times the scale, then the bias, then the old y; a slab is one chain of fused
// multiply-adds over ascending k from zero. A step is one k, for bf16 and i8 a pair: the odd
// element first. (On AMX bf16 and i8 go by chunks of 32 k instead: linear_amx.cpp.)
inline constexpr int64_t kLinearSlab = 128;  // 8 or 16 KB of W: stays in the first cache
struct LinearArgs {
  PackedMatrix w;
  const void* x;  // [rows, k], dense, of activation_dtype(w.dtype)
  int64_t rows;
  const float* bias;  // [n] or null
  float* y;           // [rows, n], dense
  bool accumulate;    // add to y
  void* scratch;      // linear_scratch_bytes(rows, k, workers), 64-byte aligned
};
// x as the kernel packs it: four bytes an element for bf16 too, because without AVX512-BF16 it is
// widened once and not in every block.
inline constexpr int64_t linear_packed_bytes(int64_t rows, int64_t k) {
  return (rows * ((k + 1) / 2 * 2) * 4 + 63) / 64 * 64;
}
// x as AMX reads it where k fills no whole tiles: of 16 rows by 32 bf16.
inline constexpr int64_t linear_tile_bytes(int64_t rows, int64_t k) {
  return (rows + 15) / 16 * ((k + 31) / 32) * 1024;
}
// Up to this size each worker has a packed copy of its own.
inline constexpr int64_t kLinearCopyBytes = 128 << 10;
inline constexpr int64_t linear_scratch_bytes(int64_t rows, int64_t k, int workers) {
  const int64_t packed = linear_packed_bytes(rows, k), tiles = linear_tile_bytes(rows, k);
  const int64_t bytes = packed <= kLinearCopyBytes ? workers * packed : packed;
  return bytes > tiles ? bytes : tiles;
}

// Rotates queries in place and stores rotated keys and values in the cache. Rotation pairs
// element i with i + head_dim / 2 (the Hugging Face layout).
struct RopeStoreArgs {
  float* qkv;        // [rows, (heads + 2 kv_heads) * head_dim]
  const float* cos;  // [rows, head_dim / 2], or null: no rotation
  const float* sin;
  const Segment* segments;
  int segment_count;
  int heads;
  CacheLayer cache;
};

// Attention of each query over cached positions of its sequence: causally over those from the end
// of the source to its own, or over the whole source. Scores in chunks of kAttentionChunk
// positions aligned to position 0, each chunk's softmax numerator and sum from its own maximum,
// chunks merged in ascending order. Slots that a query does not see are never read as numbers (they
// may hold NaN).
struct AttentionArgs {
  const float* queries;  // [rows, stride], heads * head_dim of them first
  int64_t stride;
  const Segment* segments;
  int segment_count;
  int heads;
  float scale;
  RelativeBias bias;
  bool over_source;
  CacheLayer cache;
  void* out;  // [rows, heads * head_dim] of out_dtype
  DType out_dtype;
  void* scratch;  // attention_scratch_bytes(..., workers), 64-byte aligned
};

// out[r, c] = silu(gate_up[r, c]) * gate_up[r, cols + c]
struct SwigluArgs {
  const float* gate_up;  // [rows, 2 cols]
  int64_t rows, cols;
  void* out;  // [rows, cols] of out_dtype
  DType out_dtype;
};

// out[r, c] = gelu(gate_up[r, c]) * gate_up[r, cols + c], gelu by its tanh form.
struct GegluArgs {
  const float* gate_up;  // [rows, 2 cols]
  int64_t rows, cols;
  void* out;  // [rows, cols] of out_dtype
  DType out_dtype;
};

// out[r, c] = max(x[r, c], 0)
struct ReluArgs {
  const float* x;  // [rows, cols]
  int64_t rows, cols;
  void* out;  // [rows, cols] of out_dtype
  DType out_dtype;
};

// Names one vector of noise: Philox4x32-10 with key = seed and
// counter = (token id >> 2, position, sample_index, stream); see philox.h.
struct NoiseKey {
  uint64_t seed;
  uint32_t position;  // absolute position of the token being chosen
  uint32_t sample_index;
  uint32_t stream;
};

// Sum of an array at the full read bandwidth of the machine: the ceiling that benchmarks compare
// with. Returns the sum so that the reads cannot be removed.
struct StreamArgs {
  const float* data;
  int64_t count;
};

// Values behind one number of tile_maxima.
inline constexpr int64_t kMaximaTile = 64;

struct Kernels {
  const char* name;
  void (*rms_norm)(const RmsNormArgs&, ThreadPool&);
  void (*linear)(const LinearArgs&, ThreadPool&);
  void (*rope_store)(const RopeStoreArgs&, ThreadPool&);
  int64_t (*attention_scratch_bytes)(const AttentionArgs&, int workers);
  void (*attention)(const AttentionArgs&, ThreadPool&);
  void (*swiglu)(const SwigluArgs&, ThreadPool&);
  void (*geglu)(const GegluArgs&, ThreadPool&);
  void (*relu)(const ReluArgs&, ThreadPool&);
  // Index of the largest value, the lowest index among equals. NaN counts as -inf and is never
  // chosen; -1 when nothing but NaN is there.
  int64_t (*argmax)(const float* values, int64_t count);
  // Index of the largest values[i] / temperature + gumbel(noise, i): see sampling.h.
  int64_t (*gumbel_argmax)(const float* values, int64_t count, float temperature,
                           const NoiseKey& noise);
  // out[i] = values[i] / temperature + gumbel(noise, ids[i]), the numbers that gumbel_argmax
  // compares; ids may be null: i itself.
  void (*perturb)(const float* values, const int32_t* ids, int64_t count, float temperature,
                  const NoiseKey& noise, float* out);
  // log(sum(exp(values / temperature))), temperature > 0.
  double (*log_sum_exp)(const float* values, int64_t count, float temperature);
  // out[i] = exp((values[i] - highest) / temperature), highest >= all values; returns their sum.
  // out may be null.
  double (*exp_terms)(const float* values, int64_t count, float highest, float temperature,
                      float* out);
  // The largest value of each kMaximaTile values in order; NaN counts as -inf.
  void (*tile_maxima)(const float* values, int64_t count, float* out);
  // The last index at which the token stands, -1 when nowhere.
  int64_t (*find_last)(const int32_t* tokens, int64_t count, int32_t wanted);
  double (*stream)(const StreamArgs&, ThreadPool&);
};

// Copies `rows` rows of a row-major matrix [rows, k] into rows first_row.. of a packed matrix,
// converting to the target's dtype (round to nearest even). For i8 each row gets its scale; throws
// InvalidArgument where a value is not finite.
void pack_rows(const void* source, SourceDType source_dtype, int64_t rows,
               const PackedMatrix& target, int64_t first_row, ThreadPool& pool);
void embedding(const EmbeddingArgs& args, ThreadPool& pool);
// Copies the keys and values in one slot of a sequence to another.
void move_slot(const CacheLayer& cache, const int32_t* block_table, int64_t from, int64_t to);

// The table for an instruction set, or null when this machine cannot run it.
// Names: "portable", "avx2", "avx512", "avx512bf16", "amx".
const Kernels* kernels_for(const char* name);
// The best table of this machine; the environment variable CASCADE_CPU names another.
// Throws InvalidArgument when it names one that is unknown or that this machine cannot run.
const Kernels& default_kernels();

}  // namespace ce
