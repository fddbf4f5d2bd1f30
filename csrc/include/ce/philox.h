// Philox4x32-10: the counter-based generator of Salmon, Moraes, Dror and Shaw, "Parallel random
// numbers: as easy as 1, 2, 3" (SC 2011). A block is a pure function of (counter, key), so any
// part of any noise vector can be computed anywhere, in any order, by host and device alike.
//
// The engine's noise of token id v at position t (see NoiseKey in kernels.h):
//   counter = (v >> 2, t, sample_index, stream), key = (low, high half of the seed), lane v & 3.
// 32 random bits r stand for u = (r + 1/2) / 2^32, which is never 0 or 1;
// -log(u) is Exp(1), and -log(-log(u)) is standard Gumbel, between -3.14 and 22.88.
#pragma once

#include <cstdint>

#include "ce/types.h"

namespace ce {

struct PhiloxBlock {
  uint32_t lane[4];
};

// Streams keep draws of different purposes apart.
inline constexpr uint32_t kTokenStream = 0;  // Gumbel noise of token choices
// Decisions of the rejection rule: counter = (number of the review, position, sample index,
// kRejectionStream + 256 * round), lanes 0 and 1 decide, 2 and 3 choose from the residual.
inline constexpr uint32_t kRejectionStream = 1;

inline constexpr int kPhiloxRounds = 10;
inline constexpr uint32_t kPhiloxMultiplier0 = 0xD2511F53u;
inline constexpr uint32_t kPhiloxMultiplier1 = 0xCD9E8D57u;
inline constexpr uint32_t kPhiloxWeyl0 = 0x9E3779B9u;
inline constexpr uint32_t kPhiloxWeyl1 = 0xBB67AE85u;

// `static`: files compiled for one instruction set each need a copy of their own.
CE_HOST_DEVICE static inline constexpr PhiloxBlock philox4x32(uint32_t c0, uint32_t c1, uint32_t c2,
                                                              uint32_t c3, uint32_t key0,
                                                              uint32_t key1) {
  for (int round = 0; round < kPhiloxRounds; ++round) {
    const uint64_t product0 = static_cast<uint64_t>(kPhiloxMultiplier0) * c0;
    const uint64_t product1 = static_cast<uint64_t>(kPhiloxMultiplier1) * c2;
    c0 = static_cast<uint32_t>(product1 >> 32) ^ c1 ^ key0;
    c1 = static_cast<uint32_t>(product1);
    c2 = static_cast<uint32_t>(product0 >> 32) ^ c3 ^ key1;
    c3 = static_cast<uint32_t>(product0);
    key0 += kPhiloxWeyl0;
    key1 += kPhiloxWeyl1;
  }
  return {{c0, c1, c2, c3}};
}

}  // namespace ce
