// Attention of a few queries over a long paged cache: reading the keys and values is the time.
//
// The work is cut into items: one chunk of 256 positions of one row and key/value head, for up to
// 16 kRowTiles query rows. Query rows are tokens x heads of the group, so that grouped heads and
// drafted tokens share what is read. A fixed number of blocks takes items in turn; how many items
// there are is counted on the device.
//
// An item, with its tiles of 64 positions copied three ahead of their use:
//   scores[query row][position] = scale q.k (+ bias), warps share out positions    tensor cores
//   maximum, exponentials and their sum of each query row                            a warp a row
//   output[query row][dim] = sum of weight x value, warps share out dims            tensor cores
// leaves (maximum, sum, output) of its chunk; a second kernel merges chunks in ascending order.
//
// Row invariance. A score is one chain of mma steps over ascending dims, a sum one fixed tree over
// the chunk's 256 places, an output one chain of mma steps over ascending positions; a query row
// owns a row of the mma, so that it meets no other. Positions past the query have weight zero and
// rows of the cache past the last query are zeros, not memory. Positions that belong to a tree are
// gathered along the query's path while loading: a tree token is an item of its own there (its rows
// are the heads of its group) and sees the tiles, places and order of plain decoding.
#include "cuda/attention_items.h"

namespace ce::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / kWarp;
constexpr int kTile = 64;  // positions of a stage, of keys or of values
constexpr int kChunkTiles = kAttentionChunk / kTile;
constexpr int kStages = 4;
constexpr int kScoreStride = kAttentionChunk + 4;  // rows start in different banks

template <int kDim, int kRowTiles>
struct Shared {
  uint4 tiles[kStages][kTile][kDim / 8];
  uint4 queries[kRowTiles * 16][kDim / 8];
  float scores[kRowTiles * 16][kScoreStride];  // later weights, 16 bits each, from a row's start
  int32_t positions[kRowTiles * 16];           // of the query rows
  int32_t limits[kRowTiles * 16];              // the last position that a query row sees, -1: none
  int64_t first_item[kAttentionMaxRows + 1];
};

// Starts the copies of tile `tile`: keys of the chunk's tiles, then values. Positions that do not
// exist become zeros.
template <int kDim, int kRowTiles>
__device__ __forceinline__ void load_tile(const AttentionArgs& args, const Item& item, int tile,
                                          int tiles, Shared<kDim, kRowTiles>& shared) {
  const CacheView& cache = args.cache;
  const uint16_t* base = static_cast<const uint16_t*>(tile < tiles ? cache.keys : cache.values);
  const int first = item.chunk * kAttentionChunk + tile % tiles * kTile;
  // A thread's rows are kThreads / (kDim / 8) apart; neighbours copy pieces of the same row.
  for (int i = static_cast<int>(threadIdx.x); i < kTile * (kDim / 8); i += kThreads) {
    const int place = i / (kDim / 8), piece = i % (kDim / 8);
    const int32_t position = first + place;
    const bool there = position >= item.begin && position < item.end && piece * 8 < cache.head_dim;
    const uint16_t* from = base;
    if (there) {
      const int32_t index = index_of_position(item.path, position);
      from += cache_offset(cache_row(args.batch, item.path.slot, index), item.kv_head,
                           cache.kv_heads, cache.head_dim) +
              piece * 8;
    }
    copy_async16(&shared.tiles[tile % kStages][place][piece ^ place % 8], from, there ? 16 : 0);
  }
}

