// The weights of `linear` as a kernel meets them on one instruction set, and the way its sums
// leave. Only the files of `linear` include this header.
#pragma once

#include "ce/kernels.h"
#include "ce/simd.h"

namespace ce::CE_ISA {
namespace {

// A step of W is 32 columns of a float, of a pair of bf16, or of a pair of i8; coded pairs
// and (where widening) those of i8 are also written as pairs of bf16, for the tiles after this one.
enum class Mode { f32, pairs, bytes, widening, coded };
constexpr int kPairsBytes = 128;
constexpr int step_bytes(Mode mode) {
  return mode == Mode::bytes || mode == Mode::widening ? 64
         : mode == Mode::coded                         ? kUnitBytes / 2
                                                       : kPairsBytes;
}
constexpr bool widens(Mode mode) {
  return mode == Mode::widening || mode == Mode::coded;
}
static Mode mode_of(DType weights) {
  constexpr Mode kModes[] = {Mode::f32, Mode::pairs, Mode::bytes, Mode::coded};  // by DType
  return kModes[static_cast<int>(weights)];
}

// Where the low byte of a place is among the pairs of its unit.
constexpr uint32_t wide_byte(uint32_t place) {
  return place / 64 * kPairsBytes + place / 8 % 2 * 64 + place % 64 / 16 * 16 + place % 8 * 2;
}
// The unit of an exception; of kNoPlace more than any.
constexpr uint32_t unit_of(uint32_t exception) {
  return (exception >> 8) / kUnitPlaces;
}

// Sixteen columns of a step as floats, the even or the odd element of each pair; of i8 the even
// ones lie before the odd ones. Bytes become floats exactly, and these pairs of bf16 exactly.
#if defined(__AVX512F__)
static inline f32x16 load_even(const char* w) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_loadu_si512(w), 16))};
}
static inline f32x16 load_odd(const char* w) {
  return {_mm512_castsi512_ps(
      _mm512_and_si512(_mm512_loadu_si512(w), _mm512_set1_epi32(static_cast<int>(0xffff0000u))))};
}
static inline f32x16 load_bytes(const char* w) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(w));
  return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes))};
}
static inline __m512i join_pairs(f32x16 even, f32x16 odd) {
  const __m512i low = _mm512_srli_epi32(_mm512_castps_si512(even.v), 16);
  return _mm512_or_si512(low, _mm512_castps_si512(odd.v));
}
static inline void store_pairs(char* out, f32x16 even, f32x16 odd) {
  _mm512_storeu_si512(out, join_pairs(even, odd));
}
#elif defined(__AVX2__)
static inline __m256i load_half(const char* w) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(w));
}
static inline f32x16 load_even(const char* w) {
  return {_mm256_castsi256_ps(_mm256_slli_epi32(load_half(w), 16)),
          _mm256_castsi256_ps(_mm256_slli_epi32(load_half(w + 32), 16))};
}
static inline f32x16 load_odd(const char* w) {
  const __m256i high = _mm256_set1_epi32(static_cast<int>(0xffff0000u));
  return {_mm256_castsi256_ps(_mm256_and_si256(load_half(w), high)),
          _mm256_castsi256_ps(_mm256_and_si256(load_half(w + 32), high))};
}
static inline f32x16 load_bytes(const char* w) {
  const auto widen = [](const char* p) {
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
  };
  return {widen(w), widen(w + 8)};
}
static inline void store_pairs(char* out, f32x16 even, f32x16 odd) {
  const auto join = [](__m256 low, __m256 high) {
    return _mm256_or_si256(_mm256_srli_epi32(_mm256_castps_si256(low), 16),
                           _mm256_castps_si256(high));
  };
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), join(even.lo, odd.lo));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + 32), join(even.hi, odd.hi));
}
#else
static inline f32x16 load_bits(const char* w, uint32_t mask, int shift) {
  uint32_t bits[16];
  std::memcpy(bits, w, sizeof bits);
  for (uint32_t& b : bits) b = (b & mask) << shift;
  f32x16 r;
  std::memcpy(r.v, bits, sizeof bits);
  return r;
}
static inline f32x16 load_even(const char* w) {
  return load_bits(w, 0xffffu, 16);
}
static inline f32x16 load_odd(const char* w) {
  return load_bits(w, 0xffff0000u, 0);
}
static inline f32x16 load_bytes(const char* w) {
  f32x16 r;
  for (int i = 0; i < 16; ++i) r.v[i] = static_cast<float>(static_cast<int8_t>(w[i]));
  return r;
}
static inline void store_pairs(char* out, f32x16 even, f32x16 odd) {
  uint32_t low[16], high[16];
  std::memcpy(low, even.v, sizeof low);
  std::memcpy(high, odd.v, sizeof high);
  for (int i = 0; i < 16; ++i) high[i] |= low[i] >> 16;
  std::memcpy(out, high, sizeof high);
}
#endif

