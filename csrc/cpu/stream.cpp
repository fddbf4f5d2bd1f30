// Reads an array as fast as the machine can: what benchmarks call the read ceiling.
#include "ce/cpu_kernels.h"
#include "ce/simd.h"

namespace ce::CE_ISA {
namespace {

constexpr int64_t kPiece = int64_t{1} << 16;  // floats of one work item
constexpr int kSums = 4;                      // independent chains hide the latency of an addition

static double sum_piece(const float* data, int64_t count) {
  f32x16 sums[kSums] = {zero(), zero(), zero(), zero()};
  int64_t i = 0;
  for (; i + 16 * kSums <= count; i += 16 * kSums)
    for (int s = 0; s < kSums; ++s) sums[s] = sums[s] + load(data + i + 16 * s);
  for (; i < count; i += 16) {
    const int64_t left = count - i;
    sums[0] = sums[0] + load_part(data + i, left < 16 ? static_cast<int>(left) : 16);
  }
  return static_cast<double>(reduce_add((sums[0] + sums[1]) + (sums[2] + sums[3])));
}

static void add_atomically(double* total, double value) {
  double seen = *total, wanted;
  do {
    wanted = seen + value;
  } while (
      !__atomic_compare_exchange(total, &seen, &wanted, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
}

}  // namespace

// The order of the pieces varies, and with it the last bits: this sum is a measurement.
double stream(const StreamArgs& args, ThreadPool& pool) {
  double total = 0.0;
  pool.parallel_for(args.count, kPiece, [&](int64_t begin, int64_t end, int) {
    // Without threads or with few floats the whole array comes in one piece.
    for (int64_t i = begin; i < end; i += kPiece)
      add_atomically(&total, sum_piece(args.data + i, i + kPiece < end ? kPiece : end - i));
  });
  return total;
}

}  // namespace ce::CE_ISA
