// Sixteen floats at a time, with one meaning on every instruction set. Files that include this
// header are compiled once per instruction set into namespace ce::CE_ISA (CMake defines CE_ISA as
// portable, avx2, avx512, avx512bf16 or amx); nothing here may leak out of that namespace, so that
// the linker can never pick an AVX-512 copy of a function for an older machine.
//
// Row invariance: every function here is a pure function of its lanes, and the reductions add
// lanes in one fixed tree, so results do not depend on where in a vector a value stands only
// through the documented order.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "ce/types.h"

namespace ce::CE_ISA {

#if defined(__AVX512F__)

struct f32x16 {
  __m512 v;
};
struct mask16 {
  __mmask16 m;
};

static inline f32x16 zero() {
  return {_mm512_setzero_ps()};
}
static inline f32x16 set1(float x) {
  return {_mm512_set1_ps(x)};
}
static inline f32x16 load(const float* p) {
  return {_mm512_loadu_ps(p)};
}
static inline void store(float* p, f32x16 a) {
  _mm512_storeu_ps(p, a.v);
}
// First `count` (0..16) elements, the rest zero.
static inline f32x16 load_part(const float* p, int count) {
  return {_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1u), p)};
}
static inline void store_part(float* p, f32x16 a, int count) {
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << count) - 1u), a.v);
}
static inline f32x16 operator+(f32x16 a, f32x16 b) {
  return {_mm512_add_ps(a.v, b.v)};
}
static inline f32x16 operator-(f32x16 a, f32x16 b) {
  return {_mm512_sub_ps(a.v, b.v)};
}
static inline f32x16 operator*(f32x16 a, f32x16 b) {
  return {_mm512_mul_ps(a.v, b.v)};
}
static inline f32x16 operator/(f32x16 a, f32x16 b) {
  return {_mm512_div_ps(a.v, b.v)};
}
static inline f32x16 max(f32x16 a, f32x16 b) {
  return {_mm512_max_ps(a.v, b.v)};
}
static inline f32x16 min(f32x16 a, f32x16 b) {
  return {_mm512_min_ps(a.v, b.v)};
}
// a * b + c, one rounding where the machine has FMA (everywhere but `portable`).
static inline f32x16 fma(f32x16 a, f32x16 b, f32x16 c) {
  return {_mm512_fmadd_ps(a.v, b.v, c.v)};
}
static inline mask16 less(f32x16 a, f32x16 b) {
  return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ)};
}
static inline mask16 first(int count) {
  return {static_cast<__mmask16>((1u << count) - 1u)};
}
static inline f32x16 select(mask16 m, f32x16 yes, f32x16 no) {
  return {_mm512_mask_blend_ps(m.m, no.v, yes.v)};
}
static inline f32x16 load_bf16(const bf16* p) {
  const __m256i h = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16))};
}
static inline f32x16 round_int(f32x16 a) {
  return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
// a * 2^n for integral n in [-126, 127].
static inline f32x16 scale_pow2(f32x16 a, f32x16 n) {
  return {_mm512_scalef_ps(a.v, n.v)};
}
static inline f32x16 sqrt(f32x16 a) {
  return {_mm512_sqrt_ps(a.v)};
}
static inline void store_lanes(float* out, f32x16 a) {
  _mm512_storeu_ps(out, a.v);
}

#elif defined(__AVX2__)

struct f32x16 {
  __m256 lo, hi;
};
struct mask16 {
  __m256 lo, hi;
};

static inline __m256 lanes_below(int count) {
  return _mm256_castsi256_ps(
      _mm256_cmpgt_epi32(_mm256_set1_epi32(count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)));
}
static inline f32x16 zero() {
  return {_mm256_setzero_ps(), _mm256_setzero_ps()};
}
static inline f32x16 set1(float x) {
  return {_mm256_set1_ps(x), _mm256_set1_ps(x)};
}
static inline f32x16 load(const float* p) {
  return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)};
}
static inline void store(float* p, f32x16 a) {
  _mm256_storeu_ps(p, a.lo);
  _mm256_storeu_ps(p + 8, a.hi);
}
static inline mask16 first(int count) {
  return {lanes_below(count), lanes_below(count - 8)};
}
static inline f32x16 load_part(const float* p, int count) {
  const mask16 m = first(count);
  return {_mm256_maskload_ps(p, _mm256_castps_si256(m.lo)),
          _mm256_maskload_ps(p + 8, _mm256_castps_si256(m.hi))};
}
static inline void store_part(float* p, f32x16 a, int count) {
  const mask16 m = first(count);
  _mm256_maskstore_ps(p, _mm256_castps_si256(m.lo), a.lo);
  _mm256_maskstore_ps(p + 8, _mm256_castps_si256(m.hi), a.hi);
}
#define CE_LANEWISE(name, intrinsic)                       \
  static inline f32x16 name(f32x16 a, f32x16 b) {          \
    return {intrinsic(a.lo, b.lo), intrinsic(a.hi, b.hi)}; \
  }
