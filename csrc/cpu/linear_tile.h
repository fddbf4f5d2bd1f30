// The arithmetic of `linear` on one instruction set: the sums of a tile of rows over one slab of a
// block. linear.cpp alone includes this header.
#pragma once

#include "linear_weights.h"

namespace ce::CE_ISA {
namespace {

// One step of a chain is 4 bytes of x per row: one f32 element, or a pair of bf16 (two f32 after
// widening, the odd one first). A step of W is 32 columns of that, for i8 at a byte an element.

// Most rows of a tile, of a tile whose sums of both halves of a block fit the registers, and of one
// that decodes weights meanwhile.
#if defined(__AVX512F__)
constexpr int kTileRows = 14, kWholeRows = 14, kDecodingRows = 14;
#elif defined(__AVX2__)
constexpr int kTileRows = 6, kWholeRows = 2, kDecodingRows = 1;
#else
constexpr int kTileRows = 1, kWholeRows = 1, kDecodingRows = 1;
#endif

#if defined(__AVX512BF16__)
constexpr bool kNativePairs = true;
#else
constexpr bool kNativePairs = false;
#endif

// Floats of x per step and row: pairs are widened where the machine does not multiply them.
constexpr int lanes_per_step(Mode mode) {
  return mode == Mode::f32 || kNativePairs ? 1 : 2;
}

struct TileArgs {
  const char* w;   // first step of the slab
  const float* x;  // [steps][rows], or [steps][2][rows] when widened
  int64_t steps;
  float* sums;           // [rows][32]
  bool first;            // the first slab: sums hold nothing yet
  const char* prefetch;  // what to fetch meanwhile, see Prefetch
  char* wide;            // [steps][32] pairs, written by the modes that widen
  // Of Mode::coded: the block's table, the slab's first unit in the block, and the exceptions from
  // there on.
  const uint8_t* table;
  uint32_t first_unit;
  const uint32_t* exceptions;
};

// What a tile fetches of the slab to come. own: all of it, to the first cache. next: one line a
// step, to the second cache, because this slab still fills the first. past: as next (one line a
// unit where the tile decodes), past the second cache: coded weights are those that no cache keeps
// until the next pass.
enum class Prefetch { own, next, past };

static inline const float* floats(const char* p) {
  return reinterpret_cast<const float*>(p);
}

#if defined(__AVX512BF16__)
// Sixteen pairs of bf16.
template <Mode kMode>
static inline __m512bh load_pairs(const char* w) {
  if constexpr (step_bytes(kMode) == 64)
    // Not _mm512_cvtne2ps_pbh, which needs the units that multiply.
    return (__m512bh)join_pairs(load_bytes(w), load_bytes(w + 16));
  else
    return (__m512bh)_mm512_loadu_si512(w);
}
#endif

// Adds one step of R rows to their sums of V vectors of columns.
template <int R, int V, Mode kMode>
static inline void add_step(f32x16 (&sum)[R][V], const char* w, const float* x, char* wide) {
  constexpr int kVectorBytes = step_bytes(kMode) / 2;
  if constexpr (kMode != Mode::f32 && kNativePairs) {
#if defined(__AVX512BF16__)
    __m512bh pairs[V];
    for (int v = 0; v < V; ++v) {
      pairs[v] = load_pairs<kMode>(w + kVectorBytes * v);
      if constexpr (kMode == Mode::widening) _mm512_storeu_si512(wide + 64 * v, (__m512i)pairs[v]);
    }
    for (int r = 0; r < R; ++r) {
      const __m512bh value = (__m512bh)_mm512_castps_si512(_mm512_set1_ps(x[r]));
      for (int v = 0; v < V; ++v) sum[r][v] = {_mm512_dpbf16_ps(sum[r][v].v, pairs[v], value)};
    }
#endif
  } else {
    for (int lane = 0; lane < lanes_per_step(kMode); ++lane) {
      f32x16 weights[V];
      for (int v = 0; v < V; ++v) {
        const char* at = w + kVectorBytes * v;
        if constexpr (kMode == Mode::f32)
          weights[v] = load(floats(at));
        else if constexpr (kMode == Mode::pairs)
          weights[v] = lane == 0 ? load_odd(at) : load_even(at);
        else
          weights[v] = load_bytes(lane == 0 ? at + 16 : at);
        if (kMode == Mode::widening && lane == 0)
          store_pairs(wide + 64 * v, load_bytes(at), weights[v]);
      }
      for (int r = 0; r < R; ++r) {
        const f32x16 value = set1(x[lane * R + r]);
        for (int v = 0; v < V; ++v) sum[r][v] = fma(weights[v], value, sum[r][v]);
      }
    }
  }
}

// Walks down a coded slab.
template <Prefetch kPrefetch>
struct Decoder {
  static constexpr int kFetched = kPrefetch == Prefetch::own ? kUnitBytes : 64;  // a unit

