// The device operations that kernels are written with, for nvcc and for the host emulation
// (CE_EMULATION, csrc/emulation): element types, asynchronous copies, matrix fragments, launches.
#pragma once

#include <cstdint>
#include <cstring>

#include "ce/check.h"
#include "ce/cuda_kernels.h"

#if defined(CE_EMULATION)
#include "ce/bf16.h"
#include "emulation/cuda_emulation.h"
#include "emulation/half.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#endif

namespace ce::cuda {

inline constexpr int kWarp = 32;
inline constexpr uint32_t kAllLanes = 0xffffffffu;

__host__ __device__ constexpr int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

// Every kernel begins with one of these two. Launched as a dependent (set_dependent_launch), it has
// started while the launch before it still ran; else they do nothing.
//
// Lets the next launch start. Before wait_for_previous_launch the kernel may read what no launch
// writes, with copy_constant16, and nothing else.
__device__ __forceinline__ void start_next_launch() {
#if !defined(CE_EMULATION) && defined(__CUDA_ARCH__)
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
#endif
}
// Until the launch before this one is complete and its writes can be seen, and with it, as every
// kernel waits, all before that.
__device__ __forceinline__ void wait_for_previous_launch() {
#if defined(CE_EMULATION)
  emulation::wait_for_previous_launch();
#elif defined(__CUDA_ARCH__)
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
#endif
}
__device__ __forceinline__ void after_previous_launch() {
  start_next_launch();
  wait_for_previous_launch();
}

// Conversions round to nearest even.
template <typename T>
__device__ __forceinline__ T from_float(float value);
__device__ __forceinline__ float to_float(float value) {
  return value;
}
template <>
__device__ __forceinline__ float from_float<float>(float value) {
  return value;
}

#if defined(CE_EMULATION)

using ce::to_float;
inline float to_float(f16 value) {
  return emulation::widen_half(value.bits);
}
template <>
inline bf16 from_float<bf16>(float value) {
  return to_bf16(value);
}
template <>
inline f16 from_float<f16>(float value) {
  return {emulation::narrow_half(value)};
}

#define copy_async16(shared, global, bytes) \
  ::ce::emulation::copy_async(shared, global, bytes, false, CE_PLACE)
#define copy_constant16(shared, global) \
  ::ce::emulation::copy_async(shared, global, 16, true, CE_PLACE)
inline void copy_async_commit() {
  emulation::copy_async_commit();
}
template <int kGroupsLeft>
void copy_async_wait() {
  emulation::copy_async_wait(kGroupsLeft);
}
#define load_matrices(registers, row) ::ce::emulation::load_matrix(registers, row, false, CE_PLACE)
#define load_matrices_transposed(registers, row) \
  ::ce::emulation::load_matrix(registers, row, true, CE_PLACE)
inline float widen(uint16_t bits, bf16*) {
  return ce::to_float(bf16{bits});
}
inline float widen(uint16_t bits, f16*) {
  return emulation::widen_half(bits);
}
#define multiply_add(T, sums, a, b)                                                                \
  ::ce::emulation::mma_m16n8k16(                                                                   \
      sums, a, b, [](uint16_t bits) { return ::ce::cuda::widen(bits, static_cast<T*>(nullptr)); }, \
      CE_PLACE)

// The block's dynamic shared memory as a T; the launch asked for sizeof(T) bytes.
template <typename T>
T& shared_memory() {
  return *static_cast<T*>(emulation::shared_arena(sizeof(T)));
}

template <typename... Parameters, typename... Arguments>
void launch_kernel(const char* name, void (*kernel)(Parameters...), dim3 grid, dim3 block,
                   size_t shared_bytes, Stream, const Arguments&... arguments) {
  emulation::launch(name, grid, block, shared_bytes, [&] { kernel(arguments...); });
}

#else

__device__ __forceinline__ float to_float(bf16 value) {
  return __uint_as_float(static_cast<uint32_t>(value.bits) << 16);
}
__device__ __forceinline__ float to_float(f16 value) {
  return __half2float(__ushort_as_half(value.bits));
}
template <>
__device__ __forceinline__ bf16 from_float<bf16>(float value) {
  return {__bfloat16_as_ushort(__float2bfloat16_rn(value))};
}
template <>
__device__ __forceinline__ f16 from_float<f16>(float value) {
  return {__half_as_ushort(__float2half_rn(value))};
}

// Starts a copy of `bytes` (0..16) bytes; the rest of the 16 at `shared` becomes zero. It has
// arrived after copy_async_wait, for this thread, and for others after a barrier behind that.
__device__ __forceinline__ void copy_async16(void* shared, const void* global, int bytes) {
  const uint32_t to = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(to), "l"(global),
               "r"(bytes));
}
// Likewise of 16 bytes that no launch writes: it need not wait for the launch before.
__device__ __forceinline__ void copy_constant16(void* shared, const void* global) {
  copy_async16(shared, global, 16);
}
__device__ __forceinline__ void copy_async_commit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
// Waits until at most kGroupsLeft of this thread's committed groups are in flight.
template <int kGroupsLeft>
__device__ __forceinline__ void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kGroupsLeft) : "memory");
}

