// Activations of T5's feed-forward layers: the GELU gate of version 1.1 and the ReLU of
// version 1.0.
#include "ce/cpu_kernels.h"
#include "ce/simd.h"

namespace ce::CE_ISA {
namespace {

// The tanh form of GELU (Hendrycks and Gimpel, arXiv 1606.08415):
// x (1 + tanh u) / 2 = x / (1 + exp(-2 u)) with u = sqrt(2 / pi) (x + 0.044715 x^3).
f32x16 gelu(f32x16 x) {
  const f32x16 u = x * fma(x * x, set1(0.7978845608f * 0.044715f), set1(0.7978845608f));
  return x / (set1(1.0f) + exp(u * set1(-2.0f)));
}

// Calls part(row, column, count) for all elements, up to 16 of a row at a time.
template <typename Part>
void each_part(int64_t rows, int64_t cols, ThreadPool& pool, const Part& part) {
  const int64_t rows_at_once = 1 + 8192 / cols;  // not worth a fork below
  pool.parallel_for(rows, rows_at_once, [&](int64_t begin, int64_t end, int) {
    for (int64_t row = begin; row < end; ++row)
      each_vector(
          cols, [&](int64_t c, int lanes) __attribute__((always_inline)) { part(row, c, lanes); });
  });
}

}  // namespace

void geglu(const GegluArgs& args, ThreadPool& pool) {
  each_part(args.rows, args.cols, pool, [&](int64_t row, int64_t c, int count) {
    const float* gate = args.gate_up + row * 2 * args.cols + c;
    const f32x16 y = gelu(load_part(gate, count)) * load_part(gate + args.cols, count);
    store_as(args.out, args.out_dtype, row * args.cols + c, y, count);
  });
}

void relu(const ReluArgs& args, ThreadPool& pool) {
  each_part(args.rows, args.cols, pool, [&](int64_t row, int64_t c, int count) {
    const f32x16 y = max(load_part(args.x + row * args.cols + c, count), zero());
    store_as(args.out, args.out_dtype, row * args.cols + c, y, count);
  });
}

}  // namespace ce::CE_ISA