CE_LANEWISE(operator+, _mm256_add_ps)
CE_LANEWISE(operator-, _mm256_sub_ps)
CE_LANEWISE(operator*, _mm256_mul_ps)
CE_LANEWISE(operator/, _mm256_div_ps)
CE_LANEWISE(max, _mm256_max_ps)
CE_LANEWISE(min, _mm256_min_ps)
#undef CE_LANEWISE
static inline f32x16 fma(f32x16 a, f32x16 b, f32x16 c) {
  return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}
static inline mask16 less(f32x16 a, f32x16 b) {
  return {_mm256_cmp_ps(a.lo, b.lo, _CMP_LT_OQ), _mm256_cmp_ps(a.hi, b.hi, _CMP_LT_OQ)};
}
static inline f32x16 select(mask16 m, f32x16 yes, f32x16 no) {
  return {_mm256_blendv_ps(no.lo, yes.lo, m.lo), _mm256_blendv_ps(no.hi, yes.hi, m.hi)};
}
static inline f32x16 load_bf16(const bf16* p) {
  const auto widen = [](const bf16* q) {
    const __m128i h = _mm_loadu_si128(reinterpret_cast<const __m128i*>(q));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16));
  };
  return {widen(p), widen(p + 8)};
}
static inline f32x16 round_int(f32x16 a) {
  return {_mm256_round_ps(a.lo, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC),
          _mm256_round_ps(a.hi, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
static inline f32x16 scale_pow2(f32x16 a, f32x16 n) {
  const auto power = [](__m256 x) {
    return _mm256_castsi256_ps(
        _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(x), _mm256_set1_epi32(127)), 23));
  };
  return {_mm256_mul_ps(a.lo, power(n.lo)), _mm256_mul_ps(a.hi, power(n.hi))};
}
static inline f32x16 sqrt(f32x16 a) {
  return {_mm256_sqrt_ps(a.lo), _mm256_sqrt_ps(a.hi)};
}
static inline void store_lanes(float* out, f32x16 a) {
  store(out, a);
}

#else

struct f32x16 {
  float v[16];
};
struct mask16 {
  bool m[16];
};

#define CE_EACH(expression)                           \
  f32x16 r;                                           \
  for (int i = 0; i < 16; ++i) r.v[i] = (expression); \
  return r
static inline f32x16 zero() {
  CE_EACH(0.0f);
}
static inline f32x16 set1(float x) {
  CE_EACH(x);
}
static inline f32x16 load(const float* p) {
  CE_EACH(p[i]);
}
static inline void store(float* p, f32x16 a) {
  std::memcpy(p, a.v, sizeof a.v);
}
static inline f32x16 load_part(const float* p, int count) {
  CE_EACH(i < count ? p[i] : 0.0f);
}
static inline void store_part(float* p, f32x16 a, int count) {
  for (int i = 0; i < count; ++i) p[i] = a.v[i];
}
static inline f32x16 operator+(f32x16 a, f32x16 b) {
  CE_EACH(a.v[i] + b.v[i]);
}
static inline f32x16 operator-(f32x16 a, f32x16 b) {
  CE_EACH(a.v[i] - b.v[i]);
}
static inline f32x16 operator*(f32x16 a, f32x16 b) {
  CE_EACH(a.v[i] * b.v[i]);
}
static inline f32x16 operator/(f32x16 a, f32x16 b) {
  CE_EACH(a.v[i] / b.v[i]);
}
static inline f32x16 max(f32x16 a, f32x16 b) {
  CE_EACH(a.v[i] > b.v[i] ? a.v[i] : b.v[i]);
}
static inline f32x16 min(f32x16 a, f32x16 b) {
  CE_EACH(a.v[i] < b.v[i] ? a.v[i] : b.v[i]);
}
// Two roundings here: the portable build assumes no FMA unit (a library call would be slower by
// far).
static inline f32x16 fma(f32x16 a, f32x16 b, f32x16 c) {
  CE_EACH(a.v[i] * b.v[i] + c.v[i]);
}
static inline mask16 less(f32x16 a, f32x16 b) {
  mask16 r;
  for (int i = 0; i < 16; ++i) r.m[i] = a.v[i] < b.v[i];
  return r;
}
static inline mask16 first(int count) {
  mask16 r;
  for (int i = 0; i < 16; ++i) r.m[i] = i < count;
  return r;
}
static inline f32x16 select(mask16 m, f32x16 yes, f32x16 no) {
  CE_EACH(m.m[i] ? yes.v[i] : no.v[i]);
}
static inline float widen_bits(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float f;
  std::memcpy(&f, &wide, 4);
  return f;
}
static inline f32x16 load_bf16(const bf16* p) {
  CE_EACH(widen_bits(p[i].bits));
}
static inline f32x16 round_int(f32x16 a) {
  CE_EACH(__builtin_nearbyintf(a.v[i]));
}
static inline f32x16 scale_pow2(f32x16 a, f32x16 n) {
  f32x16 r;
  for (int i = 0; i < 16; ++i) {
    const uint32_t e = static_cast<uint32_t>(static_cast<int32_t>(n.v[i]) + 127) << 23;
    float p;
    std::memcpy(&p, &e, 4);
    r.v[i] = a.v[i] * p;
  }
  return r;
}
static inline f32x16 sqrt(f32x16 a) {
  CE_EACH(__builtin_sqrtf(a.v[i]));
}
static inline void store_lanes(float* out, f32x16 a) {
  store(out, a);
}
#undef CE_EACH

#endif

// First `count` (0..16) bf16 values, the rest zero; never reads past them.
static inline f32x16 load_bf16_part(const bf16* p, int count) {
  alignas(32) bf16 lanes[16] = {};
  std::memcpy(lanes, p, sizeof(bf16) * static_cast<size_t>(count));
  return load_bf16(lanes);
}

// Stores the first `count` lanes as bfloat16, round to nearest even; a NaN stays a NaN. Numbers
// below 2^-126 become zeros where the machine's own conversion does that, and its multiplication
// of pairs too.
static inline void store_bf16_part(bf16* p, f32x16 a, int count) {
#if defined(__AVX512BF16__)
  const __m256i half = (__m256i)_mm512_cvtneps_pbh(a.v);
  _mm256_mask_storeu_epi16(p, static_cast<__mmask16>((1u << count) - 1u), half);
#elif defined(__AVX512F__)
  const __m512i bits = _mm512_castps_si512(a.v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i bias = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff));
  const __mmask16 nan = _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q);
  const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
  const __m512i rounded = _mm512_mask_blend_epi32(nan, _mm512_add_epi32(bits, bias), quiet);
  const __m256i half = _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16));
  _mm256_mask_storeu_epi16(p, static_cast<__mmask16>((1u << count) - 1u), half);