// One unit of coded weights to its two steps of 32 pairs.
#if defined(__AVX512F__)
static inline void decode_unit(const char* unit, const uint8_t* table, char* wide) {
  const __m512i high_bytes =
      _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table)));
  const __m512i codes = _mm512_loadu_si512(unit + 128), mask = _mm512_set1_epi8(15);
  for (int step = 0; step < 2; ++step) {
    const __m512i code = step == 0 ? codes : _mm512_srli_epi16(codes, 4);
    const __m512i high = _mm512_shuffle_epi8(high_bytes, _mm512_and_si512(code, mask));
    const __m512i low = _mm512_loadu_si512(unit + 64 * step);
    _mm512_storeu_si512(wide + 128 * step, _mm512_unpacklo_epi8(low, high));
    _mm512_storeu_si512(wide + 128 * step + 64, _mm512_unpackhi_epi8(low, high));
  }
}
#elif defined(__AVX2__)
static inline void decode_unit(const char* unit, const uint8_t* table, char* wide) {
  const __m256i high_bytes =
      _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table)));
  const __m256i mask = _mm256_set1_epi8(15);
  const auto store = [](char* p, __m256i v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v);
  };
  for (int half = 0; half < 64; half += 32) {
    const __m256i codes = load_half(unit + 128 + half);
    for (int step = 0; step < 2; ++step) {
      const __m256i code = step == 0 ? codes : _mm256_srli_epi16(codes, 4);
      const __m256i high = _mm256_shuffle_epi8(high_bytes, _mm256_and_si256(code, mask));
      const __m256i low = load_half(unit + 64 * step + half);
      store(wide + 128 * step + half, _mm256_unpacklo_epi8(low, high));
      store(wide + 128 * step + 64 + half, _mm256_unpackhi_epi8(low, high));
    }
  }
}
#else
static inline void decode_unit(const char* unit, const uint8_t* table, char* wide) {
  for (uint32_t place = 0; place < kUnitPlaces; ++place) {
    const int code = static_cast<uint8_t>(unit[128 + place % 64]) >> (place / 64 * 4) & 15;
    char* out = wide + wide_byte(place);
    out[0] = unit[place];
    out[1] = static_cast<char>(table[code]);
  }
}
#endif

// Puts the high bytes of a unit's exceptions where it was decoded to.
static inline void put_exceptions(const uint32_t*& exception, uint32_t unit, char* wide) {
  for (; unit_of(*exception) == unit; ++exception)
    wide[wide_byte(*exception >> 8 & (kUnitPlaces - 1)) + 1] = static_cast<char>(*exception);
}

// Scale, bias and old y join the finished sums of `rows` rows of a block.
static void finish(const LinearArgs& args, int64_t block, int64_t row, int64_t rows,
                   const float* sums) {
  const int64_t column = block * kBlockColumns, left = args.w.n - column;
  for (int64_t r = 0; r < rows; ++r) {
    float* y = args.y + (row + r) * args.w.n + column;
    each_vector(left < kBlockColumns ? left : kBlockColumns,
                [&](int64_t c, int lanes) __attribute__((always_inline)) {
                  f32x16 sum = load(sums + r * kBlockColumns + c);
                  if (args.w.scales != nullptr) sum = sum * load(args.w.scales + column + c);
                  if (args.bias != nullptr) sum = sum + load_part(args.bias + column + c, lanes);
                  if (args.accumulate) sum = sum + load_part(y + c, lanes);
                  store_part(y + c, sum, lanes);
                });
  }
}

}  // namespace
}  // namespace ce::CE_ISA
