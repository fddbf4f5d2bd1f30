// The weight-streaming product of decoding: every weight is read once for up to 64 rows, and the
// time is that of reading it.
//
// A block owns 128 outputs and one range of K; a warp owns 32 of the outputs. Weights lie packed in
// register order, so a lane copies exactly the 16 bytes that it will multiply with: 512 contiguous
// bytes a warp, no bank conflicts, no exchange between lanes. The activations are the small operand
// (columns of the mma): 16 rows a tile, shared by the block's warps. Four stages of 16 KB of
// weights, three of them in flight, two blocks a multiprocessor: 96 KB on their way.
//
// Ranges of K leave their sums in the workspace; the block that finishes an output tile last adds
// them in ascending order, whoever it is.
#include "cuda/gates.h"

namespace ce::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / kWarp;
constexpr int kStages = 4;
constexpr int kSteps = kLinearStep / 16;                  // mma steps of a stage
constexpr int kWarpTiles = kLinearOutputs / kWarps / 16;  // tiles of 16 outputs a warp owns
constexpr int kChunks = kLinearStep / 8;                  // 16-byte pieces of a row of x in a stage
constexpr int kMaxSplits = 16;

template <int kRowTiles>
struct Shared {
  uint4 weights[kStages][kWarps][kWarpTiles][kSteps][kWarp];
  uint4 x[kStages][kRowTiles * 16][kChunks];
  bool is_last;
};

// Pieces of eight rows land in different banks.
__device__ __forceinline__ int swizzled(int row, int chunk) {
  return chunk ^ (row % kChunks);
}

// The part of the product that a block computes.
struct Tile {
  int group;         // of kRowTiles * 16 rows
  int block, split;  // of outputs, of K
  int first, end;    // stages of K
};

template <int kRowTiles>
__device__ __forceinline__ void load_weights(const LinearArgs& args, const Tile& tile, int stage,
                                             Shared<kRowTiles>& shared) {
  const int thread = static_cast<int>(threadIdx.x), warp = thread / kWarp, lane = thread % kWarp;
  const int buffer = stage % kStages;
  const int64_t k_tiles = ceil_div(args.k, kLinearStep) * kSteps;
  const uint4* weights = static_cast<const uint4*>(args.weights);
  for (int i = 0; i < kWarpTiles; ++i) {
    const int64_t row = (static_cast<int64_t>(tile.block) * kWarps + warp) * kWarpTiles + i;
    const uint4* from = weights + (row * k_tiles + stage * kSteps) * kWarp + lane;
    for (int s = 0; s < kSteps; ++s)
      copy_constant16(&shared.weights[buffer][warp][i][s][lane], from + s * kWarp);
  }
}

template <int kRowTiles>
__device__ __forceinline__ void load_x(const LinearArgs& args, const Tile& tile, int stage,
                                       Shared<kRowTiles>& shared) {
  const int thread = static_cast<int>(threadIdx.x), buffer = stage % kStages;
  const uint16_t* x = static_cast<const uint16_t*>(args.x);
  for (int i = thread; i < kRowTiles * 16 * kChunks; i += kThreads) {
    const int row = i / kChunks, chunk = i % kChunks;
    const int64_t source = static_cast<int64_t>(tile.group) * kRowTiles * 16 + row;
    const int64_t k = static_cast<int64_t>(stage) * kLinearStep + chunk * 8;
    const int64_t left = source < args.rows ? args.k - k : 0;
    const int bytes = left >= 8 ? 16 : left > 0 ? static_cast<int>(left) * 2 : 0;
    const uint16_t* from = bytes > 0 ? x + source * args.x_stride + k : x;
    copy_async16(&shared.x[buffer][row][swizzled(row, chunk)], from, bytes);
  }
}

template <typename T, int kRowTiles>
__device__ __forceinline__ void multiply_stage(const Shared<kRowTiles>& shared, int stage,
                                               float (&sums)[kWarpTiles][2 * kRowTiles][4]) {
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int buffer = stage % kStages;
#pragma unroll
  for (int s = 0; s < kSteps; ++s) {
    uint4 weights[kWarpTiles];
#pragma unroll
    for (int i = 0; i < kWarpTiles; ++i) weights[i] = shared.weights[buffer][warp][i][s][lane];
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
      // Matrices: rows 0-7 and k 0-7, rows 0-7 and k 8-15, then rows 8-15 likewise.
      const int row = r * 16 + lane % 8 + lane / 16 * 8, chunk = 2 * s + lane / 8 % 2;
      uint32_t x[4];
      load_matrices(x, &shared.x[buffer][row][swizzled(row, chunk)]);
#pragma unroll
      for (int i = 0; i < kWarpTiles; ++i) {
        const uint32_t a[4] = {weights[i].x, weights[i].y, weights[i].z, weights[i].w};
        multiply_add(T, sums[i][2 * r], a, x);
        multiply_add(T, sums[i][2 * r + 1], a, x + 2);
      }
    }
  }
}