#else
  float lanes[16];
  store_lanes(lanes, a);
  bf16 out[16];
  for (int i = 0; i < 16; ++i) {
    uint32_t bits;
    std::memcpy(&bits, &lanes[i], 4);
    const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
    const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    out[i].bits = static_cast<uint16_t>(nan ? (bits >> 16) | 0x40u : rounded);
  }
  std::memcpy(p, out, sizeof(bf16) * static_cast<size_t>(count));
#endif
}

// Stores the first `count` lanes at element `at` of an array of `dtype`.
static inline void store_as(void* out, DType dtype, int64_t at, f32x16 a, int count) {
  if (dtype == DType::f32)
    store_part(static_cast<float*>(out) + at, a, count);
  else
    store_bf16_part(static_cast<bf16*>(out) + at, a, count);
}

// Calls part(i, lanes) for the vectors of `count` elements: 16 lanes, in the last one what is left.
// Whole vectors get a constant, so that no mask is made for them: masked stores are slow.
template <typename Part>
static inline void each_vector(int64_t count, const Part& part) {
  int64_t i = 0;
  for (; i + 16 <= count; i += 16) part(i, 16);
  if (i < count) part(i, static_cast<int>(count - i));
}

// Sum, and maximum, of the lanes in one fixed tree: lanes i and i+8, then i+4, i+2, i+1. The
// maximum expects no NaN.
#if defined(__AVX2__)
static inline __m256 lower_half(f32x16 a) {
#if defined(__AVX512F__)
  return _mm512_castps512_ps256(a.v);
#else
  return a.lo;
#endif
}
static inline __m256 upper_half(f32x16 a) {
#if defined(__AVX512F__)
  return _mm512_extractf32x8_ps(a.v, 1);
#else
  return a.hi;
#endif
}
#define CE_REDUCE(name, op8, op4)                                                    \
  static inline float name(f32x16 a) {                                               \
    const __m256 s8 = op8(lower_half(a), upper_half(a));                             \
    const __m128 s4 = op4(_mm256_castps256_ps128(s8), _mm256_extractf128_ps(s8, 1)); \
    const __m128 s2 = op4(s4, _mm_movehl_ps(s4, s4));                                \
    return _mm_cvtss_f32(op4(s2, _mm_movehdup_ps(s2)));                              \
  }