// Four 8 x 8 matrices of 16-bit elements; lanes 8 i .. 8 i + 7 name the rows of matrix i. Lane l
// gets of each: row l / 4, columns 2 (l % 4) and the next.
__device__ __forceinline__ void load_matrices(uint32_t* registers, const void* row) {
  const uint32_t from = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(registers[0]), "=r"(registers[1]), "=r"(registers[2]), "=r"(registers[3])
               : "r"(from)
               : "memory");
}
// The same of the transposed matrices.
__device__ __forceinline__ void load_matrices_transposed(uint32_t* registers, const void* row) {
  const uint32_t from = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(registers[0]), "=r"(registers[1]), "=r"(registers[2]), "=r"(registers[3])
               : "r"(from)
               : "memory");
}

// sums [16, 8] += a [16, 16] b [16, 8], accumulated in float32. With g = lane / 4, q = lane % 4:
// a[i] holds row g + 8 (i % 2), columns 2 q + 8 (i / 2) and the next; b[i] rows 2 q + 8 i and the
// next of column g; sums[i] row g + 8 (i / 2), column 2 q + i % 2.
__device__ __forceinline__ void mma_m16n8k16(float* sums, const uint32_t* a, const uint32_t* b,
                                             bf16) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
__device__ __forceinline__ void mma_m16n8k16(float* sums, const uint32_t* a, const uint32_t* b,
                                             f16) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
#define multiply_add(T, sums, a, b) ::ce::cuda::mma_m16n8k16(sums, a, b, T{})

// The block's dynamic shared memory as a T. Its size stands in the PTX, for the budget of
// tests/cuda.
template <typename T>
__device__ __forceinline__ T& shared_memory() {
  asm volatile("// dynamic shared memory: %0" ::"n"(sizeof(T)));
  extern __shared__ __align__(128) unsigned char dynamic_shared[];
  return *reinterpret_cast<T*>(dynamic_shared);
}

template <typename... Parameters, typename... Arguments>
void launch_kernel(const char* name, void (*kernel)(Parameters...), dim3 grid, dim3 block,
                   size_t shared_bytes, Stream stream, const Arguments&... arguments) {
  cudaError_t error = cudaSuccess;
  if (shared_bytes > 48 << 10)  // more than every device allows unasked
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 static_cast<int>(shared_bytes));
  if (error == cudaSuccess) {
    cudaLaunchAttribute dependent{};
    dependent.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    dependent.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config{};
    config.gridDim = grid;
    config.blockDim = block;
    config.dynamicSmemBytes = shared_bytes;
    config.stream = reinterpret_cast<cudaStream_t>(stream);
    config.attrs = &dependent;
    config.numAttrs = dependent_launch ? 1 : 0;
    error = cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...);
    if (error == cudaSuccess) error = cudaGetLastError();
  }
  CE_CHECK(error == cudaSuccess, name, ": ", cudaGetErrorString(error));
}

#endif

// CE_LAUNCH((kernel<T>), grid, block, shared_bytes, stream, arguments...)
#define CE_LAUNCH(kernel, ...) ::ce::cuda::launch_kernel(#kernel, kernel, __VA_ARGS__)

// Two elements as one register, the first in the low half.
template <typename T>
__device__ __forceinline__ uint32_t pack_pair(float first, float second) {
  const T a = from_float<T>(first), b = from_float<T>(second);
  return static_cast<uint32_t>(a.bits) | static_cast<uint32_t>(b.bits) << 16;
}

// Sums and maxima over a warp, in one fixed tree; every lane gets the result.
__device__ __forceinline__ float warp_sum(float value) {
  for (int with = kWarp / 2; with > 0; with /= 2) value += __shfl_xor_sync(kAllLanes, value, with);
  return value;
}
__device__ __forceinline__ float warp_max(float value) {
  for (int with = kWarp / 2; with > 0; with /= 2)
    value = fmaxf(value, __shfl_xor_sync(kAllLanes, value, with));
  return value;
}

}  // namespace ce::cuda

// Calls body with a value of the element type that `element` names.
#define CE_DISPATCH_ELEMENT(element, T, ...)      \
  do {                                            \
    if ((element) == ::ce::cuda::Element::bf16) { \
      using T = ::ce::bf16;                       \
      __VA_ARGS__;                                \
    } else {                                      \
      using T = ::ce::cuda::f16;                  \
      __VA_ARGS__;                                \
    }                                             \
  } while (0)
