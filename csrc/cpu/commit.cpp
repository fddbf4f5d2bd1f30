// Keys and values of one cache slot moved to another.
#include <cstring>

#include "ce/kernels.h"

namespace ce {
namespace {

template <typename T>
void move(const CacheLayer& cache, int64_t from_page, int64_t from_lane, int64_t to_page,
          int64_t to_lane) {
  const int64_t dim = cache.head_dim, floats = dim * kPageTokens;
  for (int64_t head = 0; head < cache.kv_heads; ++head) {
    const int64_t from = (from_page * cache.kv_heads + head) * floats;
    const int64_t to = (to_page * cache.kv_heads + head) * floats;
    T* keys = static_cast<T*>(cache.keys);
    for (int64_t d = 0; d < dim; ++d)
      keys[to + d * kPageTokens + to_lane] = keys[from + d * kPageTokens + from_lane];
    T* values = static_cast<T*>(cache.values);
    std::memcpy(values + to + to_lane * dim, values + from + from_lane * dim,
                static_cast<size_t>(dim) * sizeof(T));
  }
}

}  // namespace

void move_slot(const CacheLayer& cache, const int32_t* block_table, int64_t from, int64_t to) {
  if (from == to) return;
  const int64_t from_page = block_table[from / kPageTokens];
  const int64_t to_page = block_table[to / kPageTokens];
  if (cache.dtype == DType::f32)
    move<float>(cache, from_page, from % kPageTokens, to_page, to % kPageTokens);
  else
    move<bf16>(cache, from_page, from % kPageTokens, to_page, to % kPageTokens);
}

}  // namespace ce
