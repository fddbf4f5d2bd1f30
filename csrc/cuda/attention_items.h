// How attention cuts its work into items. See attention.cu.
#pragma once

#include "cuda/batch.h"

namespace ce::cuda {

constexpr int kTailChunks = 2;  // that the up to 64 positions of a path can touch

// A row of the batch as items see it.
struct RowPlan {
  int count = 0, chunks = 0, groups = 0;  // chunks that query rows of all tokens share
  int tail = 0;                           // first chunk that tokens see on their own
  bool tree = false;
};

__device__ __forceinline__ RowPlan plan_row(const AttentionArgs& args, int r, int rows_at_once) {
  RowPlan plan;
  const Batch& batch = args.batch;
  if (batch.slots[r] < 0 || batch.counts[r] <= 0) return plan;
  plan.count = batch.counts[r];
  plan.groups = static_cast<int>(
      ceil_div(int64_t{plan.count} * (args.heads / args.cache.kv_heads), rows_at_once));
  int32_t positions = batch.starts[r] + plan.count;
  if (args.kv_lengths != nullptr) positions = args.kv_lengths[r];
  plan.chunks = static_cast<int>(ceil_div(positions, kAttentionChunk));
  plan.tree = args.kv_lengths == nullptr && batch.bases != nullptr && batch.bases[r] < positions;
  if (plan.tree) plan.chunks = plan.tail = batch.bases[r] / kAttentionChunk;
  return plan;
}

__device__ __forceinline__ int64_t plan_items(const RowPlan& plan) {
  return int64_t{plan.groups} * plan.chunks + (plan.tree ? int64_t{plan.count} * kTailChunks : 0);
}

// What a block works on.
struct Item {
  int row, kv_head, chunk;
  int first, rows;    // query rows of the row and head: token i / group, head i % group
  Query path;         // whose positions are loaded
  int32_t positions;  // 0..positions - 1 are loaded, more do not exist for any query row
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
    item.chunk = static_cast<int>(number / plan.groups);
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
  item.positions = item.path.position + 1;
  if (args.kv_lengths != nullptr) item.positions = args.kv_lengths[row];
  return item;
}

}  // namespace ce::cuda