// Leaves the block's sums in the workspace. The last of the blocks that share the outputs gets the
// sums of all of them and true.
template <int kRowTiles>
__device__ __forceinline__ bool merge_splits(const LinearArgs& args, const Tile& tile, int splits,
                                             bool& is_last,
                                             float (&sums)[kWarpTiles][2 * kRowTiles][4]) {
  constexpr int kVectors = kWarpTiles * 2 * kRowTiles;
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t blocks = ceil_div(args.n, kLinearOutputs);
  const int64_t output = tile.group * blocks + tile.block;
  float4* partials =
      reinterpret_cast<float4*>(args.workspace) + output * splits * kVectors * kThreads + thread;
  float4* mine = partials + static_cast<int64_t>(tile.split) * kVectors * kThreads;
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    const float* sum = sums[i / (2 * kRowTiles)][i % (2 * kRowTiles)];
    mine[i * kThreads] = make_float4(sum[0], sum[1], sum[2], sum[3]);
  }
  __threadfence();
  __syncthreads();
  if (thread == 0) is_last = atomicAdd(&args.counters[output], 1) == splits - 1;
  __syncthreads();
  if (!is_last) return false;
  __threadfence();
  if (thread == 0) args.counters[output] = 0;
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    float* sum = sums[i / (2 * kRowTiles)][i % (2 * kRowTiles)];
    float4 total = __ldcg(partials + i * kThreads);
    for (int split = 1; split < splits; ++split) {
      const float4 next = __ldcg(partials + (split * kVectors + i) * kThreads);
      total = make_float4(total.x + next.x, total.y + next.y, total.z + next.z, total.w + next.w);
    }
    sum[0] = total.x, sum[1] = total.y, sum[2] = total.z, sum[3] = total.w;
  }
  return true;
}

__device__ __forceinline__ float biased(const LinearArgs& args, int64_t output, float sum) {
  return args.bias != nullptr && output < args.n ? sum + args.bias[output] : sum;
}

__host__ __device__ constexpr bool is_gate(LinearOutput output) {
  return output == LinearOutput::swiglu || output == LinearOutput::geglu;
}

// One lane's sums of a tile of 16 outputs and 8 rows: output g and g + 8 of two rows.
template <typename T>
__device__ __forceinline__ void write_tile(const LinearArgs& args, int64_t first_output,
                                           int64_t first_row, const float* sums) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  for (int i = 0; i < 2; ++i) {
    const int64_t row = first_row + lane % 4 * 2 + i;
    if (row >= args.rows) continue;
    const int64_t low = first_output + lane / 4, high = low + 8;
    const float a = biased(args, low, sums[i]), b = biased(args, high, sums[2 + i]);
    T* elements = static_cast<T*>(args.y) + row * args.y_stride;
    if (is_gate(args.output)) {
      const int64_t column = first_output / 2 + lane / 4;
      const float gate = args.output == LinearOutput::swiglu ? silu(a) : gelu(a);
      if (column < args.y_cols) elements[column] = from_float<T>(gate * b);
      continue;
    }
    if (args.output == LinearOutput::relu || args.output == LinearOutput::round) {
      const float least = args.output == LinearOutput::relu ? 0.0f : -INFINITY;
      if (low < args.n) elements[low] = from_float<T>(a < least ? least : a);
      if (high < args.n) elements[high] = from_float<T>(b < least ? least : b);
      continue;
    }
    float* y = static_cast<float*>(args.y) + row * args.y_stride;
    const bool add = args.output == LinearOutput::add;
    if (low < args.n) y[low] = add ? y[low] + a : a;
    if (high < args.n) y[high] = add ? y[high] + b : b;
  }
}

