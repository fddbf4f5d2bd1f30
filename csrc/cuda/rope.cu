// Angles of rotary position embedding (Su et al., arXiv 2104.09864), once per pass: float32
// products of position and inverse frequency, as models are trained with.
#include "cuda/batch.h"

namespace ce::cuda {
namespace {

constexpr int kThreads = 128;

__global__ void __launch_bounds__(kThreads) rope_angles_kernel(RopeAnglesArgs args) {
  after_previous_launch();
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t a = i / args.half;
  if (a >= int64_t{args.batch.rows} * args.batch.width) return;
  const Query q = query_at(args.batch, static_cast<int>(a / args.batch.width),
                           static_cast<int>(a % args.batch.width));
  const int32_t position = q.position < 0 ? 0 : q.position;
  const float angle = static_cast<float>(position) * args.inv_freq[i % args.half];
  args.cos[i] = cosf(angle);
  args.sin[i] = sinf(angle);
}

}  // namespace

void rope_angles(const RopeAnglesArgs& args, Stream stream) {
  const int64_t items = int64_t{args.batch.rows} * args.batch.width * args.half;
  if (items <= 0) return;
  CE_LAUNCH(rope_angles_kernel, static_cast<unsigned>(ceil_div(items, kThreads)), kThreads, 0,
            stream, args);
}

}  // namespace ce::cuda
