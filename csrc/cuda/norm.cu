// Root-mean-square layer norm: out = x / sqrt(mean(x^2) + eps) * weight. A block a row; thread i
// sums columns i, i + 256, ..., threads are added in one fixed tree.
#include "cuda/intrinsics.h"

namespace ce::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;

struct Shared {
  float sums[kWarps];
};

template <typename T>
__global__ void __launch_bounds__(kThreads) rms_norm_kernel(RmsNormArgs args) {
  after_previous_launch();
  auto& shared = shared_memory<Shared>();
  const int thread = static_cast<int>(threadIdx.x);
  const float* x = args.x + blockIdx.x * args.cols;
  float sum = 0.0f;
  for (int64_t c = thread; c < args.cols; c += kThreads) sum = fmaf(x[c], x[c], sum);
  sum = warp_sum(sum);
  if (thread % kWarp == 0) shared.sums[thread / kWarp] = sum;
  __syncthreads();
  sum = warp_sum(thread % kWarp < kWarps ? shared.sums[thread % kWarp] : 0.0f);
  const float scale = 1.0f / sqrtf(sum / static_cast<float>(args.cols) + args.eps);
  T* out = static_cast<T*>(args.out) + blockIdx.x * args.out_stride;
  for (int64_t c = thread; c < args.cols; c += kThreads)
    out[c] = from_float<T>(x[c] * scale * args.weight[c]);
}

}  // namespace

void rms_norm(const RmsNormArgs& args, Stream stream) {
  if (args.rows <= 0) return;
  CE_DISPATCH_ELEMENT(args.dtype, T,
                      CE_LAUNCH((rms_norm_kernel<T>), static_cast<unsigned>(args.rows), kThreads,
                                sizeof(Shared), stream, args));
}

}  // namespace ce::cuda
