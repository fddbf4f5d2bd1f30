// Attention over the paged cache. The work is cut into (sequence, key/value head, chunk of
// kAttentionChunk positions) when there are few queries, so that all workers read a long context
// together, and into (sequence, key/value head, group of queries) when there are many.
//
// Row invariance: a query's partial over one chunk does not depend on the queries that share its
// tile (attention_tile.h), and partials are merged in ascending order with one formula.
#include "attention_plan.h"
#include "ce/cpu_kernels.h"

namespace ce::CE_ISA {
namespace {

constexpr int64_t kPiecesPerWorker = 8;

// The pages of a chunk in the order of reading: keys, then values. While a page is used, the one in
// its place among `ahead` is fetched.
template <typename T>
struct Pages {
  int64_t count;  // of keys, and of values
  const T* list[2 * kChunkPages + kPagesAhead];
  const T* next[2 * kChunkPages];
};
// Calls visit<Q>(first) for queries begin..end-1 in tiles of Q, large ones first.
template <int Q = kTileQueries, typename Visit>
static inline void each_tile(int64_t begin, int64_t end, const Visit& visit) {
  for (; begin + Q <= end; begin += Q) visit.template operator()<Q>(begin);
  if constexpr (Q > 1) each_tile<fewer_queries(Q)>(begin, end, visit);
}

// Which chunk of a sequence, where its partials go, whether the next chunk follows, and what later
// tiles of queries fetch meanwhile: a chunk of some head (none: -1).
struct Step {
  int64_t chunk, slot;
  bool more;
  int next_head = -1;
  int64_t next_chunk = 0;
};

// Softmax numerators of Q queries from their scores of lanes 0..counts[q]-1 of a chunk.
template <int Q, typename T>
static inline void finish_scores(const Work& work, const int64_t* index, const Step& step,
                                 Scores* scores, const int64_t* counts, float* const* partials) {
  const RelativeBias& bias = work.plan.args.bias;
  if (bias.table != nullptr)
    for (int q = 0; q < Q; ++q)
      add_bias(scores[q], counts[q], bias.table + work.head(index[q]) * bias.width(), bias.reach,
               work.origin(step.chunk) - work.position(index[q]));
  constexpr int kTurns = Q < 4 ? Q : 4;
  for (int q = 0; q < Q; q += kTurns)
    exponentiate<kTurns, T>(scores + q, work.skipped(step.chunk), counts + q, partials + q);
}

static int64_t known_pages(const Work& work) {
  return ceil_div(work.plan.args.over_source ? work.segment.source : work.segment.base(),
                  kPageTokens);
}

template <typename T>
static inline Pages<T> list_pages(const Work& work, const Step& step, int64_t count) {
  const CacheLayer& cache = work.plan.args.cache;
  const int64_t first = work.origin(step.chunk) / kPageTokens;
  const int64_t after = (step.chunk + 1) * kChunkPages;
  Pages<T> pages;
  pages.count = count;
  for (int64_t p = 0; p < count; ++p) {
    pages.list[p] = work.template page<T>(cache.keys, first + p);
    pages.list[count + p] = work.template page<T>(cache.values, first + p);
  }
  const int64_t known = known_pages(work);
  for (int64_t p = 0; p < kPagesAhead; ++p) {
    const int64_t next = after + p;
    pages.list[2 * count + p] = step.more && next < known ? work.template page<T>(cache.keys, next)
                                                          : pages.list[2 * count - 1];
  }
  return pages;
}

// In the place of each page of a chunk one of the chunk to come.
template <typename T>
static inline void list_next(const Work& work, const Step& step, Pages<T>& pages) {
  const CacheLayer& cache = work.plan.args.cache;
  Work other = work;
  other.kv_head = step.next_head;
  for (int64_t p = 0; p < pages.count; ++p) {
    const int64_t page = smaller(step.next_chunk * kChunkPages + p, known_pages(work) - 1);
    pages.next[p] = other.template page<T>(cache.keys, page);
    pages.next[pages.count + p] = other.template page<T>(cache.values, page);
  }
}

// Partials of queries first..first+Q-1 over one chunk, which each of them reaches.
template <int Q, Fetch kFetch, typename T>
static void chunk_partials(const Work& work, int64_t first, const Step& step) {
  const AttentionArgs& args = work.plan.args;
  const int head_dim = args.cache.head_dim;
  const float* queries[Q];
  float* partials[Q];
  int64_t counts[Q];  // positions of the chunk that each query sees: not decreasing
  int64_t index[Q];
  for (int q = 0; q < Q; ++q) {
    index[q] = first + q;
    queries[q] = work.query(first + q);
    partials[q] = work.partial(first + q, step.slot);
    counts[q] =
        smaller(work.end(first + q), (step.chunk + 1) * kAttentionChunk) - work.origin(step.chunk);
  }
  auto pages = list_pages<T>(work, step, ceil_div(counts[Q - 1], kPageTokens));
  if constexpr (kFetch == Fetch::next) list_next(work, step, pages);
  const T* const* ahead = kFetch == Fetch::next ? pages.next : pages.list + kPagesAhead;
  alignas(64) Scores scores[Q];
  score_all_pages<Q, kFetch>(queries, pages.list, ahead, pages.count, head_dim, args.scale, scores);
  finish_scores<Q, T>(work, index, step, scores, counts, partials);
  const T* const* values = pages.list + pages.count;
  const int64_t skipped = work.skipped(step.chunk);
  // What all see; a pair that one of them sees half of is no part of it.
  const bool halves = kInPairs<T> && counts[Q - 1] > counts[0];
  const int64_t shared = halves ? counts[0] / 2 * 2 : counts[0];
  add_all_values<Q, kFetch>(values, ahead + pages.count, head_dim, true, skipped, shared, scores,
                            partials);
  for (int q = 0; q < Q; ++q)
    if (counts[q] > shared)
      add_all_values<1, Fetch::none>(values, values, head_dim, false, shared, counts[q], scores + q,
                                     partials + q);
}

// Scores of nodes against the slots of the tree, moved to the positions of their ancestors: a score
// does not depend on the lane that it is computed in.
template <int Q, typename T>
static void score_paths(const Work& work, const int64_t* index, const float* const* queries,
                        const Step& step, Scores* scores, Path<T>* paths) {
  const AttentionArgs& args = work.plan.args;
  const int64_t base = work.segment.base(), first = base / kPageTokens;
  const int64_t last = (base + larger(work.node(index[Q - 1]), 0)) / kPageTokens;
  const T *keys[kTreePages], *values[kTreePages];
  for (int64_t p = first; p <= last; ++p) {
    keys[p - first] = work.template page<T>(args.cache.keys, p);
    values[p - first] = work.template page<T>(args.cache.values, p);
  }
  alignas(64) Scores slots[Q];
  score_all_pages<Q, Fetch::none>(queries, keys, keys, last - first + 1, args.cache.head_dim,
                                  args.scale, slots);
  for (int q = 0; q < Q; ++q) {
    const int64_t node = work.node(index[q]);
    uint64_t left = node < 0 ? 0 : work.segment.ancestors[node];
    const int64_t origin = work.origin(step.chunk);
    const int64_t lanes = (step.chunk + 1) * kAttentionChunk - origin;
    int64_t lane = base - origin;
    for (; left != 0 && lane < lanes; left &= left - 1, ++lane) {
      if (lane < 0) continue;
      const int64_t slot = base % kPageTokens + __builtin_ctzll(left);
      scores[q][lane] = slots[q][slot];
      paths[q].rows[paths[q].count++] =
          values[slot / kPageTokens] + slot % kPageTokens * args.cache.head_dim;
    }
  }
}

// Partials of nodes of a tree over one chunk, which each of them reaches. They share the positions
// before the tree's base; each finds the rest in the slots of its ancestors.
template <int Q, typename T>
static void tree_partials(const Work& work, const int64_t* index, const Step& step) {
  const AttentionArgs& args = work.plan.args;
  const int head_dim = args.cache.head_dim;
  const int64_t origin = work.origin(step.chunk);
  const int64_t lanes = (step.chunk + 1) * kAttentionChunk - origin;
  const int64_t shared = larger(0, smaller(work.segment.base() - origin, lanes));
  const float* queries[Q];
  float* partials[Q];
  for (int q = 0; q < Q; ++q) {
    queries[q] = work.query(index[q]);
    partials[q] = work.partial(index[q], step.slot);
  }
  alignas(64) Scores scores[Q];
  Pages<T> pages;
  pages.count = 0;
  if (shared > 0) pages = list_pages<T>(work, step, ceil_div(shared, kPageTokens));
  score_all_pages<Q, Fetch::own>(queries, pages.list, pages.list + kPagesAhead, pages.count,
                                 head_dim, args.scale, scores);
  // Half of a pair goes with the paths.
  const int64_t whole = kInPairs<T> ? shared / 2 * 2 : shared;
  Path<T> paths[Q];
  for (int q = 0; q < Q; ++q) {
    paths[q].count = shared - whole;
    if (whole < shared)
      paths[q].rows[0] =
          pages.list[pages.count + whole / kPageTokens] + whole % kPageTokens * head_dim;
  }
  if (shared < lanes) score_paths<Q, T>(work, index, queries, step, scores, paths);
  int64_t counts[Q];
  for (int q = 0; q < Q; ++q) counts[q] = whole + paths[q].count;
  finish_scores<Q, T>(work, index, step, scores, counts, partials);
  add_all_values<Q, Fetch::own>(pages.list + pages.count, pages.list + pages.count + kPagesAhead,
                                head_dim, true, work.skipped(step.chunk), whole, scores, partials);
  for (int q = 0; q < Q; ++q) add_path_values(paths[q], head_dim, scores[q], whole, partials[q]);
}

// Partials of queries begin..end-1, the root of a tree and its nodes, over one chunk.
template <typename T>
static void chunk_of_tree(const Work& work, int64_t begin, int64_t end, const Step& step) {
  int64_t index[kGroupQueries];
  int64_t count = 0;
  for (int64_t i = begin; i < end; ++i)
    if (work.position(i) >= step.chunk * kAttentionChunk) index[count++] = i;
  each_tile(0, count,
            [&]<int Q>(int64_t first) { tree_partials<Q, T>(work, index + first, step); });
}

// Partials of queries begin..end-1 over one chunk, for those that reach it.
template <typename T>
static void chunk_of_queries(const Work& work, int64_t begin, int64_t end, const Step& step) {
  const Segment& s = work.segment;
  const bool over_source = work.plan.args.over_source;
  const int64_t tree =
      s.nodes == 0 || over_source ? end : larger(s.count - s.nodes - 1, 0) * work.plan.group;
  if (end > tree) {
    chunk_of_tree<T>(work, larger(begin, tree), end, step);
    end = tree;
  }
  if (!over_source)
    begin = larger(begin, (step.chunk * kAttentionChunk - s.start) * work.plan.group);
  each_tile(begin, end, [&]<int Q>(int64_t first) {
    if (first == begin)
      chunk_partials<Q, Fetch::own, T>(work, first, step);
    else if (first <= begin + kTileQueries && step.next_head >= 0)  // the second
      chunk_partials<Q, Fetch::next, T>(work, first, step);
    else
      chunk_partials<Q, Fetch::none, T>(work, first, step);
  });
}

static void write_out(const Work& work, int64_t query, const float* partial) {
  const AttentionArgs& args = work.plan.args;
  const int head_dim = args.cache.head_dim;
  const int64_t row = work.segment.first_row + query / work.plan.group;
  const int64_t offset = (row * args.heads + work.head(query)) * head_dim;
  const f32x16 sum = set1(partial[1]);
  each_vector(head_dim, [&](int64_t d, int lanes) __attribute__((always_inline)) {
    const f32x16 value = load(partial + kPartialHead + d) / sum;
    store_as(args.out, args.out_dtype, offset + d, value, lanes);
  });
}

static void merge_and_write(const Work& work, int64_t query) {
  float* sofar = work.partial(query, 0);
  const int64_t first = work.first_chunk();
  for (int64_t chunk = first + 1; chunk * kAttentionChunk < work.end(query); ++chunk)
    merge(sofar, work.partial(query, chunk - first), work.plan.args.cache.head_dim);
  write_out(work, query, sofar);
}

// After a chunk a worker reads the next one of the head, or the first one of the head that comes
// `workers` later, because as many are at work. What is behind the last full chunk is not worth it.
static void foresee(const Work& work, int workers, Step& step) {
  const int64_t known = known_pages(work), first = work.first_chunk();
  const int64_t full = larger(known / kChunkPages, first + 1);
  if (known == 0 || step.chunk >= full) return;
  const bool within = step.chunk + 1 < full;
  const int head = within ? work.kv_head : work.kv_head + workers;
  if (head >= work.plan.args.cache.kv_heads) return;
  step.next_head = head;
  step.next_chunk = within ? step.chunk + 1 : first;
}

// All chunks of one group of queries.
template <typename T>
static void all_chunks(const Work& work, int64_t begin, int64_t end, int workers) {
  const Segment& s = work.segment;
  const int64_t slot = s.start + (end - 1) / work.plan.group;  // none is further on
  const int64_t first = work.first_chunk();
  const int64_t after = ceil_div(work.plan.args.over_source ? s.source : slot + 1, kAttentionChunk);
  for (int64_t chunk = first; chunk < after; ++chunk) {
    Step step{chunk, chunk == first ? 0 : 1, chunk + 1 < after};
    foresee(work, workers, step);
    chunk_of_queries<T>(work, begin, end, step);
    if (chunk == first) continue;
    for (int64_t q = begin; q < end; ++q)
      if (work.end(q) > chunk * kAttentionChunk)
        merge(work.partial(q, 0), work.partial(q, 1), work.plan.args.cache.head_dim);
  }
  for (int64_t q = begin; q < end; ++q) write_out(work, q, work.partial(q, 0));
}

template <typename T>
static void run_item(const Work& work, int64_t group, int64_t chunk, bool more, int workers) {
  const int64_t queries = int64_t{work.segment.count} * work.plan.group;
  const int64_t begin = group * kGroupQueries;
  const int64_t end = smaller(begin + kGroupQueries, queries);
  if (!work.plan.spread) {
    all_chunks<T>(work, begin, end, workers);
  } else {
    chunk_of_queries<T>(work, begin, end, {work.first_chunk() + chunk, chunk, more});
    if (segment_chunks(work.plan.args, work.segment) == 1)
      for (int64_t q = begin; q < end; ++q) write_out(work, q, work.partial(q, 0));
  }
}

// Calls visit(segment, first partial, index within the segment, whether it is the last) for each of
// `count(segment)` things of every segment with number in [begin, end).
template <typename Count, typename Visit>
static void each_of_segments(const Plan& plan, int64_t begin, int64_t end, const Count& count,
                             const Visit& visit) {
  int64_t first = 0;
  float* partials = plan.partials;
  for (int i = 0; i < plan.args.segment_count && first < end; ++i) {
    const Segment& segment = plan.args.segments[i];
    const int64_t after = first + count(segment);
    for (int64_t n = larger(begin, first); n < smaller(end, after); ++n)
      visit(segment, partials, n - first, n + 1 == end);
    partials += segment_partials(plan, segment) * plan.stride;
    first = after;
  }
}

}  // namespace

int64_t attention_scratch_bytes(const AttentionArgs& args, int workers) {
  const Plan plan = make_plan(args, workers);
  int64_t partials = 0;
  for (int i = 0; i < args.segment_count; ++i) partials += segment_partials(plan, args.segments[i]);
  return partials * plan.stride * static_cast<int64_t>(sizeof(float));
}

void attention(const AttentionArgs& args, ThreadPool& pool) {
  const Plan plan = make_plan(args, pool.size());
  const auto items = [&](const Segment& s) { return segment_items(plan, s); };
  int64_t item_count = 0, query_count = 0;
  for (int i = 0; i < args.segment_count; ++i) {
    item_count += items(args.segments[i]);
    query_count += int64_t{args.segments[i].count} * args.heads;
  }
  // Chunks that follow each other are one piece: the next one's keys are fetched in time.
  const int64_t grain = plan.spread ? ceil_div(item_count, kPiecesPerWorker * pool.size()) : 1;
  pool.parallel_for(item_count, grain, [&](int64_t begin, int64_t end, int) {
    each_of_segments(
        plan, begin, end, items, [&](const Segment& s, float* partials, int64_t item, bool last) {
          const int64_t chunks = plan.spread ? segment_chunks(args, s) : 1;
          const int64_t groups = segment_groups(s, plan.group);
          const Work work{plan, s, static_cast<int>(item / (groups * chunks)), partials};
          const int64_t group = item / chunks % groups, chunk = item % chunks;
          const bool more = !last && chunk + 1 < chunks;
          if (args.cache.dtype == DType::f32)
            run_item<float>(work, group, chunk, more, pool.size());
          else
            run_item<bf16>(work, group, chunk, more, pool.size());
        });
  });
  if (!plan.spread) return;
  const auto queries = [&](const Segment& s) {
    return segment_chunks(args, s) > 1 ? int64_t{s.count} * args.heads : 0;
  };
  pool.parallel_for(query_count, 8, [&](int64_t begin, int64_t end, int) {
    each_of_segments(plan, begin, end, queries,
                     [&](const Segment& s, float* partials, int64_t item, bool) {
                       const int64_t per_head = int64_t{s.count} * plan.group;
                       const Work work{plan, s, static_cast<int>(item / per_head), partials};
                       merge_and_write(work, item % per_head);
                     });
  });
}

}  // namespace ce::CE_ISA
