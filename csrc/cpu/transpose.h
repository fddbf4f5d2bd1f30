// Sixteen vectors of sixteen floats, rows to columns, where registers hold them.
#pragma once

#include "ce/simd.h"

namespace ce::CE_ISA {
namespace {

#if defined(__AVX512F__)
// Each stage interleaves ever larger groups of lanes.
static inline void transpose(__m512 (&m)[16]) {
  __m512 a[16], b[16];
  for (int i = 0; i < 16; i += 2) {
    a[i] = _mm512_unpacklo_ps(m[i], m[i + 1]);
    a[i + 1] = _mm512_unpackhi_ps(m[i], m[i + 1]);
  }
  for (int i = 0; i < 16; i += 4)
    for (int j = 0; j < 2; ++j) {
      const __m512d low = _mm512_castps_pd(a[i + j]), high = _mm512_castps_pd(a[i + j + 2]);
      b[i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(low, high));
      b[i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low, high));
    }
  for (int i = 0; i < 16; i += 8)
    for (int j = 0; j < 4; ++j) {
      a[i + j] = _mm512_shuffle_f32x4(b[i + j], b[i + j + 4], 0x88);
      a[i + j + 4] = _mm512_shuffle_f32x4(b[i + j], b[i + j + 4], 0xdd);
    }
  for (int j = 0; j < 8; ++j) {
    m[j] = _mm512_shuffle_f32x4(a[j], a[j + 8], 0x88);
    m[j + 8] = _mm512_shuffle_f32x4(a[j], a[j + 8], 0xdd);
  }
}

#endif

}  // namespace
}  // namespace ce::CE_ISA
