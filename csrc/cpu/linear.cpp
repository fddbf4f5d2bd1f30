// y = x W^T for few rows at the speed of reading W once, and for many rows at the speed of the
// arithmetic units. W is streamed in blocks of 32 columns; a tile of up to kTileRows rows keeps its
// sums in registers while it walks down the block.
//
// Row invariance: each y[r, c] is a sum over slabs of kLinearSlab steps, added in ascending order;
// within a slab it is one chain of fused multiply-adds over ascending k from zero. Neither depends
// on the tile, the block or the thread. (One chain over all of k would drift: at k = 11008 its
// error is seven times that of a blocked sum.)
#include "ce/cpu_kernels.h"
#include "linear_few.h"
#include "transpose.h"

namespace ce::CE_ISA {
namespace {

constexpr int kGroupRows = 112;          // rows whose sums wait on the stack between slabs
constexpr int64_t kPackSlab = 256;       // steps of x packed in one go
constexpr int64_t kPiecesPerWorker = 3;  // of the blocks
// Weights up to this size may well come from a cache; beyond, memory sets the pace, and one stream
// a worker is read best.
constexpr int64_t kCachedBytes = 1 << 20;

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

// out[s * stride + r] = row r's step s, for 16 steps; even or odd halves of pairs when widening.
template <typename Load>
static inline void pack_square(float* out, int64_t stride, int rows, const Load& load_row) {
  __m512 m[16];
  for (int r = 0; r < 16; ++r) m[r] = r < rows ? load_row(r) : _mm512_setzero_ps();
  transpose(m);
  const __mmask16 mask = static_cast<__mmask16>((1u << rows) - 1u);
  for (int s = 0; s < 16; ++s) _mm512_mask_storeu_ps(out + s * stride, mask, m[s]);
}

static void pack_steps(const char* x, int64_t row_bytes, int rows, bool widened, float* out) {
  if (!widened) {
    pack_square(out, rows, rows, [&](int r) { return _mm512_loadu_ps(x + r * row_bytes); });
    return;
  }
  pack_square(out, 2 * rows, rows, [&](int r) { return load_odd(x + r * row_bytes).v; });
  pack_square(out + rows, 2 * rows, rows, [&](int r) { return load_even(x + r * row_bytes).v; });
}
#else
constexpr int kPackSteps = 1;

static void pack_steps(const char* x, int64_t row_bytes, int rows, bool widened, float* out) {
  for (int r = 0; r < rows; ++r) {
    uint32_t bits;
    std::memcpy(&bits, x + r * row_bytes, 4);
    if (widened) {
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
  const bool widened = call.lanes == 2;
  const int rows = static_cast<int>(call.tiling.rows(tile));
  const int64_t first = call.tiling.first_row(tile),
                row_bytes = args.w.k * dtype_size(activation_dtype(args.w.dtype));
  const char* x = static_cast<const char*>(args.x) + first * row_bytes;
  float* out = packed + first * call.steps * call.lanes;
  const int64_t stride = int64_t{rows} * call.lanes;
  const int64_t whole = row_bytes / 4 < end ? row_bytes / 4 : end;  // steps that x holds whole
  int64_t step = begin;
  for (; step + kPackSteps <= whole; step += kPackSteps)
    pack_steps(x + 4 * step, row_bytes, rows, widened, out + step * stride);
  for (; step < end; ++step) {
    // One step at a time: the last pair of an odd k is half empty.
    const int64_t bytes = row_bytes - 4 * step < 4 ? row_bytes - 4 * step : 4;
    for (int r = 0; r < rows; ++r) {
      uint32_t bits = 0;
      std::memcpy(&bits, x + r * row_bytes + 4 * step, static_cast<size_t>(bytes));
      const uint32_t odd = bits & 0xffff0000u, even = bits << 16;
      float* target = out + step * stride + r;
      std::memcpy(target, widened ? &odd : &bits, 4);
      if (widened) std::memcpy(target + rows, &even, 4);
    }
  }
}

static const char* block_weights(const Call& call, int64_t block) {
  const PackedMatrix& w = call.args.w;
  const int64_t steps = w.dtype == DType::coded ? 2 * coded_units(w.k) : call.steps;
  return static_cast<const char*>(w.data) + block * steps * step_bytes(mode_of(w.dtype));
}

// What tile `t` of a slab fetches, so that together they fetch the slab to come.
static const char* fetched_by(const Call& call, int64_t t, const char* slab, int64_t steps,
                              const char* upcoming) {
  switch (mode_of(call.args.w.dtype)) {
    case Mode::coded:  // a line a unit, then a line a step
      return t == 0 ? upcoming : t == 1 ? upcoming + kLinearSlab / 2 * 64 : slab;
    case Mode::bytes:
      return t == 0 ? upcoming : slab;
    default:  // a line a step, in each pass over the slab
      return t < (call.tiling.rows(0) <= kWholeRows ? 2 : 1) ? upcoming + t * steps * 64 : slab;
  }
}

// All rows of one block; `following` is done after it. Where several tiles share a slab of i8 or of
// coded weights, the first widens it for the others.
static void run_block(const Call& call, int64_t block, int64_t following) {
  const PackedMatrix& matrix = call.args.w;
  const Mode stored = mode_of(matrix.dtype);
  const Tiling& tiling = call.tiling;
  const bool coded = stored == Mode::coded;
  const bool widen = (stored == Mode::bytes || coded) && tiling.count > 1;
  const Mode first_mode = stored == Mode::bytes && widen ? Mode::widening : stored;
  const int64_t step_size = step_bytes(stored);
  const char* w = block_weights(call, block);
  const uint8_t* table = coded ? matrix.coded.tables + 16 * block : nullptr;
  alignas(64) float sums[kGroupRows * kBlockColumns];
  alignas(64) char wide[kLinearSlab * step_bytes(Mode::pairs)];
  constexpr int64_t kGroupTiles = kGroupRows / kTileRows;
  for (int64_t begin = 0; begin < tiling.count; begin += kGroupTiles) {
    const int64_t end = begin + kGroupTiles < tiling.count ? begin + kGroupTiles : tiling.count;
    const int64_t first_row = tiling.first_row(begin);
    const uint32_t* exceptions =
        coded ? matrix.coded.exceptions + matrix.coded.first[block] : nullptr;
    for (int64_t row = first_row; row < tiling.first_row(end); ++row) {
      const float* y = call.args.y + row * call.args.w.n + block * kBlockColumns;
      __builtin_prefetch(y, 1, 2);
      __builtin_prefetch(y + 16, 1, 2);
    }
    for (int64_t step = 0; step < call.steps; step += kLinearSlab) {
      const int64_t left = call.steps - step, steps = left < kLinearSlab ? left : kLinearSlab;
      const char* slab = w + step * step_size;
      const char* upcoming =
          steps < left ? slab + steps * step_size : block_weights(call, following);
      for (int64_t t = begin; t < end; ++t) {
        const int64_t rows = tiling.rows(t), row = tiling.first_row(t);
        const float* x = call.x + (row * call.steps + step * rows) * call.lanes;
        const bool widened = widen && t > begin;
        const Mode mode = widened ? Mode::pairs : first_mode;
        const TileTable& tiles = kTiles[static_cast<int>(mode)];
        const bool alone = call.args.rows <= kWholeRows || mode == Mode::widening ||
                           (mode == Mode::coded && tiling.count == 1);
        const TileFunction run = alone   ? tiles.alone[rows]
                                 : coded ? tiles.coded[rows]
                                         : tiles.shared[rows];
        run({widened ? wide : slab, x, steps, sums + (row - first_row) * kBlockColumns, step == 0,
             fetched_by(call, t - begin, slab, steps, upcoming), wide, table,
             static_cast<uint32_t>(step / 2), exceptions});
      }
      if (coded)
        while (unit_of(*exceptions) < (step + steps) / 2) ++exceptions;
    }
    finish(call.args, block, first_row, tiling.first_row(end) - first_row, sums);
  }
}

// Few rows of `count` blocks.
static void run_few(const Call& call, int64_t block, int count) {
  const LinearArgs& args = call.args;
  const Mode mode = mode_of(args.w.dtype);
  const int64_t distance = call.steps * step_bytes(mode);
  alignas(64) float sums[kMostTogether * (kFewRows + 1) * kBlockColumns];
  kFew[static_cast<int>(mode)].rows[args.rows](
      {static_cast<const char*>(args.w.data) + block * distance, distance, call.x, call.steps,
       sums});
  for (int b = 0; b < count; ++b)
    finish(args, block + b, 0, args.rows, sums + b * args.rows * kBlockColumns);
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
                  lanes_per_step(mode_of(args.w.dtype)), static_cast<const float*>(args.x)};
  const bool as_it_is = args.rows == 1 && (wide || (kNativePairs && args.w.k % 2 == 0));
  // A small x is packed by each worker for itself: cheaper than waiting for another's cache lines.
  const int64_t bytes = linear_packed_bytes(args.rows, args.w.k);
  const bool alone = bytes <= kLinearCopyBytes;
  if (!as_it_is && !alone) pack_together(call, packed, pool);
  const int64_t blocks = (args.w.n + kBlockColumns - 1) / kBlockColumns;
  const int64_t pieces = kPiecesPerWorker * pool.size();
  const int64_t kept = blocks * call.steps * step_bytes(mode_of(args.w.dtype));
  const bool cached = args.rows <= kFewRows && kept <= kCachedBytes && args.w.dtype != DType::coded;
  const int few = cached ? together(static_cast<int>(args.rows)) : 1;
  const int64_t unit = few * pool.size() <= blocks ? few : 1;  // blocks that stay together
  const int64_t grain = ((blocks + pieces - 1) / pieces + unit - 1) / unit * unit;
  // A worker takes its next piece before it ends one, so that it fetches what it will read.
  int64_t taken = 0;
  const auto take = [&] { return __atomic_fetch_add(&taken, grain, __ATOMIC_RELAXED); };
  const int64_t shares = (blocks + grain - 1) / grain;
  pool.parallel_for(shares < pool.size() ? shares : pool.size(), 1, [&](int64_t, int64_t, int i) {
    int64_t begin = take();
    if (begin >= blocks) return;
    Call mine = call;
    if (!as_it_is) mine.x = alone ? packed + i * (bytes / 4) : packed;
    if (!as_it_is && alone)
      for (int64_t t = 0; t < call.tiling.count; ++t)
        pack_tile(call, t, 0, call.steps, packed + i * (bytes / 4));
    while (begin < blocks) {
      const int64_t end = begin + grain < blocks ? begin + grain : blocks;
      for (; unit > 1 && begin + unit <= end; begin += unit) run_few(mine, begin, few);
      for (; begin + 1 < end; ++begin) run_block(mine, begin, begin + 1);
      const int64_t next = take();
      if (begin < end) run_block(mine, begin, next < blocks ? next : begin);
      begin = next;
    }
  });
}

}  // namespace ce::CE_ISA
