// bf16 weights without loss in 12 bits each: see CodedBytes in types.h.
#pragma once

#include <cstdint>
#include <vector>

#include "ce/thread_pool.h"
#include "ce/types.h"

namespace ce {

// The coded form of a packed bf16 matrix, which must stay as it is until `write` is done.
class Coding {
 public:
  Coding(const PackedMatrix& plain, ThreadPool& pool);

  int64_t num_bytes() const;
  // Elements whose high byte is not in their block's table.
  int64_t exceptions() const;
  // Writes num_bytes() to memory, 64-byte aligned, and returns the matrix that lies there.
  PackedMatrix write(void* memory, ThreadPool& pool) const;

 private:
  struct Block {
    uint8_t table[16];
    int64_t exceptions;
  };
  void write_block(int64_t block, const PackedMatrix& coded) const;

  PackedMatrix plain_;
  std::vector<Block> blocks_;
};

// The packed bf16 matrix that a coded one stands for, into `memory` of
// packed_elements(n, k, DType::bf16).
void decode(const PackedMatrix& coded, bf16* memory);

}  // namespace ce