template <int kDim, int kRowTiles>
__device__ __forceinline__ void load_queries(const AttentionArgs& args, const Item& item,
                                             Shared<kDim, kRowTiles>& shared) {
  const int group = args.heads / args.cache.kv_heads, dim = args.cache.head_dim;
  for (int i = static_cast<int>(threadIdx.x); i < kRowTiles * 16 * (kDim / 8); i += kThreads) {
    const int row = i / (kDim / 8), piece = i % (kDim / 8);
    const int q = item.first + row;
    const bool there = row < item.rows && piece * 8 < dim;
    const int64_t a = static_cast<int64_t>(item.row) * args.batch.width + q / group;
    const int64_t offset = (a * args.heads + item.kv_head * group + q % group) * dim + piece * 8;
    const uint16_t* queries = static_cast<const uint16_t*>(args.queries);
    copy_async16(&shared.queries[row][piece ^ row % 8], there ? queries + offset : queries,
                 there ? 16 : 0);
  }
  for (int row = static_cast<int>(threadIdx.x); row < kRowTiles * 16; row += kThreads) {
    const Query q =
        query_at(args.batch, item.row, row < item.rows ? (item.first + row) / group : -1);
    shared.positions[row] = q.position;
    shared.limits[row] = args.over_source && q.index >= 0 ? item.end - 1 : q.position;
  }
}

__device__ __forceinline__ float bias_of(const RelativeBias& bias, int head, int offset) {
  const int clamped = offset < -bias.reach ? -bias.reach : smaller(offset, bias.reach);
  return bias.table[head * bias.width() + bias.reach + kBiasMargin + clamped];
}

// Scores of the warp's 16 positions of a tile of keys.
template <typename T, int kDim, int kRowTiles>
__device__ __forceinline__ void score_tile(const AttentionArgs& args, const Item& item, int tile,
                                           Shared<kDim, kRowTiles>& shared) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int first = static_cast<int>(threadIdx.x) / kWarp * 16;
  float sums[kRowTiles][2][4] = {};
#pragma unroll
  for (int step = 0; step < kDim / 16; ++step) {
    // Matrices: positions 0-7 and dims 0-7, positions 0-7 and dims 8-15, positions 8-15 likewise.
    const int place = first + lane % 8 + lane / 16 * 8;
    uint32_t keys[4];
    load_matrices(keys,
                  &shared.tiles[tile % kStages][place][(2 * step + lane / 8 % 2) ^ place % 8]);
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
      if (r * 16 >= item.rows) continue;
      const int row = r * 16 + lane % 16;
      uint32_t queries[4];
      load_matrices(queries, &shared.queries[row][(2 * step + lane / 16) ^ row % 8]);
      multiply_add(T, sums[r][0], queries, keys);
      multiply_add(T, sums[r][1], queries, keys + 2);
    }
  }
  const int group = args.heads / args.cache.kv_heads;
#pragma unroll
  for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
    for (int n = 0; n < 2; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int row = r * 16 + lane / 4 + i / 2 * 8;
        const int place = tile * kTile + first + n * 8 + lane % 4 * 2 + i % 2;
        const int position = item.chunk * kAttentionChunk + place;
        const bool seen = position >= item.begin && position <= shared.limits[row];
        float score = sums[r][n][i] * args.scale;
        if (args.bias.table != nullptr && seen)
          score += bias_of(args.bias, item.kv_head * group + (item.first + row) % group,
                           position - shared.positions[row]);
        shared.scores[row][place] = seen ? score : -INFINITY;
      }
}

