// Rotary position embedding (Su et al., arXiv 2104.09864) of queries and keys, and the store of
// keys and values into their cache pages.
#include "ce/cpu_kernels.h"
#include "ce/simd.h"
#include "transpose.h"

namespace ce::CE_ISA {
namespace {

// Rotates one head in place; pairs element i with i + half.
void rotate(float* x, const float* cos, const float* sin, int half) {
  each_vector(half, [&](int64_t i, int lanes) __attribute__((always_inline)) {
    const f32x16 a = load_part(x + i, lanes), b = load_part(x + half + i, lanes);
    const f32x16 c = load_part(cos + i, lanes), s = load_part(sin + i, lanes);
    store_part(x + i, a * c - b * s, lanes);
    store_part(x + half + i, b * c + a * s, lanes);
  });
}

// Element d of x becomes element d * kPageTokens of out.
template <typename T>
void scatter(T* out, DType dtype, const float* x, int64_t dim) {
  alignas(64) T lanes[16];
  each_vector(dim, [&](int64_t d, int count) __attribute__((always_inline)) {
    store_as(lanes, dtype, 0, load_part(x + d, count), count);
    for (int i = 0; i < count; ++i) out[(d + i) * kPageTokens] = lanes[i];
  });
}

// From so many tokens of a page on, keys are transposed in registers.
#if defined(__AVX512F__)
constexpr int kTransposed = 4;

// As scatter, for `tokens` heads that lie `stride` apart and go to slots one after the other.
template <typename T>
void scatter_together(T* out, DType dtype, const float* x, int64_t stride, int tokens,
                      int64_t dim) {
  each_vector(dim, [&](int64_t d, int count) __attribute__((always_inline)) {
    __m512 m[16];
    for (int t = 0; t < 16; ++t)
      m[t] = t < tokens ? load_part(x + t * stride + d, count).v : _mm512_setzero_ps();
    transpose(m);
    for (int i = 0; i < count; ++i) store_as(out, dtype, (d + i) * kPageTokens, {m[i]}, tokens);
  });
}
#else
constexpr int kTransposed = kPageTokens + 1;

template <typename T>
void scatter_together(T*, DType, const float*, int64_t, int, int64_t) {}
#endif

// Rotates one head of tokens begin..end-1 of a segment, which lie in one page; a key head is stored
// with its values.
void store_head(const RopeStoreArgs& args, const Segment& segment, int64_t head, int begin,
                int end) {
  const CacheLayer& cache = args.cache;
  const int64_t dim = cache.head_dim, half = dim / 2;
  const int64_t width = int64_t{args.heads + 2 * cache.kv_heads} * dim;
  const int64_t row = segment.first_row + begin;
  float* x = args.qkv + row * width + head * dim;
  if (args.cos != nullptr)
    for (int t = 0; t < end - begin; ++t)
      rotate(x + t * width, args.cos + (row + t) * half, args.sin + (row + t) * half,
             static_cast<int>(half));
  if (head < args.heads) return;
  const int position = segment.start + begin;
  const int64_t slot = position % kPageTokens;
  const int64_t page = segment.block_table[position / kPageTokens];
  const int64_t base = (page * cache.kv_heads + head - args.heads) * dim * kPageTokens;
  const auto store_keys = [&](auto* keys) {
    if (end - begin >= kTransposed)
      return scatter_together(keys + base + slot, cache.dtype, x, width, end - begin, dim);
    for (int t = 0; t < end - begin; ++t)
      scatter(keys + base + slot + t, cache.dtype, x + t * width, dim);
  };
  if (cache.dtype == DType::f32)
    store_keys(static_cast<float*>(cache.keys));
  else
    store_keys(static_cast<bf16*>(cache.keys));
  for (int t = 0; t < end - begin; ++t) {
    const float* v = x + t * width + cache.kv_heads * dim;
    each_vector(dim, [&](int64_t d, int lanes) __attribute__((always_inline)) {
      store_as(cache.values, cache.dtype, base + (slot + t) * dim + d, load_part(v + d, lanes),
               lanes);
    });
  }
}

int64_t pages_touched(const Segment& segment) {
  return (segment.start % kPageTokens + segment.count + kPageTokens - 1) / kPageTokens;
}

}  // namespace

void rope_store(const RopeStoreArgs& args, ThreadPool& pool) {
  const int64_t heads = args.heads + args.cache.kv_heads;
  int64_t items = 0, tokens = 0;
  for (int s = 0; s < args.segment_count; ++s) {
    items += heads * pages_touched(args.segments[s]);
    tokens += args.segments[s].count;
  }
  // Workers share out (segment, page, head), whole pages at a time where there are many: the tokens
  // of a page share the cache lines of its transposed keys, heads those of a token's row.
  const int64_t some = (items + 4 * pool.size() - 1) / (4 * pool.size());
  const int64_t grain = tokens < 4 ? items : some < heads ? some : heads;
  pool.parallel_for(items, grain, [&](int64_t begin, int64_t end, int) {
    for (int s = 0; s < args.segment_count && end > 0; ++s) {
      const Segment& segment = args.segments[s];
      const int offset = segment.start % kPageTokens;
      const int64_t own = heads * pages_touched(segment);
      for (; begin < own && begin < end; ++begin) {
        const int first = static_cast<int>(begin / heads) * kPageTokens - offset;
        const int last = first + kPageTokens;
        store_head(args, segment, begin % heads, first < 0 ? 0 : first,
                   last < segment.count ? last : segment.count);
      }
      begin -= own;
      end -= own;
    }
  });
}

}  // namespace ce::CE_ISA
