// Few rows, whose chains are too few to hide the latency of a multiply-add where the weights come
// from a cache: several blocks at a time. linear.cpp alone includes this header.
#pragma once

#include "linear_tile.h"

namespace ce::CE_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int kFewRows = 5;
#elif defined(__AVX2__)
constexpr int kFewRows = 1;
#else
constexpr int kFewRows = 0;
#endif
constexpr int kMostTogether = 4;  // blocks
constexpr int together(int rows) {
#if defined(__AVX512F__)
  return rows == 1 ? 4 : rows <= kFewRows ? 2 : 1;
#else
  return rows <= kFewRows ? 2 : 1;
#endif
}

struct FewArgs {
  const char* w;     // of the first block
  int64_t distance;  // bytes from block to block
  const float* x;    // [steps][rows], or [steps][2][rows] when widened
  int64_t steps;
  float* sums;  // [blocks][rows][32]
};

// All slabs of B blocks for R rows: to each sum what one block after the other gives it.
template <int R, int B, Mode kMode>
static void few_rows(const FewArgs& args) {
  constexpr int kStride = R * lanes_per_step(kMode), kStep = step_bytes(kMode);
  constexpr int64_t kAhead = 9216 / B / kStep;  // steps from what is fetched to what is read
  const char* w = args.w;
  const char* ahead = w + kAhead * kStep;
  const float* x = args.x;
  for (int64_t begin = 0; begin < args.steps; begin += kLinearSlab) {
    f32x16 sum[B][R][2];
    for (int b = 0; b < B; ++b)
      for (int r = 0; r < R; ++r)
        for (int v = 0; v < 2; ++v) sum[b][r][v] = zero();
    const int64_t end = begin + kLinearSlab < args.steps ? begin + kLinearSlab : args.steps;
    for (int64_t step = begin; step < end; ++step, w += kStep, ahead += kStep, x += kStride) {
      // Behind these blocks come the next ones, not those that are read beside them.
      if (step == args.steps - kAhead) ahead += (B - 1) * args.distance;
      for (int b = 0; b < B; ++b) {
        const int64_t offset = b * args.distance;
        for (int line = 0; line < kStep; line += 64)
          __builtin_prefetch(ahead + offset + line, 0, 3);
        add_step<R, 2, kMode>(sum[b], w + offset, x, nullptr);
      }
    }
    for (int b = 0; b < B; ++b)
      for (int r = 0; r < R; ++r)
        for (int v = 0; v < 2; ++v) {
          float* total = args.sums + (b * R + r) * kBlockColumns + 16 * v;
          store(total, begin == 0 ? sum[b][r][v] : load(total) + sum[b][r][v]);
        }
  }
}

using FewFunction = void (*)(const FewArgs&);
struct FewTable {
  FewFunction rows[kFewRows + 1];
};

template <Mode kMode, int R>
static constexpr void fill_few(FewTable& table) {
  if constexpr (R > 0) {
    table.rows[R] = few_rows<R, together(R), kMode>;
    fill_few<kMode, R - 1>(table);
  }
}
template <Mode kMode>
static constexpr FewTable make_few() {
  FewTable table{};
  fill_few<kMode, kFewRows>(table);
  return table;
}
constexpr FewTable kFew[] = {make_few<Mode::f32>(), make_few<Mode::pairs>(),
                             make_few<Mode::bytes>()};

}  // namespace
}  // namespace ce::CE_ISA
