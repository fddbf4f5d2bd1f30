// The CUDA backend's host interface. Every call works on a machine without a GPU: it reports none.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace ce::cuda {

struct Device {
  std::string name;
  int major = 0, minor = 0;
  int64_t memory_bytes = 0;
};

// The CUDA runtime this was compiled with, e.g. "13.0".
std::string compiled_version();
// Visible devices; empty where there is no driver or no device.
std::vector<Device> devices();
// Sums `count` floats of device memory at full read bandwidth into *out (device memory), on
// `stream` (a cudaStream_t as an integer): the ceiling that benchmarks compare with.
void stream(const float* data, int64_t count, float* out, std::uintptr_t stream);

}  // namespace ce::cuda
