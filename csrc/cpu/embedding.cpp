// Embedding lookup, from a row-major table or from a tied head's packed matrix.
#include <cstring>

#include "ce/bf16.h"
#include "ce/check.h"
#include "ce/kernels.h"
#include "ce/parallel.h"

namespace ce {
namespace {

void dense_row(const EmbeddingArgs& args, int64_t id, float* out) {
  const int64_t k = args.table.k;
  if (args.table.dtype == DType::f32) {
    std::memcpy(out, static_cast<const float*>(args.table.data) + id * k,
                sizeof(float) * static_cast<size_t>(k));
    return;
  }
  const bf16* row = static_cast<const bf16*>(args.table.data) + id * k;
  for (int64_t i = 0; i < k; ++i) out[i] = to_float(row[i]);
}

void packed_row(const EmbeddingArgs& args, int64_t id, float* out) {
  const int64_t k = args.table.k;
  const int64_t block = id / kBlockColumns, column = id % kBlockColumns;
  if (args.table.dtype == DType::f32) {
    const float* in =
        static_cast<const float*>(args.table.data) + block * k * kBlockColumns + column;
    for (int64_t i = 0; i < k; ++i) out[i] = in[i * kBlockColumns];
    return;
  }
  const int64_t first = block * ((k + 1) / 2) * kBlockColumns * 2;
  if (args.table.dtype == DType::i8) {
    const int8_t* in = static_cast<const int8_t*>(args.table.data) + first;
    const float scale = args.table.scales[id];
    for (int64_t i = 0; i < k; ++i)
      out[i] = static_cast<float>(in[byte_in_block(column, i)]) * scale;
    return;
  }
  const bf16* in = static_cast<const bf16*>(args.table.data) + first + column * 2;
  for (int64_t i = 0; i < k; ++i) out[i] = to_float(in[i / 2 * kBlockColumns * 2 + i % 2]);
}

}  // namespace

void embedding(const EmbeddingArgs& args, ThreadPool& pool) {
  for_each_item(pool, args.rows, [&](int64_t row) {
    const int64_t id = args.ids[row];
    CE_CHECK(id >= 0 && id < args.table.n, "token id ", id, " is outside the vocabulary of ",
             args.table.n);
    float* out = args.out + row * args.table.k;
    if (args.packed)
      packed_row(args, id, out);
    else
      dense_row(args, id, out);
  });
}

}  // namespace ce
