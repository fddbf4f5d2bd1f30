// How a call of attention is cut into work, and what of its sequence a query sees. attention.cpp
// alone includes this header.
#pragma once

#include "attention_tile.h"

namespace ce::CE_ISA {
namespace {

constexpr int kGroupQueries = 64;  // queries of a sequence and key/value head in one work item
// With at least so many (sequence, head, group) items the chunks of one are not spread.
constexpr int kEnoughGroups = 32;
// Nor with so many a worker, where they hold enough queries that what comes after the last chunk
// (another fork, partials from where other workers left them) costs more than an uneven end.
constexpr int kGroupsPerWorker = 4, kQueriesPerGroup = 4;

// What a call does, in numbers that depend on its shape and the number of workers.
struct Plan {
  const AttentionArgs& args;
  int group;       // query heads per key/value head
  bool spread;     // one work item per chunk, merged afterwards
  int64_t stride;  // floats of a partial
  float* partials;
};

// The positions that queries of a segment see: from first_seen to before last_seen.
static int64_t first_seen(const AttentionArgs& args, const Segment& s) {
  return args.over_source ? 0 : s.source;
}
static int64_t last_seen(const AttentionArgs& args, const Segment& s) {
  return args.over_source ? s.source : int64_t{s.start} + s.count;
}
static int64_t segment_chunks(const AttentionArgs& args, const Segment& s) {
  return ceil_div(last_seen(args, s), kAttentionChunk) - first_seen(args, s) / kAttentionChunk;
}
static int64_t segment_groups(const Segment& s, int group) {
  return ceil_div(int64_t{s.count} * group, kGroupQueries);
}
// Partials that each query of a segment owns: one per chunk, or the merged one and the next.
static int64_t partial_slots(const Plan& plan, const Segment& s) {
  return plan.spread ? segment_chunks(plan.args, s) : 2;
}
static int64_t segment_items(const Plan& plan, const Segment& s) {
  return plan.args.cache.kv_heads * segment_groups(s, plan.group) *
         (plan.spread ? segment_chunks(plan.args, s) : 1);
}
static int64_t segment_partials(const Plan& plan, const Segment& s) {
  return int64_t{s.count} * plan.args.heads * partial_slots(plan, s);
}

static Plan make_plan(const AttentionArgs& args, int workers) {
  const int group = args.heads / args.cache.kv_heads;
  int64_t groups = 0, queries = 0;
  for (int i = 0; i < args.segment_count; ++i) {
    groups += args.cache.kv_heads * segment_groups(args.segments[i], group);
    queries += int64_t{args.segments[i].count} * args.heads;
  }
  const bool even =
      groups >= int64_t{kGroupsPerWorker} * workers && queries >= kQueriesPerGroup * groups;
  return {args, group, groups < kEnoughGroups && !even, partial_floats(args.cache.head_dim),
          static_cast<float*>(args.scratch)};
}

// Some queries of one segment and key/value head: query i is token i / group, head
// kv_head * group + i % group.
struct Work {
  const Plan& plan;
  const Segment& segment;
  int kv_head;
  float* partials;  // of the segment: [count][heads][slots]

  // The node that a query is for; negative: a token before the tree.
  int64_t node(int64_t query) const { return query / plan.group - (segment.count - segment.nodes); }
  int64_t position(int64_t query) const {
    const int64_t n = node(query);
    return n < 0 ? segment.base() + n
                 : segment.base() + __builtin_popcountll(segment.ancestors[n]) - 1;
  }
  // The query sees positions begin()..end(query)-1.
  int64_t begin() const { return first_seen(plan.args, segment); }
  int64_t end(int64_t query) const {
    return plan.args.over_source ? segment.source : position(query) + 1;
  }
  int64_t first_chunk() const { return begin() / kAttentionChunk; }
  // Where lanes of a chunk are counted from: the first page of it that is seen at all.
  int64_t origin(int64_t chunk) const {
    return larger(chunk * kAttentionChunk, begin() / kPageTokens * kPageTokens);
  }
  // Lanes of that page before the first position seen.
  int64_t skipped(int64_t chunk) const { return larger(begin() - origin(chunk), 0); }
  int64_t head(int64_t query) const { return kv_head * plan.group + query % plan.group; }
  const float* query(int64_t i) const {
    const AttentionArgs& args = plan.args;
    const int64_t row = segment.first_row + i / plan.group;
    return args.queries + row * args.stride + head(i) * args.cache.head_dim;
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

}  // namespace
}  // namespace ce::CE_ISA
