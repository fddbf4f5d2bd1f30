// y = x W^T for few rows at the speed of reading W once, and for many rows at the speed of the
// arithmetic units. W is streamed in blocks of 32 columns; a tile of up to kTileRows rows keeps its
// sums in registers while it walks down the block.
//
// Row invariance: each y[r, c] is one chain of fused multiply-adds over ascending k, whatever the
// tile, the slab or the thread. Tiles share nothing but the weights; a slab ends by storing the
// sums exactly and the next one resumes from them.
#include "ce/cpu_kernels.h"
#include "ce/simd.h"

namespace ce::CE_ISA {
namespace {

// One step of a chain is 4 bytes of x per row and 128 bytes of W per block, for both dtypes: one
// f32 element, or a pair of bf16 (two f32 after widening, the odd one first).
constexpr int kStepBytes = 128;
constexpr int kGroupRows = 112;  // rows whose sums wait on the stack between slabs
constexpr int kSlabSteps = 128;  // 16 KB of W: stays in the first cache while all tiles pass

#if defined(__AVX512F__)
constexpr int kTileRows = 14;
#elif defined(__AVX2__)
constexpr int kTileRows = 6;
#else
constexpr int kTileRows = 2;
#endif

#if defined(__AVX512BF16__)
constexpr bool kNativePairs = true;
#else
constexpr bool kNativePairs = false;
#endif

// How the weights of a step are read and multiplied.
enum class Mode { f32, pairs, widened };
constexpr Mode kPairMode = kNativePairs ? Mode::pairs : Mode::widened;
constexpr int lanes_per_step(Mode mode) {
  return mode == Mode::widened ? 2 : 1;
}

struct TileArgs {
  const char* w;   // first step of the slab
  const float* x;  // [steps][rows], or [steps][2][rows] when widened
  int64_t steps;
  float* sums;           // [rows][32]
  bool first;            // start from zero instead of from sums
  const char* prefetch;  // kPrefetchLines lines a step
};

static inline void prefetch_line(const char* p) {
  __builtin_prefetch(p, 0, 3);
}

#if defined(__AVX512F__)
static inline f32x16 load_even(const char* w) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_loadu_si512(w), 16))};
}
static inline f32x16 load_odd(const char* w) {
  return {_mm512_castsi512_ps(
      _mm512_and_si512(_mm512_loadu_si512(w), _mm512_set1_epi32(static_cast<int>(0xffff0000u))))};
}
#elif defined(__AVX2__)
static inline __m256i load_half(const char* w) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(w));
}
static inline f32x16 load_even(const char* w) {
  return {_mm256_castsi256_ps(_mm256_slli_epi32(load_half(w), 16)),
          _mm256_castsi256_ps(_mm256_slli_epi32(load_half(w + 32), 16))};
}
static inline f32x16 load_odd(const char* w) {
  const __m256i high = _mm256_set1_epi32(static_cast<int>(0xffff0000u));
  return {_mm256_castsi256_ps(_mm256_and_si256(load_half(w), high)),
          _mm256_castsi256_ps(_mm256_and_si256(load_half(w + 32), high))};
}
#else
static inline f32x16 load_bits(const char* w, uint32_t mask, int shift) {
  uint32_t bits[16];
  std::memcpy(bits, w, sizeof bits);
  for (uint32_t& b : bits) b = (b & mask) << shift;
  f32x16 r;
  std::memcpy(r.v, bits, sizeof bits);
  return r;
}
static inline f32x16 load_even(const char* w) {
  return load_bits(w, 0xffffu, 16);
}
static inline f32x16 load_odd(const char* w) {
  return load_bits(w, 0xffff0000u, 0);
}
#endif

static inline const float* floats(const char* p) {
  return reinterpret_cast<const float*>(p);
}

#if defined(__AVX512BF16__)
static inline f32x16 dot_pairs(f32x16 sum, const char* w, const float* x) {
  const __m512bh a = (__m512bh)_mm512_loadu_si512(w);
  const __m512bh b = (__m512bh)_mm512_castps_si512(_mm512_set1_ps(*x));
  return {_mm512_dpbf16_ps(sum.v, a, b)};
}
#endif

