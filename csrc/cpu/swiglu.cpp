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
  each_vector(args.cols, [&](int64_t c, int lanes) __attribute__((always_inline)) {
    const f32x16 y = silu(load_part(gate + c, lanes)) * load_part(up + c, lanes);
    store_as(args.out, args.out_dtype, row * args.cols + c, y, lanes);
  });
}

}  // namespace

void swiglu(const SwigluArgs& args, ThreadPool& pool) {
  const int64_t rows_at_once = 1 + 8192 / args.cols;  // not worth a fork below
  pool.parallel_for(args.rows, rows_at_once, [&](int64_t begin, int64_t end, int) {
    for (int64_t row = begin; row < end; ++row) gate_row(args, row);
  });
}

}  // namespace ce::CE_ISA
