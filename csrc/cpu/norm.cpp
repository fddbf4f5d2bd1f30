// Root-mean-square layer norm: out = x / sqrt(mean(x^2) + eps) * weight.
#include "ce/cpu_kernels.h"
#include "ce/simd.h"

namespace ce::CE_ISA {
namespace {

// The sum of squares runs over columns in one fixed order: lane i sums columns i, i + 16, ...
float sum_of_squares(const float* x, int64_t cols) {
  f32x16 sum = zero();
  int64_t c = 0;
  for (; c + 16 <= cols; c += 16) {
    const f32x16 v = load(x + c);
    sum = fma(v, v, sum);
  }
  if (c < cols) {
    const f32x16 v = load_part(x + c, static_cast<int>(cols - c));
    sum = fma(v, v, sum);
  }
  return reduce_add(sum);
}

void norm_row(const RmsNormArgs& args, int64_t row) {
  const float* x = args.x + row * args.cols;
  const float mean = sum_of_squares(x, args.cols) / static_cast<float>(args.cols);
  const f32x16 scale = set1(1.0f / __builtin_sqrtf(mean + args.eps));
  for (int64_t c = 0; c < args.cols; c += 16) {
    const int count = static_cast<int>(args.cols - c < 16 ? args.cols - c : 16);
    const f32x16 y = load_part(x + c, count) * scale * load_part(args.weight + c, count);
    store_as(args.out, args.out_dtype, row * args.cols + c, y, count);
  }
}

}  // namespace

void rms_norm(const RmsNormArgs& args, ThreadPool& pool) {
  const int64_t rows_at_once = 1 + 16384 / args.cols;  // not worth a fork below
  pool.parallel_for(args.rows, rows_at_once, [&](int64_t begin, int64_t end, int) {
    for (int64_t row = begin; row < end; ++row) norm_row(args, row);
  });
}

}  // namespace ce::CE_ISA
