// y = x W^T for few rows at the speed of reading W once, and for many rows at the speed of the
// arithmetic units. W is streamed in blocks of 32 columns; a tile of up to kTileRows rows keeps its
// sums in registers while it walks down the block.
//
// Row invariance: each y[r, c] is a sum over slabs of kSlabSteps steps, added in ascending order;
// within a slab it is one chain of fused multiply-adds over ascending k from zero. Neither depends
// on the tile, the block or the thread. (One chain over all of k would drift: at k = 11008 its
// error is seven times that of a blocked sum.)
#include "ce/cpu_kernels.h"
#include "ce/simd.h"

namespace ce::CE_ISA {
namespace {

// One step of a chain is 4 bytes of x per row and 128 bytes of W per block, for both dtypes: one
// f32 element, or a pair of bf16 (two f32 after widening, the odd one first).
constexpr int kStepBytes = 128;
constexpr int kGroupRows = 112;       // rows whose sums wait on the stack between slabs
constexpr int64_t kSlabSteps = 128;   // 16 KB of W: stays in the first cache while tiles pass
constexpr int64_t kPackSlab = 256;    // steps of x packed in one go
constexpr int kPrefetchBytes = 6144;  // how far ahead the only tile of a block reads
constexpr int64_t kPiecesPerWorker =
    3;  // of the blocks: few restarts, and a late worker costs little

// Most rows of a tile, and of a tile whose sums of both halves of a block fit the registers.
#if defined(__AVX512F__)
constexpr int kTileRows = 14, kWholeRows = 14;
#elif defined(__AVX2__)
constexpr int kTileRows = 6, kWholeRows = 2;
#else
constexpr int kTileRows = 1, kWholeRows = 1;
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
  bool first;            // the first slab: sums hold nothing yet
  const char* prefetch;  // what to fetch meanwhile, see Prefetch
};

// own: the stream that this tile reads, further on, to the first cache. next: one line a step, so
// half of the next slab in one pass, to the second cache, because this slab still fills the first.
enum class Prefetch { own, next };

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

// Adds one slab of one block for R rows, V vectors of columns at a time.
template <int R, Mode kMode, Prefetch kPrefetch>
static void tile(const TileArgs& args) {
  constexpr int V = R <= kWholeRows ? 2 : 1;
  constexpr int kStride = R * lanes_per_step(kMode);
  for (int first = 0; first < 2; first += V) {
    f32x16 sum[R][V];
    for (int r = 0; r < R; ++r)
      for (int v = 0; v < V; ++v) sum[r][v] = zero();
    const char* w = args.w + 64 * first;
    const char* ahead = args.prefetch + first * args.steps * 64;
    const float* x = args.x;
    for (int64_t step = 0; step < args.steps; ++step) {
      if constexpr (kPrefetch == Prefetch::own)
        for (int v = 0; v < V; ++v) __builtin_prefetch(ahead + 64 * v, 0, 3);
      else
        __builtin_prefetch(ahead, 0, 2);
      ahead += kPrefetch == Prefetch::own ? kStepBytes : 64;
      add_step<R, V, kMode>(sum, w, x);
      w += kStepBytes;
      x += kStride;
    }
    for (int r = 0; r < R; ++r)
      for (int v = 0; v < V; ++v) {
        float* total = args.sums + r * kBlockColumns + 16 * (first + v);
        store(total, args.first ? sum[r][v] : load(total) + sum[r][v]);
      }
  }
}

using TileFunction = void (*)(const TileArgs&);
struct TileTable {
  TileFunction alone[kTileRows + 1];   // the only tile of its block
  TileFunction shared[kTileRows + 1];  // one of several
};

template <Mode kMode, int R>
static constexpr void fill_table(TileTable& table) {
  if constexpr (R > 0) {
    table.alone[R] = tile<R, kMode, Prefetch::own>;
    table.shared[R] = tile<R, kMode, Prefetch::next>;
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

#if defined(__AVX512F__)
constexpr int kPackSteps = 16;

// Rows to columns. Each stage interleaves ever larger groups of lanes.
static inline void transpose(__m512 (&m)[16]) {
  __m512 a[16], b[16];
  for (int i = 0; i < 16; i += 2) {
    a[i] = _mm512_unpacklo_ps(m[i], m[i + 1]);
    a[i + 1] = _mm512_unpackhi_ps(m[i], m[i + 1]);
  }
  for (int i = 0; i < 16; i += 4)
    for (int j = 0; j < 2; ++j) {
      const __m512d low = _mm512_castps_pd(a[i + j]), high = _mm512_castps_pd(a[i + j + 2]);
      b[i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(low, high));
      b[i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low, high));
    }
  for (int i = 0; i < 16; i += 8)
    for (int j = 0; j < 4; ++j) {
      a[i + j] = _mm512_shuffle_f32x4(b[i + j], b[i + j + 4], 0x88);
      a[i + j + 4] = _mm512_shuffle_f32x4(b[i + j], b[i + j + 4], 0xdd);
    }
  for (int j = 0; j < 8; ++j) {
    m[j] = _mm512_shuffle_f32x4(a[j], a[j + 8], 0x88);
    m[j + 8] = _mm512_shuffle_f32x4(a[j], a[j + 8], 0xdd);
  }
}

// out[s * stride + r] = row r's step s, for 16 steps; even or odd halves of pairs when widening.
template <typename Load>
static inline void pack_square(float* out, int64_t stride, int rows, const Load& load_row) {
  __m512 m[16];
  for (int r = 0; r < 16; ++r) m[r] = r < rows ? load_row(r) : _mm512_setzero_ps();
  transpose(m);
  const __mmask16 mask = static_cast<__mmask16>((1u << rows) - 1u);
  for (int s = 0; s < 16; ++s) _mm512_mask_storeu_ps(out + s * stride, mask, m[s]);
}

static void pack_steps(const char* x, int64_t row_bytes, int rows, Mode mode, float* out) {
  if (mode != Mode::widened) {
    pack_square(out, rows, rows, [&](int r) { return _mm512_loadu_ps(x + r * row_bytes); });
    return;
  }
  pack_square(out, 2 * rows, rows, [&](int r) { return load_odd(x + r * row_bytes).v; });
  pack_square(out + rows, 2 * rows, rows, [&](int r) { return load_even(x + r * row_bytes).v; });
}
#else
constexpr int kPackSteps = 1;

static void pack_steps(const char* x, int64_t row_bytes, int rows, Mode mode, float* out) {
  for (int r = 0; r < rows; ++r) {
    uint32_t bits;
    std::memcpy(&bits, x + r * row_bytes, 4);
    if (mode == Mode::widened) {
      const uint32_t odd = bits & 0xffff0000u, even = bits << 16;
      std::memcpy(out + r, &odd, 4);
      std::memcpy(out + rows + r, &even, 4);
    } else {
      std::memcpy(out + r, &bits, 4);
    }
  }
}
#endif

// Packs steps begin..end-1 of one tile.
static void pack_tile(const Call& call, int64_t tile, int64_t begin, int64_t end, float* packed) {
  const LinearArgs& args = call.args;
  const Mode mode = args.w.dtype == DType::f32 ? Mode::f32 : kPairMode;
  const int rows = static_cast<int>(call.tiling.rows(tile));
  const int64_t first = call.tiling.first_row(tile),
                row_bytes = args.w.k * dtype_size(args.w.dtype);
  const char* x = static_cast<const char*>(args.x) + first * row_bytes;
  float* out = packed + first * call.steps * call.lanes;
  const int64_t stride = int64_t{rows} * call.lanes;
  const int64_t whole = row_bytes / 4 < end ? row_bytes / 4 : end;  // steps that x holds whole
  int64_t step = begin;
  for (; step + kPackSteps <= whole; step += kPackSteps)
    pack_steps(x + 4 * step, row_bytes, rows, mode, out + step * stride);
  for (; step < end; ++step) {
    // One step at a time: the last pair of an odd k is half empty.
    const int64_t bytes = row_bytes - 4 * step < 4 ? row_bytes - 4 * step : 4;
    for (int r = 0; r < rows; ++r) {
      uint32_t bits = 0;
      std::memcpy(&bits, x + r * row_bytes + 4 * step, static_cast<size_t>(bytes));
      const uint32_t odd = bits & 0xffff0000u, even = bits << 16;
      float* target = out + step * stride + r;
      std::memcpy(target, mode == Mode::widened ? &odd : &bits, 4);
      if (mode == Mode::widened) std::memcpy(target + rows, &even, 4);
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
  const bool alone = call.args.rows <= kWholeRows;
  const int64_t passes = tiling.rows(0) <= kWholeRows ? 2 : 1;  // tiles that fetch the next slab
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
        const char* fetch = alone                ? slab + kPrefetchBytes
                            : t - begin < passes ? slab + steps * (kStepBytes + 64 * (t - begin))
                                                 : slab;
        const TileFunction run = alone ? table.alone[rows] : table.shared[rows];
        run({slab, x, steps, sums + (row - first_row) * kBlockColumns, step == 0, fetch});
      }
    }
    finish(call.args, block, first_row, tiling.first_row(end) - first_row, sums);
  }
}

// Packs all of x, by all workers.
static void pack_together(const Call& call, float* packed, ThreadPool& pool) {
  const int64_t slabs = (call.steps + kPackSlab - 1) / kPackSlab;
  pool.parallel_for(call.tiling.count * slabs, 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = i % slabs * kPackSlab;
      const int64_t last = first + kPackSlab < call.steps ? first + kPackSlab : call.steps;
      pack_tile(call, i / slabs, first, last, packed);
    }
  });
}

}  // namespace