CE_REDUCE(reduce_add, _mm256_add_ps, _mm_add_ps)
CE_REDUCE(reduce_max, _mm256_max_ps, _mm_max_ps)
#undef CE_REDUCE
#else
static inline float reduce_add(f32x16 a) {
  for (int width = 8; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) a.v[i] = a.v[i] + a.v[i + width];
  return a.v[0];
}
static inline float reduce_max(f32x16 a) {
  for (int i = 1; i < 16; ++i) a.v[0] = a.v[i] > a.v[0] ? a.v[i] : a.v[0];
  return a.v[0];
}
#endif

// e^x, relative error below 2e-7 for x <= 88; x below -87 gives exactly 0 (so masked scores, -inf,
// contribute exact zeros); NaN is not expected. Cody-Waite reduction and a degree-6 polynomial.
static inline f32x16 exp(f32x16 x) {
  const mask16 tiny = less(x, set1(-87.0f));
  const f32x16 clamped = min(max(x, set1(-87.0f)), set1(88.0f));
  const f32x16 n = round_int(clamped * set1(1.44269504088896341f));
  f32x16 r = fma(n, set1(-0.693359375f), clamped);
  r = fma(n, set1(2.12194440e-4f), r);
  f32x16 p = set1(1.3888889e-3f);
  p = fma(p, r, set1(8.3333333e-3f));
  p = fma(p, r, set1(4.1666667e-2f));
  p = fma(p, r, set1(1.6666667e-1f));
  p = fma(p, r, set1(0.5f));
  p = fma(p, r, set1(1.0f));
  p = fma(p, r, set1(1.0f));
  return select(tiny, zero(), scale_pow2(p, n));
}

}  // namespace ce::CE_ISA
