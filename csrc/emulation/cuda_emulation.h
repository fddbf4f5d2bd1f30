// The CUDA thread model on the host, as far as the kernels of csrc/cuda use it: their sources
// compile with g++ against this header as they do with nvcc against the CUDA headers.
//
// Each thread of a block is a fiber; blocks run one after the other. Fibers hand over at barriers
// and warp collectives only, and who goes on next is drawn at random (set_seed), so that a missing
// barrier shows in some order. Blocks come in random order too. What a GPU forbids or leaves
// undefined is made visible:
//   - shared memory starts as 0xff bytes: NaN in every floating-point format, -1 as an integer;
//   - data of an asynchronous copy arrives when the thread that asked for it waits for it, not
//     before; until then its place holds 0xff bytes and ldmatrix refuses to read it;
//   - a barrier that some threads of the block cannot reach, a collective that some lanes of the
//     warp do not take part in, lanes or threads that meet at different source lines, a write
//     behind the shared memory, a copy that is misaligned or still in flight when its thread ends,
//     one of memory that the launch before may be writing: each raises an error that names the
//     kernel, the block, the thread and the line.
// Not covered: races inside one stretch between barriers that no order of whole stretches shows,
// memory ordering between blocks, bank conflicts, speed.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <string>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __restrict__ __restrict
#define __launch_bounds__(...)

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
extern dim3 threadIdx, blockIdx, blockDim, gridDim;

struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
inline float4 make_float4(float x, float y, float z, float w) {
  return {x, y, z, w};
}
inline float2 make_float2(float x, float y) {
  return {x, y};
}

namespace ce::emulation {

struct Place {
  const char* file;
  int line;
};

// Seeds the orders of threads and blocks of the launches that follow.
void set_seed(uint64_t seed);
// Runs body() once for each thread of each block; throws ce::InvalidArgument on misuse.
void launch(const char* kernel, dim3 grid, dim3 block, size_t shared_bytes,
            const std::function<void()>& body);
// The running block's shared memory, of the size that its launch asked for: any other is an error.
void* shared_arena(size_t bytes);
// The running thread gives up its launch with this message.
[[noreturn]] void misuse(const std::string& what, const Place& place);

void block_barrier(const Place& place);
// All 32 lanes of a warp meet. Each brings `mine`; the last one runs compute(lanes) over what they
// brought, before any of them goes on.
using Lanes = void* const*;
void warp_collective(uint32_t mask, void* mine, void (*compute)(Lanes), const char* name,
                     const Place& place);
int lane();

// `constant`: of memory that no launch writes. Other copies before the wait are an error.
void copy_async(void* shared, const void* global, int bytes, bool constant, const Place& place);
void wait_for_previous_launch();
void copy_async_commit();
void copy_async_wait(int groups_left);
void load_matrix(uint32_t* registers, const void* row, bool transposed, const Place& place);
using Widen = float (*)(uint16_t bits);
void mma_m16n8k16(float* sums, const uint32_t* a, const uint32_t* b, Widen widen,
                  const Place& place);

// What lane `source(lane)` brought.
template <typename T, typename Source>
T exchange(uint32_t mask, T value, Source source, const char* name, const Place& place) {
  struct Offer {
    T value, result;
    int source;
  } mine{value, value, source(lane())};
  warp_collective(
      mask, &mine,
      [](Lanes lanes) {
        for (int i = 0; i < 32; ++i) {
          Offer& offer = *static_cast<Offer*>(lanes[i]);
          const int from = offer.source >= 0 && offer.source < 32 ? offer.source : i;
          offer.result = static_cast<Offer*>(lanes[from])->value;
        }
      },
      name, place);
  return mine.result;
}
uint32_t ballot(uint32_t mask, bool vote, const Place& place);

}  // namespace ce::emulation

#define CE_PLACE           \
  ::ce::emulation::Place { \
    __FILE__, __LINE__     \
  }
#define __syncthreads() ::ce::emulation::block_barrier(CE_PLACE)
#define __syncwarp() ::ce::emulation::warp_collective(~0u, nullptr, nullptr, "__syncwarp", CE_PLACE)
#define __shfl_sync(mask, value, from) \
  ::ce::emulation::exchange(mask, value, [&](int) -> int { return from; }, "__shfl_sync", CE_PLACE)
#define __shfl_xor_sync(mask, value, with) \
  ::ce::emulation::exchange(               \
      mask, value, [&](int l) -> int { return l ^ (with); }, "__shfl_xor_sync", CE_PLACE)
#define __shfl_up_sync(mask, value, by) \
  ::ce::emulation::exchange(            \
      mask, value, [&](int l) -> int { return l - (by); }, "__shfl_up_sync", CE_PLACE)
#define __shfl_down_sync(mask, value, by) \
  ::ce::emulation::exchange(              \
      mask, value, [&](int l) -> int { return l + (by); }, "__shfl_down_sync", CE_PLACE)
#define __ballot_sync(mask, vote) ::ce::emulation::ballot(mask, vote, CE_PLACE)

inline void __threadfence() {}
template <typename T>
T atomicAdd(T* target, T value) {
  const T old = *target;
  *target = old + value;
  return old;
}
template <typename T>
T atomicMax(T* target, T value) {
  const T old = *target;
  *target = std::max(old, value);
  return old;
}
template <typename T>
T atomicOr(T* target, T value) {
  const T old = *target;
  *target = old | value;
  return old;
}
template <typename T>
T atomicExch(T* target, T value) {
  const T old = *target;
  *target = value;
  return old;
}
template <typename T>
T __ldcg(const T* source) {
  return *source;
}
inline uint32_t __float_as_uint(float value) {
  return __builtin_bit_cast(uint32_t, value);
}
inline float __uint_as_float(uint32_t bits) {
  return __builtin_bit_cast(float, bits);
}
inline int __popcll(unsigned long long bits) {
  return __builtin_popcountll(bits);
}
inline int __ffsll(unsigned long long bits) {
  return __builtin_ffsll(static_cast<long long>(bits));
}
inline int __clzll(unsigned long long bits) {
  return bits == 0 ? 64 : __builtin_clzll(bits);
}
