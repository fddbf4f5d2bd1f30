// Tables as Python holds them.
#pragma once

#include <pybind11/pybind11.h>

#include <memory>
#include <string>
#include <vector>

#include "ce/ngram.h"

namespace ce {

// A table, the buffers (of a mapped file) that it borrows with their names, and its doubts: [trees,
// chains][several successors seen, one][order - 1], or none.
struct MappedTable {
  std::vector<pybind11::buffer_info> buffers;
  std::vector<std::string> names;
  int block_shift = 0;
  std::unique_ptr<NgramTable> table;
  std::vector<float> doubts;
};

}  // namespace ce
