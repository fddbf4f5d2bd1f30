// How attention cuts its work into items. See attention.cu.
#pragma once

#include "cuda/batch.h"

namespace ce::cuda {

constexpr int kTailChunks = 2;  // that the up to 64 positions of a path can touch

// A row of the batch as items see it.
struct RowPlan {
  int count = 0, groups = 0;
  int first = 0, chunks = 0;  // chunks that query rows of all tokens share
  int tail = 0;               // first chunk that tokens see on their own
  bool tree = false;
};

// Tokens at the beginning of row r that an encoder reads.
__device__ __forceinline__ int32_t source_of(const AttentionArgs& args, int r) {
  return args.sources == nullptr ? 0 : args.sources[r];
}

// The first chunk that queries of row r see.
__device__ __forceinline__ int first_chunk(const AttentionArgs& args, int r) {
  return args.over_source ? 0 : source_of(args, r) / kAttentionChunk;
}

__device__ __forceinline__ RowPlan plan_row(const AttentionArgs& args, int r, int rows_at_once) {
  RowPlan plan;
  const Batch& batch = args.batch;
  if (batch.slots[r] < 0 || batch.counts[r] <= 0) return plan;
  plan.count = batch.counts[r];
  plan.groups = static_cast<int>(
      ceil_div(int64_t{plan.count} * (args.heads / args.cache.kv_heads), rows_at_once));
  const int32_t end = args.over_source ? source_of(args, r) : batch.starts[r] + plan.count;
  plan.tree = batch.bases != nullptr && batch.bases[r] < end;  // trees lie behind the source
  plan.first = first_chunk(args, r);
  plan.tail = plan.tree ? batch.bases[r] / kAttentionChunk
                        : static_cast<int>(ceil_div(end, kAttentionChunk));
  plan.chunks = plan.tail - plan.first;
  return plan;
}

__device__ __forceinline__ int64_t plan_items(const RowPlan& plan) {
  return int64_t{plan.groups} * plan.chunks + (plan.tree ? int64_t{plan.count} * kTailChunks : 0);
}

// What a block works on.
struct Item {
  int row, kv_head, chunk;
  int first, rows;     // query rows of the row and head: token i / group, head i % group
  Query path;          // whose positions are loaded
  int32_t begin, end;  // begin..end - 1 are loaded: no query row sees others
};

__device__ __forceinline__ int smaller(int a, int b) {
  return a < b ? a : b;
}

__device__ __forceinline__ Item item_at(const AttentionArgs& args, int row, int64_t number,
                                        int rows_at_once) {
  const RowPlan plan = plan_row(args, row, rows_at_once);
  const int group = args.heads / args.cache.kv_heads;
  const int64_t shared_items = int64_t{plan.groups} * plan.chunks;
  Item item;
  item.row = row;
  item.kv_head = static_cast<int>(number / plan_items(plan));
  number %= plan_items(plan);
  int last;  // token whose path is loaded
  if (number < shared_items) {
    item.chunk = plan.first + static_cast<int>(number / plan.groups);
    item.first = static_cast<int>(number % plan.groups) * rows_at_once;
    item.rows = smaller(plan.count * group - item.first, rows_at_once);
    last = (item.first + item.rows - 1) / group;
  } else {
    number -= shared_items;
    last = static_cast<int>(number / kTailChunks);
    item.chunk = plan.tail + static_cast<int>(number % kTailChunks);
    item.first = last * group;
    item.rows = group;
  }
  item.path = query_at(args.batch, row, last);
  const int32_t source = source_of(args, row);
  item.begin = args.over_source ? 0 : source;
  item.end = args.over_source ? source : item.path.position + 1;
  return item;
}

}  // namespace ce::cuda
