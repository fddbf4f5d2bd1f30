// Rotary position embedding (Su et al., arXiv 2104.09864) of queries and keys, and the store of
// keys and values into their cache pages.
#include "ce/bf16.h"
#include "ce/cpu_kernels.h"
#include "ce/simd.h"

namespace ce::CE_ISA {
namespace {

// Rotates one head in place; pairs element i with i + half.
void rotate(float* x, const float* cos, const float* sin, int half) {
  for (int i = 0; i < half; i += 16) {
    const int count = half - i < 16 ? half - i : 16;
    const f32x16 a = load_part(x + i, count), b = load_part(x + half + i, count);
    const f32x16 c = load_part(cos + i, count), s = load_part(sin + i, count);
    store_part(x + i, a * c - b * s, count);
    store_part(x + half + i, b * c + a * s, count);
  }
}

void put(void* base, DType dtype, int64_t index, float value) {
  if (dtype == DType::f32)
    static_cast<float*>(base)[index] = value;
  else
    static_cast<bf16*>(base)[index] = to_bf16(value);
}

void store_token(const CacheLayer& cache, int64_t page, int slot, const float* k, const float* v) {
  const int64_t dim = cache.head_dim;
  for (int64_t head = 0; head < cache.kv_heads; ++head) {
    const int64_t base = (page * cache.kv_heads + head) * dim * kPageTokens;
    for (int64_t d = 0; d < dim; ++d)
      put(cache.keys, cache.dtype, base + d * kPageTokens + slot, k[head * dim + d]);
    for (int64_t d = 0; d < dim; ++d)
      put(cache.values, cache.dtype, base + slot * dim + d, v[head * dim + d]);
  }
}

void token(const RopeStoreArgs& args, const Segment& segment, int index) {
  const CacheLayer& cache = args.cache;
  const int64_t dim = cache.head_dim;
  const int64_t row = segment.first_row + index;
  float* q = args.qkv + row * (args.heads + 2 * cache.kv_heads) * dim;
  float* k = q + args.heads * dim;
  if (args.cos != nullptr) {
    const float* cos = args.cos + row * (dim / 2);
    const float* sin = args.sin + row * (dim / 2);
    for (int64_t head = 0; head < args.heads + cache.kv_heads; ++head)
      rotate(q + head * dim, cos, sin, static_cast<int>(dim / 2));
  }
  const int position = segment.start + index;
  store_token(cache, segment.block_table[position / kPageTokens], position % kPageTokens, k,
              k + cache.kv_heads * dim);
}

}  // namespace

void rope_store(const RopeStoreArgs& args, ThreadPool& pool) {
  for (int s = 0; s < args.segment_count; ++s) {
    const Segment& segment = args.segments[s];
    pool.parallel_for(segment.count, 8, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) token(args, segment, static_cast<int>(i));
    });
  }
}

}  // namespace ce::CE_ISA
