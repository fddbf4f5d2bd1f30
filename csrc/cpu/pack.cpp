// Weights from checkpoint order into the layout that `linear` streams (see PackedMatrix).
#include <cmath>

#include "ce/bf16.h"
#include "ce/check.h"
#include "ce/kernels.h"
#include "ce/parallel.h"

namespace ce {
namespace {

float half_to_float(uint16_t h) {
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000u) << 16;
  const uint32_t exponent = (h >> 10) & 0x1fu;
  const uint32_t mantissa = h & 0x3ffu;
  if (exponent == 0) {  // zero or subnormal: mantissa * 2^-24
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
    return sign ? -magnitude : magnitude;
  }
  if (exponent == 31) return std::bit_cast<float>(sign | 0x7f800000u | (mantissa << 13));
  return std::bit_cast<float>(sign | ((exponent + 112) << 23) | (mantissa << 13));
}

template <SourceDType source>
float read(const void* data, int64_t index) {
  if constexpr (source == SourceDType::f32)
    return static_cast<const float*>(data)[index];
  else if constexpr (source == SourceDType::bf16)
    return to_float(static_cast<const bf16*>(data)[index]);
  else
    return half_to_float(static_cast<const uint16_t*>(data)[index]);
}

// Symmetric quantisation of one output: its largest magnitude becomes 127, the rest is rounded to
// the nearest multiple of the scale (ties to even).
template <SourceDType source>
void quantise_row(const void* data, int64_t row, const PackedMatrix& target, int64_t target_row) {
  const int64_t block = target_row / kBlockColumns, column = target_row % kBlockColumns;
  const int64_t k = target.k, pairs = (k + 1) / 2;
  float largest = 0.0f;
  for (int64_t i = 0; i < k; ++i) {
    const float value = read<source>(data, row * k + i);
    CE_CHECK(std::isfinite(value), "holds ", value, ", which int8 cannot: load in another dtype");
    largest = std::fmax(largest, std::fabs(value));
  }
  const float scale = largest / 127.0f;
  target.scales[target_row] = scale;
  int8_t* out =
      static_cast<int8_t*>(const_cast<void*>(target.data)) + block * pairs * kBlockColumns * 2;
  for (int64_t i = 0; i < k; ++i) {
    // Near the smallest numbers the scale is inexact, and may even be zero.
    const float steps = scale > 0.0f ? read<source>(data, row * k + i) / scale : 0.0f;
    const float bounded = std::fmin(std::fmax(steps, -127.0f), 127.0f);
    out[byte_in_block(column, i)] = static_cast<int8_t>(std::nearbyintf(bounded));
  }
}

template <SourceDType source>
void pack_row(const void* data, int64_t row, const PackedMatrix& target, int64_t target_row) {
  const int64_t block = target_row / kBlockColumns, column = target_row % kBlockColumns;
  const int64_t k = target.k;
  if (target.dtype == DType::i8) return quantise_row<source>(data, row, target, target_row);
  if (target.dtype == DType::f32) {
    float* out =
        static_cast<float*>(const_cast<void*>(target.data)) + block * k * kBlockColumns + column;
    for (int64_t i = 0; i < k; ++i) out[i * kBlockColumns] = read<source>(data, row * k + i);
    return;
  }
  const int64_t pairs = (k + 1) / 2;
  bf16* out = static_cast<bf16*>(const_cast<void*>(target.data)) +
              block * pairs * kBlockColumns * 2 + column * 2;
  for (int64_t i = 0; i < k; ++i) {
    bf16 value;
    if constexpr (source == SourceDType::bf16)
      value = static_cast<const bf16*>(data)[row * k + i];
    else
      value = to_bf16(read<source>(data, row * k + i));
    out[i / 2 * kBlockColumns * 2 + i % 2] = value;
  }
}

}  // namespace

void pack_rows(const void* source, SourceDType source_dtype, int64_t rows,
               const PackedMatrix& target, int64_t first_row, ThreadPool& pool) {
  CE_CHECK(first_row >= 0 && rows >= 0 && first_row + rows <= target.n, "rows ", first_row, "..",
           first_row + rows, " do not fit a packed matrix of ", target.n, " rows");
  const auto pack = source_dtype == SourceDType::f32    ? pack_row<SourceDType::f32>
                    : source_dtype == SourceDType::bf16 ? pack_row<SourceDType::bf16>
                                                        : pack_row<SourceDType::f16>;
  for_each_item(pool, rows, [&](int64_t row) { pack(source, row, target, first_row + row); });
}

}  // namespace ce
