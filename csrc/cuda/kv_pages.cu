// The paged cache: rotate and store, commit of an accepted tree path, page copies for forks.
#include "cuda/batch.h"

namespace ce::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kVector = 8;  // elements in 16 bytes

// One warp per activation row and head: query heads, then key heads, then value heads.
template <typename T>
__global__ void __launch_bounds__(kThreads) rope_store_kernel(RopeStoreArgs args) {
  after_previous_launch();
  const CacheView& cache = args.cache;
  const int64_t all_heads = args.heads + 2 * cache.kv_heads;
  const int64_t warp = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) / kWarp;
  const int64_t a = warp / all_heads;
  const int head = static_cast<int>(warp % all_heads);
  if (a >= int64_t{args.batch.rows} * args.batch.width) return;
  const Query q = query_at(args.batch, static_cast<int>(a / args.batch.width),
                           static_cast<int>(a % args.batch.width));
  if (q.index < 0) return;
  const int dim = cache.head_dim, half = dim / 2;
  const float* x = args.qkv + warp * dim;
  T* to = static_cast<T*>(args.queries) + (a * args.heads + head) * dim;
  bool rotates = args.cos != nullptr;
  if (head >= args.heads) {
    const bool is_key = head < args.heads + cache.kv_heads;
    rotates = rotates && is_key;
    const int kv_head = (head - args.heads) % cache.kv_heads;
    const int64_t offset =
        cache_offset(cache_row(args.batch, q.slot, q.index), kv_head, cache.kv_heads, dim);
    to = static_cast<T*>(is_key ? cache.keys : cache.values) + offset;
  }
  for (int i = static_cast<int>(threadIdx.x) % kWarp; i < half; i += kWarp) {
    const float first = x[i], second = x[half + i];
    const float c = rotates ? args.cos[a * half + i] : 1.0f;
    const float s = rotates ? args.sin[a * half + i] : 0.0f;
    to[i] = from_float<T>(rotates ? first * c - second * s : first);
    to[half + i] = from_float<T>(rotates ? second * c + first * s : second);
  }
}

// A thread owns a Piece of every vector of a plane and moves them node after node: what a node
// overwrites, an earlier one has moved away (or nobody wants), so no thread waits for another.
template <typename Piece>
__global__ void __launch_bounds__(kThreads) commit_kernel(CommitArgs args) {
  after_previous_launch();
  constexpr int kElements = sizeof(Piece) / 2;
  const int r = static_cast<int>(blockIdx.z);
  const int32_t slot = args.batch.slots[r];
  const int vectors = args.head_dim / kElements;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (slot < 0 || i >= int64_t{args.kv_heads} * vectors) return;
  uint16_t* plane = static_cast<uint16_t*>(args.cache) + blockIdx.y * args.plane_elements;
  const int head = static_cast<int>(i / vectors),
            column = static_cast<int>(i % vectors) * kElements;
  const int32_t base = args.batch.bases[r];
  const int32_t* path = args.paths + static_cast<int64_t>(r) * args.path_stride;
  const auto at = [&](int32_t index) {
    const int64_t row = cache_row(args.batch, slot, index);
    return reinterpret_cast<Piece*>(plane + cache_offset(row, head, args.kv_heads, args.head_dim) +
                                    column);
  };
  for (int depth = 0; depth < args.path_lengths[r]; ++depth)
    if (path[depth] != depth) *at(base + depth) = *at(base + path[depth]);
}

__global__ void __launch_bounds__(kThreads) copy_pages_kernel(CopyPagesArgs args) {
  after_previous_launch();
  const int32_t source = args.pairs[2 * blockIdx.z], target = args.pairs[2 * blockIdx.z + 1];
  const int64_t i = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kVector;
  if (source < 0 || target < 0 || i >= args.page_elements) return;
  uint16_t* plane = static_cast<uint16_t*>(args.cache) + blockIdx.y * args.plane_elements;
  *reinterpret_cast<uint4*>(plane + target * args.page_elements + i) =
      *reinterpret_cast<const uint4*>(plane + source * args.page_elements + i);
}

template <typename Piece>
void launch_commit(const CommitArgs& args, Stream stream) {
  const int64_t vectors = int64_t{args.kv_heads} * args.head_dim * 2 / sizeof(Piece);
  const dim3 grid(static_cast<unsigned>(ceil_div(vectors, kThreads)),
                  static_cast<unsigned>(args.planes), static_cast<unsigned>(args.batch.rows));
  CE_LAUNCH((commit_kernel<Piece>), grid, kThreads, 0, stream, args);
}

}  // namespace

void rope_store(const RopeStoreArgs& args, Stream stream) {
  CE_CHECK(args.cache.head_dim % 2 == 0, "rope_store: head_dim must be even, got ",
           args.cache.head_dim);
  const int64_t warps =
      int64_t{args.batch.rows} * args.batch.width * (args.heads + 2 * args.cache.kv_heads);
  if (warps <= 0) return;
  CE_DISPATCH_ELEMENT(
      args.cache.dtype, T,
      CE_LAUNCH((rope_store_kernel<T>), static_cast<unsigned>(ceil_div(warps * kWarp, kThreads)),
                kThreads, 0, stream, args));
}

void commit_path(const CommitArgs& args, Stream stream) {
  CE_CHECK(args.head_dim % 2 == 0, "commit_path: head_dim must be even, got ", args.head_dim);
  if (args.batch.rows <= 0 || args.planes <= 0) return;
  if (args.head_dim % kVector == 0)
    launch_commit<uint4>(args, stream);
  else
    launch_commit<uint32_t>(args, stream);
}

void copy_pages(const CopyPagesArgs& args, Stream stream) {
  CE_CHECK(args.page_elements % kVector == 0, "copy_pages: page_elements must be a multiple of ",
           kVector, ", got ", args.page_elements);
  if (args.count <= 0) return;
  const dim3 grid(static_cast<unsigned>(ceil_div(args.page_elements, kThreads * kVector)),
                  static_cast<unsigned>(args.planes), static_cast<unsigned>(args.count));
  CE_LAUNCH(copy_pages_kernel, grid, kThreads, 0, stream, args);
}

}  // namespace ce::cuda
