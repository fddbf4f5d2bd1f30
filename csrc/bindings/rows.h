// What the bindings over rows of logits share.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <memory>
#include <utility>
#include <vector>

#include "ce/check.h"
#include "ce/sampling.h"

namespace ce {

using Address = std::uintptr_t;
using Ints = std::vector<int64_t>;
using Samplers = std::vector<std::shared_ptr<Sampler>>;

inline void check_lengths(size_t rows,
                          std::initializer_list<std::pair<const char*, size_t>> lists) {
  for (const auto& [name, size] : lists)
    CE_CHECK(size == rows, name, " has ", size, " entries for ", rows, " rows");
}

inline void check_samplers(const Samplers& samplers) {
  for (size_t i = 0; i < samplers.size(); ++i)
    CE_CHECK(samplers[i] != nullptr, "samplers[", i, "] is None");
}

}  // namespace ce
