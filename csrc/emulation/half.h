// IEEE half precision in integers, for hosts without it. Rounds to nearest even.
#pragma once

#include <cmath>
#include <cstdint>

namespace ce::emulation {

inline float widen_half(uint16_t bits) {
  const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
  float value = 0.0f;
  if (exponent == 31)
    value = mantissa == 0 ? __builtin_inff() : __builtin_nanf("");
  else if (exponent == 0)
    value = std::ldexp(static_cast<float>(mantissa), -24);
  else
    value = std::ldexp(static_cast<float>(mantissa + 1024), exponent - 25);
  return (bits & 0x8000) != 0 ? -value : value;
}

inline uint16_t narrow_half(float value) {
  const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  const float size = std::fabs(value);
  if (size != size) return static_cast<uint16_t>(sign | 0x7e00);
  if (size >= 65520.0f) return static_cast<uint16_t>(sign | 0x7c00);
  int exponent = 0;
  std::frexp(size, &exponent);  // size in [2^(exponent - 1), 2^exponent)
  const int unit = exponent - 11 < -24 ? -24 : exponent - 11;
  const int count = static_cast<int>(std::nearbyint(std::ldexp(size, -unit)));  // 0..2048
  // Below 1024 units the value is subnormal; at 2048 the carry moves into the exponent by itself.
  return static_cast<uint16_t>(sign | (count < 1024 ? count : ((unit + 24) << 10) + count));
}

}  // namespace ce::emulation
