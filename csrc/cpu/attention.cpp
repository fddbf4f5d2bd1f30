// Causal attention over the paged cache. The work is cut into (sequence, key/value head, chunk of
// kAttentionChunk positions) when there are few queries, so that all workers read a long context
// together, and into (sequence, key/value head, group of queries) when there are many.
//
// Row invariance: a query's partial over one chunk (maximum, sum, unnormalised output) comes from
// fixed chains: a score adds its products over ascending dimensions, sum and output go over
// ascending positions. Partials are merged in ascending order with one formula. Which queries
// share the loaded keys and values decides the speed alone.
#include "ce/cpu_kernels.h"
#include "ce/simd.h"

namespace ce::CE_ISA {
namespace {

constexpr int kChunkPages = kAttentionChunk / kPageTokens;
constexpr int kGroupQueries = 64;  // queries of a sequence and key/value head in one work item
// With at least so many (sequence, head, group) items the chunks of one are not spread.
constexpr int kEnoughGroups = 32;

#if defined(__AVX512F__)
constexpr int kTileQueries = 4;  // queries that share a load
constexpr int kTileVectors = 4;  // pages of keys, or vectors of values, in registers at a time
#elif defined(__AVX2__)
constexpr int kTileQueries = 2;
constexpr int kTileVectors = 2;
#else
constexpr int kTileQueries = 1;
constexpr int kTileVectors = 1;
#endif

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
static int64_t partial_floats(int head_dim) {
  return kPartialHead + ceil_div(head_dim, 16) * 16;
}

// What a call does, in numbers that depend on its shape alone.
struct Plan {
  const AttentionArgs& args;
  int group;       // query heads per key/value head
  bool spread;     // one work item per chunk, merged afterwards
  int64_t stride;  // floats of a partial
  float* partials;
};

static int64_t segment_chunks(const Segment& s) {
  return ceil_div(int64_t{s.start} + s.count, kAttentionChunk);
}
static int64_t segment_groups(const Segment& s, int group) {
  return ceil_div(int64_t{s.count} * group, kGroupQueries);
}
// Partials that each query of a segment owns: one per chunk, or the merged one and the next.
static int64_t partial_slots(const Plan& plan, const Segment& s) {
  return plan.spread ? segment_chunks(s) : 2;
}
static int64_t segment_items(const Plan& plan, const Segment& s) {
  return plan.args.cache.kv_heads * segment_groups(s, plan.group) *
         (plan.spread ? segment_chunks(s) : 1);
}
static int64_t segment_partials(const Plan& plan, const Segment& s) {
  return int64_t{s.count} * plan.args.heads * partial_slots(plan, s);
}

static Plan make_plan(const AttentionArgs& args) {
  const int group = args.heads / args.cache.kv_heads;
  int64_t groups = 0;
  for (int i = 0; i < args.segment_count; ++i)
    groups += args.cache.kv_heads * segment_groups(args.segments[i], group);
  return {args, group, groups < kEnoughGroups, partial_floats(args.cache.head_dim),
          static_cast<float*>(args.scratch)};
}

// Some queries of one segment and key/value head: query i is token i / group, head
// kv_head * group + i % group.
struct Work {
  const Plan& plan;
  const Segment& segment;
  int kv_head;
  float* partials;  // of the segment: [count][heads][slots]

