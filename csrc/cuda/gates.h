// The functions of gated feed-forward layers (Shazeer, arXiv 2002.05202).
#pragma once

#include "cuda/intrinsics.h"

namespace ce::cuda {

__device__ __forceinline__ float silu(float x) {
  return x / (1.0f + expf(-x));
}

// The tanh form of GELU (Hendrycks and Gimpel, arXiv 1606.08415):
// x (1 + tanh u) / 2 = x / (1 + exp(-2 u)) with u = sqrt(2 / pi) (x + 0.044715 x^3).
__device__ __forceinline__ float gelu(float x) {
  const float u = x * fmaf(x * x, 0.7978845608f * 0.044715f, 0.7978845608f);
  return x / (1.0f + expf(-2.0f * u));
}

}  // namespace ce::cuda
