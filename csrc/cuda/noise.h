// Gumbel noise and the order of values, as csrc/cpu/noise.cpp has them; philox.h gives the bits.
#pragma once

#include "ce/philox.h"
#include "cuda/intrinsics.h"

namespace ce::cuda {

constexpr float kLn2High = 0.693359375f;  // 9 bits: k * kLn2High is exact
constexpr float kLn2Low = -2.12194440e-4f;

// k log(2) + log((1 + s) / (1 - s)) for |s| <= 1/3, by the series 2 (s + s^3/3 + s^5/5 + ...).
__device__ __forceinline__ float log_from_ratio(float s, float k) {
  const float z = s * s;
  float p = 2.0f / 15;
  p = fmaf(p, z, 2.0f / 13);
  p = fmaf(p, z, 2.0f / 11);
  p = fmaf(p, z, 2.0f / 9);
  p = fmaf(p, z, 2.0f / 7);
  p = fmaf(p, z, 2.0f / 5);
  p = fmaf(p, z, 2.0f / 3);
  return fmaf(k, kLn2High, fmaf(2.0f, s, fmaf(k, kLn2Low, s * z * p)));
}

// x = m 2^k with m in [sqrt(1/2), sqrt(2)), for positive normal x.
__device__ __forceinline__ float mantissa(float x, float& k) {
  const uint32_t bits = __float_as_uint(x);
  const int32_t exponent = static_cast<int32_t>(bits - 0x3f3504f3u) >> 23;
  k = static_cast<float>(exponent);
  return __uint_as_float(bits - (static_cast<uint32_t>(exponent) << 23));
}

// Standard Gumbel noise from 32 random bits, both tails to full float32 accuracy: with
// u = (bits + 1/2) / 2^32, Exp(1) = -log(u) below one half, -log1p(-(1 - u)) above.
__device__ __forceinline__ float gumbel(uint32_t bits) {
  const bool upper = (bits & 0x80000000u) != 0;
  const float q = (static_cast<float>(upper ? ~bits : bits) + 0.5f) * 0x1p-32f;  // nearer end
  float k;
  const float m = mantissa(q, k);
  const float ratio = upper ? q / (2.0f - q) : (1.0f - m) / (1.0f + m);
  const float exponential = log_from_ratio(ratio, upper ? 0.0f : -k);
  float e;
  const float n = mantissa(exponential, e);
  return -log_from_ratio((n - 1.0f) / (n + 1.0f), e);
}

// Larger for larger values, lower ids first among equals (-0 equals 0); 0 for NaN alone.
__device__ __forceinline__ uint64_t choice_key(float value, int32_t id) {
  if (value != value) return 0;
  const uint32_t bits = __float_as_uint(value + 0.0f);
  const uint32_t ordered = bits ^ ((bits & 0x80000000u) != 0 ? 0xffffffffu : 0x80000000u);
  return static_cast<uint64_t>(ordered) << 32 | (0xffffffffu - static_cast<uint32_t>(id));
}

// The token that won, or why there is none.
__device__ __forceinline__ int32_t choice_token(uint64_t key) {
  constexpr uint32_t kPlusInfinity = 0xff800000u, kMinusInfinity = 0x007fffffu;
  const uint32_t ordered = static_cast<uint32_t>(key >> 32);
  if (ordered == kMinusInfinity) return kNoAllowed;
  if (key == 0 || ordered == kPlusInfinity) return kNoNumber;
  return static_cast<int32_t>(0xffffffffu - static_cast<uint32_t>(key));
}

__device__ __forceinline__ uint64_t warp_largest(uint64_t key) {
  for (int with = kWarp / 2; with > 0; with /= 2) {
    const uint64_t other = __shfl_xor_sync(kAllLanes, key, with);
    key = other > key ? other : key;
  }
  return key;
}

}  // namespace ce::cuda
