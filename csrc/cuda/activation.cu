// Gates of feed-forward layers whose halves lie side by side in one matrix: what `linear` does to
// its sums where the halves come in whole tiles.
#include "cuda/gates.h"

namespace ce::cuda {
namespace {

constexpr int kThreads = 256;

template <typename T, bool kGelu>
__global__ void __launch_bounds__(kThreads) gate_kernel(GateArgs args) {
  after_previous_launch();
  const int64_t c = static_cast<int64_t>(blockIdx.y) * kThreads + threadIdx.x;
  const int64_t row = blockIdx.x;
  if (c >= args.cols) return;
  const float* gate = args.gate_up + row * 2 * args.cols;
  const float factor = kGelu ? gelu(gate[c]) : silu(gate[c]);
  static_cast<T*>(args.out)[row * args.out_stride + c] =
      from_float<T>(factor * gate[args.cols + c]);
}

template <bool kGelu>
void launch(const GateArgs& args, Stream stream) {
  if (args.rows <= 0) return;
  const dim3 grid(static_cast<unsigned>(args.rows),
                  static_cast<unsigned>(ceil_div(args.cols, kThreads)));
  CE_DISPATCH_ELEMENT(args.dtype, T,
                      CE_LAUNCH((gate_kernel<T, kGelu>), grid, kThreads, 0, stream, args));
}

}  // namespace

void swiglu(const GateArgs& args, Stream stream) {
  launch<false>(args, stream);
}

void geglu(const GateArgs& args, Stream stream) {
  launch<true>(args, stream);
}

}  // namespace ce::cuda