  int64_t position(int64_t query) const { return segment.start + query / plan.group; }
  int64_t head(int64_t query) const { return kv_head * plan.group + query % plan.group; }
  const float* query(int64_t i) const {
    const AttentionArgs& args = plan.args;
    const int64_t row = segment.first_row + i / plan.group;
    const int64_t width = int64_t{args.heads + 2 * args.cache.kv_heads} * args.cache.head_dim;
    return args.qkv + row * width + head(i) * args.cache.head_dim;
  }
  float* partial(int64_t i, int64_t slot) const {
    const int64_t index = i / plan.group * plan.args.heads + head(i);
    return partials + (index * partial_slots(plan, segment) + slot) * plan.stride;
  }
  template <typename T>
  const T* page(const void* base, int64_t number) const {
    const CacheLayer& cache = plan.args.cache;
    const int64_t floats = int64_t{kPageTokens} * cache.head_dim;
    return static_cast<const T*>(base) +
           (int64_t{segment.block_table[number]} * cache.kv_heads + kv_head) * floats;
  }
};

using Scores = float[kAttentionChunk];

// Scores of Q queries against the 16 positions of each of P pages.
template <int Q, int P, typename T>
static inline void score_pages(const float* const* queries, const T* const* pages, int head_dim,
                               float scale, Scores* scores, int64_t offset) {
  f32x16 sum[Q][P];
  for (int q = 0; q < Q; ++q)
    for (int p = 0; p < P; ++p) sum[q][p] = zero();
  for (int64_t d = 0; d < head_dim; ++d) {
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

// Turns scores of positions 0..count-1 of a chunk into softmax numerators; the rest of the last
// page, which may hold anything, becomes zeros.
static inline void exponentiate(float* scores, int64_t count, float* partial) {
  const f32x16 nothing = set1(-__builtin_inff());
  f32x16 highest = nothing;
  for (int64_t i = 0; i < count; i += 16) {
    const f32x16 score =
        select(first(static_cast<int>(smaller(count - i, 16))), load(scores + i), nothing);
    store(scores + i, score);
    highest = max(highest, score);
  }
  const float maximum = reduce_max(highest);
  f32x16 sum = zero();
  for (int64_t i = 0; i < count; i += 16) {
    const f32x16 weight = exp(load(scores + i) - set1(maximum));
    store(scores + i, weight);
    sum = sum + weight;
  }
  partial[0] = maximum;
  partial[1] = reduce_add(sum);
}

// Adds weights x values of positions begin..end-1 of a chunk to Q outputs, V vectors of them (the
// last one `lanes` wide when V is 1).
template <int Q, int V, typename T>
static inline void add_values(const T* const* pages, int head_dim, int64_t begin, int64_t end,
                              const Scores* weights, float* const* outs, int lanes) {
  f32x16 sum[Q][V];
  for (int q = 0; q < Q; ++q)
    for (int v = 0; v < V; ++v) sum[q][v] = begin == 0 ? zero() : load(outs[q] + 16 * v);
  for (int64_t i = begin; i < end; ++i) {
    const T* row = pages[i / kPageTokens] + i % kPageTokens * head_dim;
    f32x16 values[V];
    for (int v = 0; v < V; ++v)
      values[v] = V > 1 || lanes == 16 ? load_any(row + 16 * v) : load_any_part(row, lanes);
    for (int q = 0; q < Q; ++q) {
      const f32x16 weight = set1(weights[q][i]);
      for (int v = 0; v < V; ++v) sum[q][v] = fma(weight, values[v], sum[q][v]);
    }
  }
  for (int q = 0; q < Q; ++q)
    for (int v = 0; v < V; ++v) store(outs[q] + 16 * v, sum[q][v]);
}

// add_values over all dimensions.
template <int Q, typename T>
static void add_all_values(const T* const* pages, int head_dim, int64_t begin, int64_t end,
                           const Scores* weights, float* const* partials) {
  int d = 0;
  const T* shifted[kChunkPages];
  float* outs[Q];
  const auto shift = [&] {
    const int64_t count = ceil_div(end, kPageTokens);
    for (int64_t p = 0; p < count; ++p) shifted[p] = pages[p] + d;
    for (int q = 0; q < Q; ++q) outs[q] = partials[q] + kPartialHead + d;
  };
  for (; d + 16 * kTileVectors <= head_dim; d += 16 * kTileVectors) {
    shift();
    add_values<Q, kTileVectors>(shifted, head_dim, begin, end, weights, outs, 16);
  }
  for (; d < head_dim; d += 16) {
    shift();
    add_values<Q, 1>(shifted, head_dim, begin, end, weights, outs,
                     static_cast<int>(smaller(head_dim - d, 16)));
  }
}

// Partials of queries first..first+Q-1 over one chunk, which each of them reaches.
template <int Q, typename T>
static void chunk_partials(const Work& work, int64_t first, int64_t chunk, int64_t slot) {
  const AttentionArgs& args = work.plan.args;
  const int head_dim = args.cache.head_dim;
  const int64_t chunk_start = chunk * kAttentionChunk;
  const float* queries[Q];
  float* partials[Q];
  int64_t counts[Q];  // positions of the chunk that each query sees: not decreasing
  for (int q = 0; q < Q; ++q) {
    queries[q] = work.query(first + q);
    partials[q] = work.partial(first + q, slot);
    counts[q] = smaller(work.position(first + q) + 1 - chunk_start, kAttentionChunk);
  }
  const int64_t pages = ceil_div(counts[Q - 1], kPageTokens);
  const T* keys[kChunkPages];
  const T* values[kChunkPages];
  for (int64_t p = 0; p < pages; ++p) {
    keys[p] = work.template page<T>(args.cache.keys, chunk * kChunkPages + p);
    values[p] = work.template page<T>(args.cache.values, chunk * kChunkPages + p);
  }
  alignas(64) Scores scores[Q];
  int64_t p = 0;
  for (; p + kTileVectors <= pages; p += kTileVectors)
    score_pages<Q, kTileVectors>(queries, keys + p, head_dim, args.scale, scores, p * kPageTokens);
  for (; p < pages; ++p)
    score_pages<Q, 1>(queries, keys + p, head_dim, args.scale, scores, p * kPageTokens);
  for (int q = 0; q < Q; ++q) exponentiate(scores[q], counts[q], partials[q]);
  add_all_values<Q>(values, head_dim, 0, counts[0], scores, partials);
  for (int q = 1; q < Q; ++q)
    if (counts[q] > counts[0])
      add_all_values<1>(values, head_dim, counts[0], counts[q], scores + q, partials + q);
}

// Partials of queries begin..end-1 over one chunk, for those that reach it.
template <typename T>
static void chunk_of_queries(const Work& work, int64_t begin, int64_t end, int64_t chunk,
                             int64_t slot) {
  const int64_t reach = chunk * kAttentionChunk - work.segment.start;
  begin = larger(begin, reach * work.plan.group);
  for (; begin + kTileQueries <= end; begin += kTileQueries)
    chunk_partials<kTileQueries, T>(work, begin, chunk, slot);
  for (; begin < end; ++begin) chunk_partials<1, T>(work, begin, chunk, slot);
}

// Merges the partial of a later chunk into the one of all earlier chunks.
static void merge(float* sofar, const float* next, int head_dim) {
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

static void write_out(const Work& work, int64_t query, const float* partial) {
  const AttentionArgs& args = work.plan.args;
  const int head_dim = args.cache.head_dim;
  const int64_t row = work.segment.first_row + query / work.plan.group;
  const int64_t offset = (row * args.heads + work.head(query)) * head_dim;
  const f32x16 sum = set1(partial[1]);
  for (int d = 0; d < head_dim; d += 16) {
    const int lanes = static_cast<int>(smaller(head_dim - d, 16));
    const f32x16 value = load(partial + kPartialHead + d) / sum;
    if (args.out_dtype == DType::f32)
      store_part(static_cast<float*>(args.out) + offset + d, value, lanes);
    else
      store_bf16_part(static_cast<bf16*>(args.out) + offset + d, value, lanes);
  }
}

static void merge_and_write(const Work& work, int64_t query) {
  float* sofar = work.partial(query, 0);
  for (int64_t chunk = 1; chunk * kAttentionChunk <= work.position(query); ++chunk)
    merge(sofar, work.partial(query, chunk), work.plan.args.cache.head_dim);
  write_out(work, query, sofar);
}

// All chunks of one group of queries.
template <typename T>
static void all_chunks(const Work& work, int64_t begin, int64_t end) {
  const int64_t chunks = work.position(end - 1) / kAttentionChunk + 1;
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    chunk_of_queries<T>(work, begin, end, chunk, chunk == 0 ? 0 : 1);
    if (chunk == 0) continue;
    for (int64_t q = begin; q < end; ++q)
      if (work.position(q) >= chunk * kAttentionChunk)
        merge(work.partial(q, 0), work.partial(q, 1), work.plan.args.cache.head_dim);
  }
  for (int64_t q = begin; q < end; ++q) write_out(work, q, work.partial(q, 0));
}

template <typename T>
static void run_item(const Work& work, int64_t group, int64_t chunk) {
  const int64_t queries = int64_t{work.segment.count} * work.plan.group;
  const int64_t begin = group * kGroupQueries;
  const int64_t end = smaller(begin + kGroupQueries, queries);
  if (!work.plan.spread) {
    all_chunks<T>(work, begin, end);
  } else {
    chunk_of_queries<T>(work, begin, end, chunk, chunk);
    if (segment_chunks(work.segment) == 1)
      for (int64_t q = begin; q < end; ++q) write_out(work, q, work.partial(q, 0));
  }
}

// Calls visit(segment, first partial, index within the segment) for each of `count(segment)`
// things of every segment with number in [begin, end).
template <typename Count, typename Visit>
static void each_of_segments(const Plan& plan, int64_t begin, int64_t end, const Count& count,
                             const Visit& visit) {
  int64_t first = 0;
  float* partials = plan.partials;
  for (int i = 0; i < plan.args.segment_count && first < end; ++i) {
    const Segment& segment = plan.args.segments[i];
    const int64_t after = first + count(segment);
    for (int64_t n = larger(begin, first); n < smaller(end, after); ++n)
      visit(segment, partials, n - first);
    partials += segment_partials(plan, segment) * plan.stride;
    first = after;
  }
}

}  // namespace

int64_t attention_scratch_bytes(const AttentionArgs& args) {
  const Plan plan = make_plan(args);
  int64_t partials = 0;
  for (int i = 0; i < args.segment_count; ++i) partials += segment_partials(plan, args.segments[i]);
  return partials * plan.stride * static_cast<int64_t>(sizeof(float));
}

void attention(const AttentionArgs& args, ThreadPool& pool) {
  const Plan plan = make_plan(args);
  const auto items = [&](const Segment& s) { return segment_items(plan, s); };
  int64_t item_count = 0, query_count = 0;
  for (int i = 0; i < args.segment_count; ++i) {
    item_count += items(args.segments[i]);
    query_count += int64_t{args.segments[i].count} * args.heads;
  }
  pool.parallel_for(item_count, 1, [&](int64_t begin, int64_t end, int) {
    each_of_segments(plan, begin, end, items, [&](const Segment& s, float* partials, int64_t item) {
      const int64_t chunks = plan.spread ? segment_chunks(s) : 1;
      const int64_t groups = segment_groups(s, plan.group);
      const Work work{plan, s, static_cast<int>(item / (groups * chunks)), partials};
      const int64_t group = item / chunks % groups, chunk = item % chunks;
      if (args.cache.dtype == DType::f32)
        run_item<float>(work, group, chunk);
      else
        run_item<bf16>(work, group, chunk);
    });
  });
  if (!plan.spread) return;
  const auto queries = [&](const Segment& s) {
    return segment_chunks(s) > 1 ? int64_t{s.count} * args.heads : 0;
  };
  pool.parallel_for(query_count, 64, [&](int64_t begin, int64_t end, int) {
    each_of_segments(plan, begin, end, queries,
                     [&](const Segment& s, float* partials, int64_t item) {
                       const int64_t per_head = int64_t{s.count} * plan.group;
                       const Work work{plan, s, static_cast<int>(item / per_head), partials};
                       merge_and_write(work, item % per_head);
                     });
  });
}

}  // namespace ce::CE_ISA