// Adds one step of R rows to their sums of V vectors of columns.
template <int R, int V, Mode kMode>
static inline void add_step(f32x16 (&sum)[R][V], const char* w, const float* x) {
  if constexpr (kMode == Mode::pairs) {
#if defined(__AVX512BF16__)
    for (int r = 0; r < R; ++r)
      for (int v = 0; v < V; ++v) sum[r][v] = dot_pairs(sum[r][v], w + 64 * v, x + r);
#endif
  } else {
    for (int lane = 0; lane < lanes_per_step(kMode); ++lane) {
      f32x16 wide[V];
      for (int v = 0; v < V; ++v)
        wide[v] = kMode == Mode::f32 ? load(floats(w + 64 * v))
                  : lane == 0        ? load_odd(w + 64 * v)
                                     : load_even(w + 64 * v);
      for (int r = 0; r < R; ++r) {
        const f32x16 value = set1(x[lane * R + r]);
        for (int v = 0; v < V; ++v) sum[r][v] = fma(wide[v], value, sum[r][v]);
      }
    }
  }
}

// One slab of one block for R rows.
template <int R, Mode kMode, int kPrefetchLines>
static void tile(const TileArgs& args) {
#if defined(__AVX512F__)
  constexpr int V = 2;
#elif defined(__AVX2__)
  constexpr int V = R <= 3 ? 2 : 1;
#else
  constexpr int V = 1;
#endif
  constexpr int kStride = R * lanes_per_step(kMode);
  for (int half = 0; half < 2; half += V) {
    f32x16 sum[R][V];
    for (int r = 0; r < R; ++r)
      for (int v = 0; v < V; ++v)
        sum[r][v] = args.first ? zero() : load(args.sums + r * kBlockColumns + 16 * (half + v));
    const char* w = args.w + 64 * half;
    const char* ahead = args.prefetch;
    const float* x = args.x;
    for (int64_t step = 0; step < args.steps; ++step) {
      for (int line = 0; line < kPrefetchLines; ++line) prefetch_line(ahead + 64 * line);
      ahead += 64 * kPrefetchLines;
      add_step<R, V, kMode>(sum, w, x);
      w += kStepBytes;
      x += kStride;
    }
    for (int r = 0; r < R; ++r)
      for (int v = 0; v < V; ++v) store(args.sums + r * kBlockColumns + 16 * (half + v), sum[r][v]);
  }
}

using TileFunction = void (*)(const TileArgs&);
struct TileTable {
  TileFunction alone[kTileRows + 1];   // the only tile of its block: prefetches its own stream
  TileFunction shared[kTileRows + 1];  // one of several: half of the next slab
};

template <Mode kMode, int R>
static constexpr void fill_table(TileTable& table) {
  if constexpr (R > 0) {
    table.alone[R] = tile<R, kMode, 2>;
    table.shared[R] = tile<R, kMode, 1>;
    fill_table<kMode, R - 1>(table);
  }
}
template <Mode kMode>
static constexpr TileTable make_table() {
  TileTable table{};
  fill_table<kMode, kTileRows>(table);
  return table;
}
constexpr TileTable kF32Tiles = make_table<Mode::f32>();
constexpr TileTable kPairTiles = make_table<kPairMode>();

// How the rows of a call are cut into tiles: `count` tiles, the first `longer` of them one row
// more than `base`.
struct Tiling {
  int64_t count, base, longer;
  int64_t rows(int64_t tile) const { return base + (tile < longer ? 1 : 0); }
  int64_t first_row(int64_t tile) const { return tile * base + (tile < longer ? tile : longer); }
};
static Tiling cut_rows(int64_t rows) {
  const int64_t count = (rows + kTileRows - 1) / kTileRows;
  return {count, rows / count, rows % count};
}

struct Call {
  const LinearArgs& args;
  Tiling tiling;
  int64_t steps;   // of the whole chain
  int lanes;       // floats of packed x per step and row
  const float* x;  // packed: tile after tile, each [steps][lanes][rows of the tile]
};

// Packs the rows of one tile.
static void pack_tile(const Call& call, int64_t tile, float* target) {
  const LinearArgs& args = call.args;
  const int64_t rows = call.tiling.rows(tile), k = args.w.k;
  const int64_t first = call.tiling.first_row(tile);
  float* out = target + first * call.steps * call.lanes;
  for (int64_t r = 0; r < rows; ++r) {
    if (args.w.dtype == DType::f32) {
      const float* x = static_cast<const float*>(args.x) + (first + r) * k;
      for (int64_t i = 0; i < k; ++i) out[i * rows + r] = x[i];
      continue;
    }
    const bf16* x = static_cast<const bf16*>(args.x) + (first + r) * k;
    for (int64_t i = 0; i < call.steps; ++i) {
      const uint32_t even = x[2 * i].bits;
      const uint32_t odd = 2 * i + 1 < k ? x[2 * i + 1].bits : 0;
      if (kNativePairs) {
        const uint32_t pair = even | odd << 16;
        std::memcpy(out + i * rows + r, &pair, 4);
      } else {
        const uint32_t wide_odd = odd << 16, wide_even = even << 16;
        std::memcpy(out + 2 * i * rows + r, &wide_odd, 4);
        std::memcpy(out + (2 * i + 1) * rows + r, &wide_even, 4);
      }
    }
  }
}