// Turns a chunk's scores into weights; leaves their maximum and sum in the partials.
template <typename T, int kDim, int kRowTiles>
__device__ __forceinline__ void weigh(const AttentionArgs& args, const Item& item, int tiles,
                                      float* stats, Shared<kDim, kRowTiles>& shared) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int group = args.heads / args.cache.kv_heads;
  for (int row = static_cast<int>(threadIdx.x) / kWarp; row < item.rows; row += kWarps) {
    float weights[kAttentionChunk / kWarp];
    float highest = -INFINITY;
#pragma unroll
    for (int i = 0; i < kAttentionChunk / kWarp; ++i) {
      const int place = i * kWarp + lane;
      weights[i] = place < tiles * kTile ? shared.scores[row][place] : -INFINITY;
      highest = fmaxf(highest, weights[i]);
    }
    highest = warp_max(highest);
    float sum = 0.0f;
    const float shift = highest == -INFINITY ? 0.0f : highest;  // nothing seen: all weights zero
    T* out = reinterpret_cast<T*>(shared.scores[row]);
    __syncwarp();  // every lane has its scores before weights overwrite them
#pragma unroll
    for (int i = 0; i < kAttentionChunk / kWarp; ++i) {
      const float weight = expf(weights[i] - shift);
      sum += weight;
      out[i * kWarp + lane] = from_float<T>(weight);
    }
    sum = warp_sum(sum);
    const int q = item.first + row;
    const int64_t a = static_cast<int64_t>(item.row) * args.batch.width + q / group;
    const int64_t head = item.kv_head * group + q % group;
    if (lane == 0 && highest != -INFINITY) {
      float* stat = stats + ((a * args.heads + head) * args.max_chunks + item.chunk) * 2;
      stat[0] = highest;
      stat[1] = sum;
    }
  }
}

// Adds a tile of values to the outputs; the warp owns kDim / 4 dims.
template <typename T, int kDim, int kRowTiles>
__device__ __forceinline__ void add_values(const Item& item, int tile, int tiles,
                                           const Shared<kDim, kRowTiles>& shared,
                                           float (&sums)[kRowTiles][kDim / 32][4]) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int first = static_cast<int>(threadIdx.x) / kWarp * (kDim / kWarps);
  for (int step = 0; step < kTile / 16; ++step) {
    uint32_t values[kDim / 64][4];
#pragma unroll
    for (int n = 0; n < kDim / 64; ++n) {
      // Transposed matrices: positions 0-7 and dims 0-7, positions 8-15 and dims 0-7, then the
      // next 8 dims.
      const int place = step * 16 + lane % 16;
      const int piece = first / 8 + 2 * n + lane / 16;
      load_matrices_transposed(values[n], &shared.tiles[tile % kStages][place][piece ^ place % 8]);
    }
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
      if (r * 16 >= item.rows) continue;
      const uint16_t* row = reinterpret_cast<const uint16_t*>(shared.scores[r * 16 + lane % 16]);
      uint32_t weights[4];
      load_matrices(weights, row + (tile - tiles) * kTile + step * 16 + lane / 16 * 8);
#pragma unroll
      for (int n = 0; n < kDim / 64; ++n) {
        multiply_add(T, sums[r][2 * n], weights, values[n]);
        multiply_add(T, sums[r][2 * n + 1], weights, values[n] + 2);
      }
    }
  }
}

template <int kDim, int kRowTiles>
__device__ __forceinline__ void write_outputs(const AttentionArgs& args, const Item& item,
                                              float* outputs, const Shared<kDim, kRowTiles>& shared,
                                              const float (&sums)[kRowTiles][kDim / 32][4]) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int first = static_cast<int>(threadIdx.x) / kWarp * (kDim / kWarps);
  const int group = args.heads / args.cache.kv_heads, dim = args.cache.head_dim;
#pragma unroll
  for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int row = r * 16 + lane / 4 + i * 8, q = item.first + row;
      if (row >= item.rows || shared.limits[row] < item.chunk * kAttentionChunk) continue;
      const int64_t a = static_cast<int64_t>(item.row) * args.batch.width + q / group;
      const int64_t head = item.kv_head * group + q % group;
      float* out = outputs + ((a * args.heads + head) * args.max_chunks + item.chunk) * dim;
#pragma unroll
      for (int n = 0; n < kDim / 32; ++n) {
        const int d = first + n * 8 + lane % 4 * 2;
        if (d < dim)
          *reinterpret_cast<float2*>(out + d) =
              make_float2(sums[r][n][2 * i], sums[r][n][2 * i + 1]);
      }
    }
}

// Partials are [activation row][head][chunk]: pairs (maximum, sum) first, then outputs.
__device__ __forceinline__ int64_t stats_floats(int64_t rows, int heads, int max_chunks) {
  return rows * heads * max_chunks * 2;
}

