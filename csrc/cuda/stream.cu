// Read bandwidth of device memory: each thread sums a grid-strided share in 16-byte loads.
#include <cuda_runtime.h>

#include "ce/check.h"
#include "ce/cuda.h"

namespace ce::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kBlocks = 132 * 8;  // enough resident blocks to fill the largest supported device

__global__ void __launch_bounds__(kThreads)
    sum_kernel(const float4* data, int64_t vectors, float* out) {
  float sum = 0.0f;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < vectors;
       i += stride) {
    const float4 v = data[i];
    sum += (v.x + v.y) + (v.z + v.w);
  }
  for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_down_sync(0xffffffffu, sum, offset);
  if (threadIdx.x % 32 == 0) atomicAdd(out, sum);  // a benchmark's sum: its order does not matter
}

}  // namespace

void stream(const float* data, int64_t count, float* out, std::uintptr_t stream) {
  CE_CHECK(count % 4 == 0, "count must be a multiple of 4, got ", count);
  sum_kernel<<<kBlocks, kThreads, 0, reinterpret_cast<cudaStream_t>(stream)>>>(
      reinterpret_cast<const float4*>(data), count / 4, out);
  const cudaError_t error = cudaGetLastError();
  CE_CHECK(error == cudaSuccess, "stream kernel: ", cudaGetErrorString(error));
}

}  // namespace ce::cuda
