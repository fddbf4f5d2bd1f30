// Kernels over one row of logits (arg max, Gumbel noise, soft-max sums) or of tokens (search).
// Each is a pure function of its arguments, wherever in memory the row stands.
//
// NaN counts as -inf: it is never chosen while the row holds any number. A row of NaN alone (or an
// empty one) has no arg max: the answer is then -1. A row of -inf (and NaN) gives its first -inf.
#include "ce/cpu_kernels.h"
#include "ce/philox.h"
#include "ce/simd.h"

namespace ce::CE_ISA {
namespace {

constexpr float kInfinity = __builtin_inff();
constexpr int kTile = kMaximaTile;  // tokens whose noise comes from 16 Philox blocks

// Keeps the lanes from `count` on out of a maximum.
static inline f32x16 load_part_or_lowest(const float* p, int64_t count) {
  if (count >= 16) return load(p);
  const int lanes = static_cast<int>(count);
  return select(first(lanes), load_part(p, lanes), set1(-kInfinity));
}

// Largest number among up to kTile values. max(a, b) is b when a is NaN on every instruction set.
static inline float tile_max(const float* values, int64_t count) {
  f32x16 best = set1(-kInfinity);
  for (int64_t i = 0; i < count; i += 16)
    best = max(load_part_or_lowest(values + i, count - i), best);
  return reduce_max(best);
}

static int64_t first_number(const float* values, int64_t count) {
  for (int64_t i = 0; i < count; ++i)
    if (values[i] == values[i]) return i;
  return -1;
}

static int64_t first_equal(const float* values, float wanted) {
  int64_t i = 0;
  while (values[i] != wanted) ++i;
  return i;
}

static inline int64_t tile_size(int64_t begin, int64_t count) {
  return count - begin < kTile ? count - begin : kTile;
}

// x = m * 2^k with m in [sqrt(1/2), sqrt(2)), for sixteen positive normal floats.
struct Split {
  f32x16 m, k;
};
static inline Split split(f32x16 x) {
  alignas(64) float value[16], m[16], k[16];
  store(value, x);
  for (int i = 0; i < 16; ++i) {
    const uint32_t bits = __builtin_bit_cast(uint32_t, value[i]);
    const int32_t exponent = static_cast<int32_t>(bits - 0x3f3504f3u) >> 23;
    m[i] = __builtin_bit_cast(float, bits - (static_cast<uint32_t>(exponent) << 23));
    k[i] = static_cast<float>(exponent);
  }
  return {load(m), load(k)};
}

constexpr float kLn2High = 0.693359375f;  // 9 bits: k * kLn2High is exact
constexpr float kLn2Low = -2.12194440e-4f;

// k log(2) + log((1 + s) / (1 - s)) for |s| <= 1/3, by the series 2 (s + s^3/3 + s^5/5 + ...).
static inline f32x16 log_from_ratio(f32x16 s, f32x16 k) {
  const f32x16 z = s * s;
  f32x16 p = set1(2.0f / 15);
  p = fma(p, z, set1(2.0f / 13));
  p = fma(p, z, set1(2.0f / 11));
  p = fma(p, z, set1(2.0f / 9));
  p = fma(p, z, set1(2.0f / 7));
  p = fma(p, z, set1(2.0f / 5));
  p = fma(p, z, set1(2.0f / 3));
  const f32x16 small = fma(k, set1(kLn2Low), s * z * p);
  return fma(k, set1(kLn2High), fma(set1(2.0f), s, small));
}

// log(x) for positive normal floats.
static inline f32x16 log(f32x16 x) {
  const Split part = split(x);
  const f32x16 one = set1(1.0f);
  return log_from_ratio((part.m - one) / (part.m + one), part.k);
}

// Gumbel noise from 32 random bits a lane. With u = (bits + 1/2) / 2^32, the nearer of u and 1 - u
// is kept, exact where it is small, so that both tails have the full float32 accuracy:
// Exp(1) = -log(u) below one half, -log1p(-(1 - u)) above.
static inline f32x16 gumbel(const uint32_t* bits) {
  alignas(64) float near_end[16], upper[16];
  for (int i = 0; i < 16; ++i) {
    const int32_t high = static_cast<int32_t>(bits[i]) >> 31;  // -1 in the upper half, else 0
    const int32_t distance = static_cast<int32_t>(bits[i]) ^ high;
    near_end[i] = (static_cast<float>(distance) + 0.5f) * 0x1p-32f;
    upper[i] = static_cast<float>(-high);
  }
  const f32x16 q = load(near_end);
  const mask16 is_upper = less(zero(), load(upper));
  const Split part = split(q);
  const f32x16 one = set1(1.0f);
  const f32x16 numerator = select(is_upper, q, one - part.m);
  const f32x16 denominator = select(is_upper, set1(2.0f) - q, one + part.m);
  const f32x16 k = select(is_upper, zero(), zero() - part.k);
  const f32x16 exponential = log_from_ratio(numerator / denominator, k);
  return zero() - log(exponential);
}

// Random bits of the tokens 4 * block .. 4 * block + 63.
static inline void tile_bits(const NoiseKey& noise, uint32_t block, uint32_t* bits) {
  const uint32_t key0 = static_cast<uint32_t>(noise.seed);
  const uint32_t key1 = static_cast<uint32_t>(noise.seed >> 32);
  alignas(64) uint32_t lane[4][16];
  for (uint32_t i = 0; i < 16; ++i) {
    const PhiloxBlock out =
        philox4x32(block + i, noise.position, noise.sample_index, noise.stream, key0, key1);
    for (int l = 0; l < 4; ++l) lane[l][i] = out.lane[l];
  }
  for (int i = 0; i < 16; ++i)
    for (int l = 0; l < 4; ++l) bits[4 * i + l] = lane[l][i];
}

// Random bits of sixteen tokens anywhere.
static inline void gathered_bits(const NoiseKey& noise, const int32_t* ids, uint32_t* bits) {
  const uint32_t key0 = static_cast<uint32_t>(noise.seed);
  const uint32_t key1 = static_cast<uint32_t>(noise.seed >> 32);
  for (int i = 0; i < 16; ++i) {
    const uint32_t id = static_cast<uint32_t>(ids[i]);
    const PhiloxBlock out =
        philox4x32(id >> 2, noise.position, noise.sample_index, noise.stream, key0, key1);
    const uint32_t low = (id & 1) != 0 ? out.lane[1] : out.lane[0];
    const uint32_t high = (id & 1) != 0 ? out.lane[3] : out.lane[2];
    bits[i] = (id & 2) != 0 ? high : low;
  }
}

// out[i] = values[i] / temperature + the noise of bits[i], for up to kTile tokens.
static inline void perturb_tile(const float* values, int64_t count, const uint32_t* bits,
                                f32x16 temperature, float* out) {
  for (int64_t i = 0; i < count; i += 16) {
    const int lanes = static_cast<int>(count - i < 16 ? count - i : 16);
    store_part(out + i, load_part(values + i, lanes) / temperature + gumbel(bits + i), lanes);
  }
}

// Above any noise: -log(-log(1 - 2^-33)) is 22.88.
constexpr float kLargestNoise = 22.9f;

// False when no token of the tile gets as much noise as `wanted`. Noise >= g needs
// u >= exp(-exp(-g)) >= 1 - exp(-g), so one comparison of the bits settles most tiles.
static inline bool noise_may_reach(const uint32_t* bits, float wanted) {
  if (!(wanted > 0.0f)) return true;
  uint32_t highest = 0;
  for (int i = 0; i < kTile; ++i) highest = bits[i] > highest ? bits[i] : highest;
  return static_cast<double>(highest) + 1.0 >=
         0x1p32 * (1.0 - __builtin_exp(-static_cast<double>(wanted)));
}

}  // namespace

int64_t argmax(const float* values, int64_t count) {
  float best = -kInfinity;
  int64_t tile = -1;
  for (int64_t begin = 0; begin < count; begin += kTile) {
    const float largest = tile_max(values + begin, tile_size(begin, count));
    if (largest > best) {
      best = largest;
      tile = begin;
    }
  }
  return tile < 0 ? first_number(values, count) : tile + first_equal(values + tile, best);
}

// Most tiles are passed over: the perturbed value of the largest logit is a bound that the winner
// reaches, and a tile cannot when its noise would have to be larger than it is. The slack is above
// the rounding of the perturbed values, so the result is that of comparing all of them.
int64_t gumbel_argmax(const float* values, int64_t count, float temperature,
                      const NoiseKey& noise) {
  const int64_t favourite = argmax(values, count);
  if (favourite < 0 || values[favourite] == -kInfinity) return favourite;
  const int32_t id = static_cast<int32_t>(favourite);
  float lanes[16];
  perturb(values + favourite, &id, 1, temperature, noise, lanes);
  float bound = lanes[0];

  const f32x16 divisor = set1(temperature);
  alignas(64) uint32_t bits[kTile];
  alignas(64) float perturbed[kTile];
  float best = -kInfinity;
  int64_t index = -1;
  for (int64_t begin = 0; begin < count; begin += kTile) {
    const int64_t size = tile_size(begin, count);
    const float level = tile_max(values + begin, size) / temperature;
    const float slack = 1e-5f * (__builtin_fabsf(level) + __builtin_fabsf(bound) + 1.0f);
    const float wanted = bound - level - slack;
    if (level == -kInfinity || wanted > kLargestNoise) continue;
    tile_bits(noise, static_cast<uint32_t>(begin) / 4, bits);
    if (!noise_may_reach(bits, wanted)) continue;
    perturb_tile(values + begin, size, bits, divisor, perturbed);
    const float largest = tile_max(perturbed, size);
    if (largest > best) {
      best = largest;
      index = begin + first_equal(perturbed, largest);
      bound = best > bound ? best : bound;
    }
  }
  return index;
}

void perturb(const float* values, const int32_t* ids, int64_t count, float temperature,
             const NoiseKey& noise, float* out) {
  const f32x16 divisor = set1(temperature);
  alignas(64) uint32_t bits[kTile];
  if (ids == nullptr) {
    for (int64_t begin = 0; begin < count; begin += kTile) {
      tile_bits(noise, static_cast<uint32_t>(begin) / 4, bits);
      perturb_tile(values + begin, tile_size(begin, count), bits, divisor, out + begin);
    }
    return;
  }
  for (int64_t i = 0; i < count; i += 16) {
    const int lanes = static_cast<int>(count - i < 16 ? count - i : 16);
    int32_t id[16] = {};
    for (int j = 0; j < lanes; ++j) id[j] = ids[i + j];
    gathered_bits(noise, id, bits);
    perturb_tile(values + i, lanes, bits, divisor, out + i);
  }
}

void tile_maxima(const float* values, int64_t count, float* out) {
  for (int64_t begin = 0; begin < count; begin += kTile)
    out[begin / kTile] = tile_max(values + begin, tile_size(begin, count));
}

// Sixteen lanes in float32 within a tile, tiles in double: a sum of 10^5 terms stays good to the
// last bits of a float.
double exp_terms(const float* values, int64_t count, float highest, float temperature, float* out) {
  const f32x16 shift = set1(highest), divisor = set1(temperature);
  double total = 0.0;
  for (int64_t begin = 0; begin < count; begin += kTile) {
    const int64_t size = tile_size(begin, count);
    f32x16 sum = zero();
    for (int64_t i = 0; i < size; i += 16) {
      const int lanes = static_cast<int>(size - i < 16 ? size - i : 16);
      f32x16 term = exp((load_part_or_lowest(values + begin + i, size - i) - shift) / divisor);
      sum = sum + term;
      if (out != nullptr) store_part(out + begin + i, term, lanes);
    }
    total += static_cast<double>(reduce_add(sum));
  }
  return total;
}

double log_sum_exp(const float* values, int64_t count, float temperature) {
  const int64_t best = argmax(values, count);
  if (best < 0) return -kInfinity;
  const float highest = values[best];
  if (highest == kInfinity || highest == -kInfinity) return highest;
  const double sum = exp_terms(values, count, highest, temperature, nullptr);
  return static_cast<double>(highest) / static_cast<double>(temperature) + __builtin_log(sum);
}

// Bit i tells whether tokens[i] is the wanted one, for sixteen tokens.
static inline uint32_t equal16(const int32_t* tokens, int32_t wanted) {
#if defined(__AVX512F__)
  return _mm512_cmpeq_epi32_mask(_mm512_loadu_si512(tokens), _mm512_set1_epi32(wanted));
#elif defined(__AVX2__)
  const __m256i key = _mm256_set1_epi32(wanted);
  const auto half = [key](const int32_t* p) {
    const __m256i t = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return static_cast<uint32_t>(
        _mm256_movemask_ps(_mm256_castsi256_ps(_mm256_cmpeq_epi32(t, key))));
  };
  return half(tokens) | half(tokens + 8) << 8;
#else
  int any = 0;
  for (int i = 0; i < 16; ++i) any |= tokens[i] == wanted;
  uint32_t mask = 0;
  if (any != 0)
    for (int i = 0; i < 16; ++i) mask |= static_cast<uint32_t>(tokens[i] == wanted) << i;
  return mask;
#endif
}

int64_t find_last(const int32_t* tokens, int64_t count, int32_t wanted) {
  int64_t end = count;
  for (; end >= 16; end -= 16)
    if (const uint32_t mask = equal16(tokens + end - 16, wanted); mask != 0)
      return end - 16 + (31 - __builtin_clz(mask));
  for (; end > 0; --end)
    if (tokens[end - 1] == wanted) return end - 1;
  return -1;
}

}  // namespace ce::CE_ISA