template <typename T, int kDim, int kRowTiles>
__device__ __forceinline__ void run_item(const AttentionArgs& args, const Item& item,
                                         Shared<kDim, kRowTiles>& shared) {
  const int left = item.end - item.chunk * kAttentionChunk;
  if (left <= 0) return;
  const int tiles = smaller(static_cast<int>(ceil_div(left, kTile)), kChunkTiles);
  float* stats = args.partials;
  float* outputs = args.partials + stats_floats(int64_t{args.batch.rows} * args.batch.width,
                                                args.heads, args.max_chunks);
  float sums[kRowTiles][kDim / 32][4] = {};
  load_queries(args, item, shared);
  for (int tile = 0; tile < kStages - 1; ++tile) {
    if (tile < 2 * tiles) load_tile(args, item, tile, tiles, shared);
    copy_async_commit();
  }
  for (int tile = 0; tile < 2 * tiles; ++tile) {
    copy_async_wait<kStages - 2>();
    __syncthreads();  // the tile is there, and nobody reads the buffer to be filled any more
    if (tile + kStages - 1 < 2 * tiles) load_tile(args, item, tile + kStages - 1, tiles, shared);
    copy_async_commit();
    if (tile < tiles) {
      score_tile<T>(args, item, tile, shared);
      continue;
    }
    if (tile == tiles) {
      weigh<T>(args, item, tiles, stats, shared);
      __syncthreads();  // weights are there
    }
    add_values<T>(item, tile, tiles, shared, sums);
  }
  copy_async_wait<0>();
  write_outputs(args, item, outputs, shared, sums);
  __syncthreads();  // before the next item's loads
}

template <typename T, int kDim, int kRowTiles>
__global__ void __launch_bounds__(kThreads, kRowTiles == 1 ? 2 : 1)
    attention_kernel(AttentionArgs args) {
  after_previous_launch();
  auto& shared = shared_memory<Shared<kDim, kRowTiles>>();
  constexpr int kRows = kRowTiles * 16;
  for (int r = static_cast<int>(threadIdx.x); r < args.batch.rows; r += kThreads)
    shared.first_item[r + 1] = args.cache.kv_heads * plan_items(plan_row(args, r, kRows));
  __syncthreads();
  if (threadIdx.x == 0) {
    shared.first_item[0] = 0;
    for (int r = 0; r < args.batch.rows; ++r) shared.first_item[r + 1] += shared.first_item[r];
  }
  __syncthreads();
  int row = 0;
  for (int64_t n = blockIdx.x; n < shared.first_item[args.batch.rows]; n += gridDim.x) {
    while (n >= shared.first_item[row + 1]) ++row;
    run_item<T>(args, item_at(args, row, n - shared.first_item[row], kRows), shared);
  }
}

// One warp per activation row and head: chunks in ascending order from a common maximum.
template <typename T>
__global__ void __launch_bounds__(kThreads) merge_kernel(AttentionArgs args) {
  after_previous_launch();
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t rows = int64_t{args.batch.rows} * args.batch.width;
  const int64_t warp = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) / kWarp;
  if (warp >= rows * args.heads) return;
  const int64_t a = warp / args.heads;
  const int r = static_cast<int>(a / args.batch.width), dim = args.cache.head_dim;
  const Query q = query_at(args.batch, r, static_cast<int>(a % args.batch.width));
  const int32_t end = args.over_source && q.index >= 0 ? source_of(args, r) : q.position + 1;
  const int begin = first_chunk(args, r), chunks = static_cast<int>(ceil_div(end, kAttentionChunk));
  const float* stats = args.partials + warp * args.max_chunks * 2;
  const float* outputs = args.partials + stats_floats(rows, args.heads, args.max_chunks) +
                         warp * args.max_chunks * dim;
  float highest = -INFINITY, sum = 0.0f;
  for (int c = begin; c < chunks; ++c) highest = fmaxf(highest, stats[2 * c]);
  for (int c = begin; c < chunks; ++c)
    sum = fmaf(expf(stats[2 * c] - highest), stats[2 * c + 1], sum);
  for (int d = lane; d < dim; d += kWarp) {
    float out = 0.0f;
    for (int c = begin; c < chunks; ++c)
      out = fmaf(expf(stats[2 * c] - highest), outputs[static_cast<int64_t>(c) * dim + d], out);
    static_cast<T*>(args.out)[warp * dim + d] = from_float<T>(end > 0 ? out / sum : 0.0f);
  }
}