  const char* coded;
  const char* ahead;
  const uint8_t* table;
  const uint32_t* exception;
  uint32_t unit;
  char* wide;

  explicit Decoder(const TileArgs& args)
      : coded(args.w),
        ahead(args.prefetch),
        table(args.table),
        exception(args.exceptions),
        unit(args.first_unit),
        wide(args.wide) {}

  void next() {
    for (int line = 0; line < kFetched; line += 64) __builtin_prefetch(ahead + line, 0, 0);
    decode_unit(coded, table, wide);
    put_exceptions(exception, unit, wide);
    ahead += kFetched;
    coded += kUnitBytes;
    wide += 2 * kPairsBytes;
    ++unit;
  }
};

// Adds one coded slab for R rows. The pairs go through memory, so that an exception is a byte
// written there. Where sums leave no registers for it, the slab is decoded beforehand.
template <int R, int V, Prefetch kPrefetch>
static inline void add_coded(f32x16 (&sum)[R][V], const TileArgs& args, int first) {
  constexpr int kStride = R * lanes_per_step(Mode::pairs);
  Decoder<kPrefetch> decoder(args);
  if (R > kDecodingRows && first == 0)
    for (int64_t step = 0; step < args.steps; step += 2) decoder.next();
  const char* wide = args.wide + 64 * first;
  const float* x = args.x;
  for (int64_t step = 0; step < args.steps; step += 2) {
    if (R <= kDecodingRows && first == 0) decoder.next();
    add_step<R, V, Mode::pairs>(sum, wide, x, nullptr);
    if (step + 1 < args.steps)
      add_step<R, V, Mode::pairs>(sum, wide + kPairsBytes, x + kStride, nullptr);
    wide += 2 * kPairsBytes;
    x += 2 * kStride;
  }
}

// Adds one slab of one block for R rows, V vectors of columns at a time.
template <int R, Mode kMode, Prefetch kPrefetch>
static void tile(const TileArgs& args) {
  constexpr int V = R <= kWholeRows ? 2 : 1;
  constexpr int kStride = R * lanes_per_step(kMode), kStep = step_bytes(kMode);
  for (int first = 0; first < 2; first += V) {
    f32x16 sum[R][V];
    for (int r = 0; r < R; ++r)
      for (int v = 0; v < V; ++v) sum[r][v] = zero();
    const char* w = args.w + kStep / 2 * first;
    const char* ahead = args.prefetch + first * args.steps * 64;
    const float* x = args.x;
    char* wide = args.wide + 64 * first;
    if constexpr (kMode == Mode::coded) add_coded<R, V, kPrefetch>(sum, args, first);
    for (int64_t step = 0; kMode != Mode::coded && step < args.steps; ++step) {
      if constexpr (kPrefetch == Prefetch::own)
        for (int line = 0; line < V * kStep / 2; line += 64) __builtin_prefetch(ahead + line, 0, 3);
      else
        __builtin_prefetch(ahead, 0, kPrefetch == Prefetch::next ? 2 : 0);
      ahead += kPrefetch == Prefetch::own ? kStep : 64;
      add_step<R, V, kMode>(sum, w, x, wide);
      if constexpr (kMode == Mode::widening) wide += 128;
      w += kStep;
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
  TileFunction shared[kTileRows + 1];  // one of several, or of several slabs' halves
  TileFunction coded[kTileRows + 1];   // one of several over coded weights, also when decoded
};

template <Mode kMode, int R>
static constexpr void fill_table(TileTable& table) {
  if constexpr (R > 0) {
    table.alone[R] = tile<R, kMode, Prefetch::own>;
    table.shared[R] = tile<R, kMode, Prefetch::next>;
    if constexpr (kMode == Mode::pairs || kMode == Mode::coded)
      table.coded[R] = tile<R, kMode, Prefetch::past>;
    fill_table<kMode, R - 1>(table);
  }
}
template <Mode kMode>
static constexpr TileTable make_table() {
  TileTable table{};
  fill_table<kMode, kTileRows>(table);
  return table;
}
constexpr TileTable kTiles[] = {make_table<Mode::f32>(), make_table<Mode::pairs>(),
                                make_table<Mode::bytes>(), make_table<Mode::widening>(),
                                make_table<Mode::coded>()};

}  // namespace
}  // namespace ce::CE_ISA
