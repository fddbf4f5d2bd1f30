// SwiGLU gate: out = silu(gate) * up, with gate and up side by side in one matrix.
#include "ce/cpu_kernels.h"
#include "ce/simd.h"

namespace ce::CE_ISA {
namespace {

f32x16 silu(f32x16 x) {
  return x / (set1(1.0f) + exp(zero() - x));
}

void gate_row(const SwigluArgs& args, int64_t row) {
  const float* gate = args.gate_up + row * 2 * args.cols;
  const float* up = gate + args.cols;
  for (int64_t c = 0; c < args.cols; c += 16) {
    const int count = static_cast<int>(args.cols - c < 16 ? args.cols - c : 16);
    const f32x16 y = silu(load_part(gate + c, count)) * load_part(up + c, count);
    store_as(args.out, args.out_dtype, row * args.cols + c, y, count);
  }
}

}  // namespace

void swiglu(const SwigluArgs& args, ThreadPool& pool) {
  const int64_t rows_at_once = 1 + 8192 / args.cols;  // not worth a fork below
  pool.parallel_for(args.rows, rows_at_once, [&](int64_t begin, int64_t end, int) {
    for (int64_t row = begin; row < end; ++row) gate_row(args, row);
  });
}

}  // namespace ce::CE_ISA