template <typename T, int kDim, int kRowTiles>
void launch(const AttentionArgs& args, Stream stream) {
  // Two small blocks share a multiprocessor of 164 KB (sm_80) and more.
  static_assert(kRowTiles > 1 || 2 * (sizeof(Shared<kDim, kRowTiles>) + 1024) <= 228 << 10);
  static_assert(sizeof(Shared<kDim, kRowTiles>) <= 163 << 10);
  const int blocks = args.multiprocessors * (kRowTiles == 1 ? 2 : 1);
  CE_LAUNCH((attention_kernel<T, kDim, kRowTiles>), static_cast<unsigned>(blocks), kThreads,
            sizeof(Shared<kDim, kRowTiles>), stream, args);
  const int64_t warps = int64_t{args.batch.rows} * args.batch.width * args.heads;
  CE_LAUNCH((merge_kernel<T>), static_cast<unsigned>(ceil_div(warps * kWarp, kThreads)), kThreads,
            0, stream, args);
}

// Many query rows are read for together where the shared memory holds them; the bits are the same.
template <typename T, int kDim>
void launch_wide_or_narrow(const AttentionArgs& args, int rows, Stream stream) {
  const bool holds = sizeof(Shared<kDim, 4>) <= static_cast<size_t>(args.shared_limit);
  const int group = args.heads / args.cache.kv_heads;
  CE_CHECK(holds || group <= 16, "attention: ", group, " heads share keys, which needs ",
           sizeof(Shared<kDim, 4>), " bytes of shared memory, this GPU has ", args.shared_limit,
           " for a block: at most 16 heads may share keys here");
  if (group > 16 || (rows > 16 && holds))
    launch<T, kDim, 4>(args, stream);
  else
    launch<T, kDim, 1>(args, stream);
}

}  // namespace

int64_t attention_partial_floats(int64_t activation_rows, int heads, int head_dim, int max_chunks) {
  return activation_rows * heads * max_chunks * (2 + head_dim);
}

void attention(const AttentionArgs& args, Stream stream) {
  const int dim = args.cache.head_dim, kv_heads = args.cache.kv_heads;
  CE_CHECK(dim > 0 && dim <= 128 && dim % 8 == 0,
           "attention: head_dim must be a multiple of 8 up to 128, got ", dim);
  CE_CHECK(kv_heads > 0 && args.heads % kv_heads == 0, "attention: ", args.heads,
           " heads are not a multiple of ", kv_heads, " key/value heads");
  CE_CHECK(args.heads / kv_heads <= 64, "attention: at most 64 heads share keys, got ",
           args.heads / kv_heads);
  CE_CHECK(args.batch.rows <= kAttentionMaxRows, "attention: at most ", kAttentionMaxRows,
           " rows in a pass, got ", args.batch.rows);
  CE_CHECK(args.sources != nullptr || !args.over_source, "attention over a source needs sources");
  if (args.batch.rows <= 0 || args.batch.width <= 0) return;
  const int rows = args.batch.width * (args.heads / kv_heads);
  CE_DISPATCH_ELEMENT(args.cache.dtype, T, {
    if (dim <= 64)
      launch_wide_or_narrow<T, 64>(args, rows, stream);
    else
      launch_wide_or_narrow<T, 128>(args, rows, stream);
  });
}

}  // namespace ce::cuda