void linear(const LinearArgs& args, ThreadPool& pool) {
  if (args.rows == 0) return;
  const bool wide = args.w.dtype == DType::f32;
  float* packed = static_cast<float*>(args.scratch);
  const Call call{args, cut_rows(args.rows), wide ? args.w.k : (args.w.k + 1) / 2,
                  wide || kNativePairs ? 1 : 2, static_cast<const float*>(args.x)};
  const bool as_it_is = args.rows == 1 && (wide || (kNativePairs && args.w.k % 2 == 0));
  // A small x is packed by each worker for itself: cheaper than waiting for another's cache lines.
  const int64_t bytes = linear_packed_bytes(args.rows, args.w.k);
  const bool alone = bytes <= kLinearCopyBytes;
  if (!as_it_is && !alone) pack_together(call, packed, pool);
  bool ready[ThreadPool::kMaxThreads] = {};
  const int64_t blocks = (args.w.n + kBlockColumns - 1) / kBlockColumns;
  const int64_t pieces = kPiecesPerWorker * pool.size();
  pool.parallel_for(blocks, (blocks + pieces - 1) / pieces, [&](int64_t begin, int64_t end, int i) {
    Call mine = call;
    if (!as_it_is) mine.x = alone ? packed + i * (bytes / 4) : packed;
    if (!as_it_is && alone && !ready[i]) {
      for (int64_t t = 0; t < call.tiling.count; ++t)
        pack_tile(call, t, 0, call.steps, packed + i * (bytes / 4));
      ready[i] = true;
    }
    for (int64_t block = begin; block < end; ++block) run_block(mine, block);
  });
}

}  // namespace ce::CE_ISA