// Bias and old y join the finished sums of `rows` rows of a block.
static void finish(const LinearArgs& args, int64_t block, int64_t row, int64_t rows,
                   const float* sums) {
  const int64_t column = block * kBlockColumns;
  for (int64_t r = 0; r < rows; ++r) {
    float* y = args.y + (row + r) * args.w.n + column;
    for (int v = 0; v < 2; ++v) {
      const int64_t left = args.w.n - column - 16 * v;
      const int count = left >= 16 ? 16 : left > 0 ? static_cast<int>(left) : 0;
      f32x16 sum = load(sums + r * kBlockColumns + 16 * v);
      if (args.bias != nullptr) sum = sum + load_part(args.bias + column + 16 * v, count);
      if (args.accumulate) sum = sum + load_part(y + 16 * v, count);
      store_part(y + 16 * v, sum, count);
    }
  }
}

// All rows of one block.
static void run_block(const Call& call, int64_t block) {
  const TileTable& table = call.args.w.dtype == DType::f32 ? kF32Tiles : kPairTiles;
  const char* w = static_cast<const char*>(call.args.w.data) + block * call.steps * kStepBytes;
  alignas(64) float sums[kGroupRows * kBlockColumns];
  const Tiling& tiling = call.tiling;
  if (tiling.count == 1) {
    table.alone[tiling.base]({w, call.x, call.steps, sums, true, w + 2048});
    finish(call.args, block, 0, tiling.base, sums);
    return;
  }
  constexpr int64_t kGroupTiles = kGroupRows / kTileRows;
  for (int64_t begin = 0; begin < tiling.count; begin += kGroupTiles) {
    const int64_t end = begin + kGroupTiles < tiling.count ? begin + kGroupTiles : tiling.count;
    const int64_t first_row = tiling.first_row(begin);
    for (int64_t step = 0; step < call.steps; step += kSlabSteps) {
      const int64_t steps = call.steps - step < kSlabSteps ? call.steps - step : kSlabSteps;
      const char* slab = w + step * kStepBytes;
      for (int64_t t = begin; t < end; ++t) {
        const int64_t rows = tiling.rows(t), row = tiling.first_row(t);
        const float* x = call.x + (row * call.steps + step * rows) * call.lanes;
        const char* next =
            t - begin < 2 ? slab + kSlabSteps * kStepBytes + (t - begin) * steps * 64 : slab;
        table.shared[rows](
            {slab, x, steps, sums + (row - first_row) * kBlockColumns, step == 0, next});
      }
    }
    finish(call.args, block, first_row, tiling.first_row(end) - first_row, sums);
  }
}

}  // namespace

void linear(const LinearArgs& args, ThreadPool& pool) {
  if (args.rows == 0) return;
  const bool wide = args.w.dtype == DType::f32;
  float* packed = static_cast<float*>(args.scratch);
  Call call{args, cut_rows(args.rows), wide ? args.w.k : (args.w.k + 1) / 2,
            wide || kNativePairs ? 1 : 2, packed};
  const bool as_it_is = args.rows == 1 && (wide || (kNativePairs && args.w.k % 2 == 0));
  if (as_it_is)
    call.x = static_cast<const float*>(args.x);
  else
    pool.parallel_for(call.tiling.count, args.rows * args.w.k < 32768 ? call.tiling.count : 1,
                      [&](int64_t begin, int64_t end, int) {
                        for (int64_t t = begin; t < end; ++t) pack_tile(call, t, packed);
                      });
  const int64_t blocks = (args.w.n + kBlockColumns - 1) / kBlockColumns;
  const int64_t grain = 1 + blocks / (8 * pool.size());
  pool.parallel_for(blocks, grain, [&](int64_t begin, int64_t end, int) {
    for (int64_t block = begin; block < end; ++block) run_block(call, block);
  });
}

}  // namespace ce::CE_ISA
