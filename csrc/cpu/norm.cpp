// Root-mean-square layer norm: out = x / sqrt(mean(x^2) + eps) * weight.
#include "ce/cpu_kernels.h"
#include "ce/simd.h"

namespace ce::CE_ISA {
namespace {

constexpr int kTogether = 4;  // rows whose chains hide each other's latency

// R rows from `first` on. A sum of squares runs over columns in one fixed order: lane i sums
// columns i, i + 16, ...
template <int R>
void norm_rows(const RmsNormArgs& args, int64_t first) {
  const int64_t whole = args.cols / 16 * 16;
  const int rest = static_cast<int>(args.cols - whole);
  const float* x[R];
  f32x16 scale[R];
  for (int r = 0; r < R; ++r) {
    x[r] = args.x + (first + r) * args.cols;
    scale[r] = zero();
  }
  for (int64_t c = 0; c < whole; c += 16)
    for (int r = 0; r < R; ++r) {
      const f32x16 v = load(x[r] + c);
      scale[r] = fma(v, v, scale[r]);
    }
  for (int r = 0; r < R; ++r) {
    const f32x16 v = load_part(x[r] + whole, rest);
    const float sum = reduce_add(rest == 0 ? scale[r] : fma(v, v, scale[r]));
    const float mean = sum / static_cast<float>(args.cols);
    scale[r] = set1(1.0f / __builtin_sqrtf(mean + args.eps));
  }
  each_vector(args.cols, [&](int64_t c, int lanes) __attribute__((always_inline)) {
    const f32x16 weight = load_part(args.weight + c, lanes);
    for (int r = 0; r < R; ++r) {
      const f32x16 y = load_part(x[r] + c, lanes) * scale[r] * weight;
      store_as(args.out, args.out_dtype, (first + r) * args.cols + c, y, lanes);
    }
  });
}

}  // namespace

void rms_norm(const RmsNormArgs& args, ThreadPool& pool) {
  const int64_t enough = 1 + 8192 / args.cols;  // not worth a fork below
  const int64_t even = args.rows / (2 * pool.size()) / kTogether * kTogether;
  const bool split = args.rows > enough && even > 0 && even < enough;
  pool.parallel_for(args.rows, split ? even : enough, [&](int64_t begin, int64_t end, int) {
    for (; begin + kTogether <= end; begin += kTogether) norm_rows<kTogether>(args, begin);
    for (; begin < end; ++begin) norm_rows<1>(args, begin);
  });
}

}  // namespace ce::CE_ISA
