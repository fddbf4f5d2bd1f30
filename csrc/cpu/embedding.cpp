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

void coded_row(const EmbeddingArgs& args, int64_t id, float* out) {
  const PackedMatrix& table = args.table;
  const int64_t block = id / kBlockColumns, column = id % kBlockColumns;
  const uint8_t* in =
      static_cast<const uint8_t*>(table.data) + block * coded_units(table.k) * kUnitBytes;
  const uint8_t* high_bytes = table.coded.tables + 16 * block;
  const uint32_t* exception = table.coded.exceptions + table.coded.first[block];
  for (int64_t i = 0; i < table.k; ++i) {
    const int64_t place = coded_place(column, i), at = place % kUnitPlaces;
    const uint8_t* unit = in + place / kUnitPlaces * kUnitBytes;
    const int code = unit[kUnitPlaces + at % 64] >> (at / 64 * 4) & 15;
    while (*exception >> 8 < place) ++exception;
    const bool listed = *exception >> 8 == place;
    const uint32_t high = listed ? *exception & 255u : high_bytes[code];
    out[i] = to_float(bf16{static_cast<uint16_t>(high << 8 | unit[at])});
  }
}

void packed_row(const EmbeddingArgs& args, int64_t id, float* out) {
  const int64_t k = args.table.k;
  if (args.table.dtype == DType::coded) return coded_row(args, id, out);
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
