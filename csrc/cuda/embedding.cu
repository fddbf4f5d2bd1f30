// Embedding look-up, and the choice of the rows whose logits are wanted.
#include "cuda/batch.h"

namespace ce::cuda {
namespace {

constexpr int kThreads = 128;

// Element [row, k] of a matrix packed as LinearArgs says.
__device__ __forceinline__ int64_t packed_index(int64_t row, int64_t k, int64_t cols) {
  const int64_t k_tiles = ceil_div(cols, kLinearStep) * (kLinearStep / 16);
  const int64_t tile = row / 16 * k_tiles + k / 16;
  const int lane = static_cast<int>(row % 8 * 4 + k % 8 / 2);
  const int element = static_cast<int>(k % 16 / 8 * 4 + row % 16 / 8 * 2 + k % 2);
  return (tile * kWarp + lane) * 8 + element;
}

template <typename T>
__global__ void __launch_bounds__(kThreads) embedding_kernel(EmbeddingArgs args) {
  after_previous_launch();
  const int64_t a = blockIdx.x;
  const Query q = query_at(args.batch, static_cast<int>(a / args.batch.width),
                           static_cast<int>(a % args.batch.width));
  const int32_t token =
      q.index < 0 ? -1 : args.batch.tokens[q.slot * args.batch.token_stride + q.index];
  const T* table = static_cast<const T*>(args.table);
  for (int64_t c = threadIdx.x; c < args.cols; c += kThreads) {
    float value = 0.0f;
    if (token >= 0 && token < args.vocab)
      value =
          to_float(table[args.packed ? packed_index(token, c, args.cols) : token * args.cols + c]);
    args.out[a * args.cols + c] = value;
  }
}

__global__ void __launch_bounds__(kThreads) select_kernel(SelectArgs args) {
  after_previous_launch();
  const int64_t out = blockIdx.x;
  const int r = static_cast<int>(out / args.logit_width),
            j = static_cast<int>(out % args.logit_width);
  const bool hole = args.batch.slots[r] < 0 || j >= args.wanted[r];
  const int64_t t = args.batch.counts[r] - args.wanted[r] + j;
  const uint32_t* x = args.x + (static_cast<int64_t>(r) * args.batch.width + t) * args.words;
  for (int64_t c = threadIdx.x; c < args.words; c += kThreads)
    args.out[out * args.words + c] = hole ? 0 : x[c];
}

}  // namespace

void embedding(const EmbeddingArgs& args, Stream stream) {
  const int64_t rows = int64_t{args.batch.rows} * args.batch.width;
  if (rows <= 0) return;
  CE_DISPATCH_ELEMENT(
      args.dtype, T,
      CE_LAUNCH((embedding_kernel<T>), static_cast<unsigned>(rows), kThreads, 0, stream, args));
}

void select_logit_rows(const SelectArgs& args, Stream stream) {
  const int64_t rows = int64_t{args.batch.rows} * args.logit_width;
  if (rows <= 0) return;
  CE_LAUNCH(select_kernel, static_cast<unsigned>(rows), kThreads, 0, stream, args);
}

}  // namespace ce::cuda