// `ahead`: the first stages' weights are on their way, each stage a group of copies, before the
// launch in front has ended; groups of x follow. Else a stage is one group.
template <typename T, int kRowTiles>
__global__ void __launch_bounds__(kThreads, 2)
    linear_kernel(LinearArgs args, int splits, bool ahead) {
  start_next_launch();
  auto& shared = shared_memory<Shared<kRowTiles>>();
  const int stages = static_cast<int>(ceil_div(args.k, kLinearStep));
  const int split = static_cast<int>(blockIdx.z);
  const Tile tile{static_cast<int>(blockIdx.x), static_cast<int>(blockIdx.y), split,
                  stages * split / splits, stages * (split + 1) / splits};
  float sums[kWarpTiles][2 * kRowTiles][4] = {};
  for (int i = 0; ahead && i < kStages - 1; ++i) {
    if (tile.first + i < tile.end) load_weights(args, tile, tile.first + i, shared);
    copy_async_commit();
  }
  wait_for_previous_launch();
  for (int i = 0; i < kStages - 1; ++i) {
    if (tile.first + i < tile.end) {
      if (!ahead) load_weights(args, tile, tile.first + i, shared);
      load_x(args, tile, tile.first + i, shared);
    }
    copy_async_commit();
  }
  for (int stage = tile.first; stage < tile.end; ++stage) {
    copy_async_wait<kStages - 2>();
    __syncthreads();  // this stage's x is there, and nobody reads the buffer to be filled any more
    if (stage + kStages - 1 < tile.end) {
      load_weights(args, tile, stage + kStages - 1, shared);
      load_x(args, tile, stage + kStages - 1, shared);
    }
    copy_async_commit();
    multiply_stage<T>(shared, stage, sums);
  }
  copy_async_wait<0>();
  if (splits > 1 && !merge_splits<kRowTiles>(args, tile, splits, shared.is_last, sums)) return;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
#pragma unroll
  for (int i = 0; i < kWarpTiles; ++i) {
    const int64_t tile_row = (static_cast<int64_t>(tile.block) * kWarps + warp) * kWarpTiles + i;
#pragma unroll
    for (int j = 0; j < 2 * kRowTiles; ++j)
      write_tile<T>(args, tile_row * 16, (static_cast<int64_t>(tile.group) * kRowTiles * 2 + j) * 8,
                    sums[i][j]);
  }
}

int row_tiles(int64_t rows) {
  return rows <= 16 ? 1 : rows <= 32 ? 2 : 4;
}

template <typename T, int kRowTiles>
void launch(const LinearArgs& args, Stream stream) {
  static_assert(sizeof(Shared<kRowTiles>) <= 99 << 10);  // the least that a supported GPU allows
  const int splits = linear_splits(args.n, args.k, args.multiprocessors);
  const dim3 grid(static_cast<unsigned>(ceil_div(args.rows, kRowTiles * 16)),
                  static_cast<unsigned>(ceil_div(args.n, kLinearOutputs)),
                  static_cast<unsigned>(splits));
  CE_LAUNCH((linear_kernel<T, kRowTiles>), grid, kThreads, sizeof(Shared<kRowTiles>), stream, args,
            splits, dependent_launch.load());
}

}  // namespace

// The fewest splits among those that take the least time on paper: waves of blocks, each as long
// as its stages and the filling of its pipeline.
int linear_splits(int64_t n, int64_t k, int multiprocessors) {
  const int64_t stages = ceil_div(k, kLinearStep), blocks = ceil_div(n, kLinearOutputs);
  int best = 1;
  int64_t least = INT64_MAX;
  for (int splits = 1; splits <= kMaxSplits && splits <= stages; ++splits) {
    const int64_t waves = ceil_div(blocks * splits, 2 * int64_t{multiprocessors});
    const int64_t time = waves * (ceil_div(stages, splits) + kStages);
    if (time < least) best = splits, least = time;
  }
  return best;
}

int64_t linear_workspace_floats(int64_t n, int64_t k, int64_t rows, int multiprocessors) {
  const int splits = linear_splits(n, k, multiprocessors);
  if (splits == 1) return 0;
  const int64_t group = row_tiles(rows) * 16;
  return splits * ceil_div(n, kLinearOutputs) * kLinearOutputs * ceil_div(rows, group) * group;
}

int64_t linear_counters(int64_t n, int64_t rows) {
  return ceil_div(n, kLinearOutputs) * ceil_div(rows, row_tiles(rows) * 16);
}

void linear(const LinearArgs& args, Stream stream) {
  CE_CHECK(args.n > 0 && args.k > 0, "linear: n and k must be > 0, got ", args.n, " and ", args.k);
  CE_CHECK(args.x_stride % 8 == 0 && args.x_stride >= args.k,
           "linear: x_stride must be a multiple of 8 and >= k = ", args.k, ", got ", args.x_stride);
  CE_CHECK(!is_gate(args.output) || args.n % 16 == 0,
           "linear: a gate needs n in whole tiles of 16, got ", args.n);
  CE_CHECK(args.multiprocessors > 0, "linear: multiprocessors must be > 0, got ",
           args.multiprocessors);
  if (args.rows <= 0) return;
  CE_DISPATCH_ELEMENT(args.dtype, T, {
    switch (row_tiles(args.rows)) {
      case 1:
        launch<T, 1>(args, stream);
        break;
      case 2:
        launch<T, 2>(args, stream);
        break;
      default:
        launch<T, 4>(args, stream);
    }
  });
}

}  // namespace ce::cuda
