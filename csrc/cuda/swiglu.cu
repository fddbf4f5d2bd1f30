// SwiGLU gate: out = silu(gate) * up, with gate and up side by side in one matrix.
#include "cuda/intrinsics.h"

namespace ce::cuda {
namespace {

constexpr int kThreads = 256;

template <typename T>
__global__ void __launch_bounds__(kThreads) swiglu_kernel(SwigluArgs args) {
  const int64_t c = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t row = blockIdx.y;
  if (c >= args.cols) return;
  const float* gate = args.gate_up + row * 2 * args.cols;
  const float a = gate[c];
  static_cast<T*>(args.out)[row * args.out_stride + c] =
      from_float<T>(a / (1.0f + expf(-a)) * gate[args.cols + c]);
}

}  // namespace

void swiglu(const SwigluArgs& args, Stream stream) {
  if (args.rows <= 0) return;
  CE_CHECK(args.rows <= 65535, "swiglu: rows must be <= 65535, got ", args.rows);
  const dim3 grid(static_cast<unsigned>(ceil_div(args.cols, kThreads)),
                  static_cast<unsigned>(args.rows));
  CE_DISPATCH_ELEMENT(args.dtype, T,
                      CE_LAUNCH((swiglu_kernel<T>), grid, kThreads, 0, stream, args));
}

}  // namespace ce::cuda
