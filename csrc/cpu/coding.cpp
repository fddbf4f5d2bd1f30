// Packed bf16 weights to coded ones and back (see CodedBytes).
#include "ce/coding.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <numeric>

#include "ce/check.h"
#include "ce/parallel.h"

namespace ce {
namespace {

constexpr int kEntries = 8;  // of a table, each with either sign

// Among the pairs of a unit, the element of a place.
int pair_element(int place) {
  return place / 64 * 64 + place / 8 % 2 * 32 + place % 64 / 16 * 8 + place % 8;
}

int64_t steps_of(int64_t k) {
  return (k + 1) / 2;
}

// Places of a unit: the last of an odd number of steps is half empty.
int places(const PackedMatrix& matrix, int64_t unit) {
  return 2 * unit + 1 < steps_of(matrix.k) ? kUnitPlaces : kUnitPlaces / 2;
}

const bf16* plain_block(const PackedMatrix& plain, int64_t block) {
  return static_cast<const bf16*>(plain.data) + block * steps_of(plain.k) * 64;
}

int64_t aligned(int64_t bytes) {
  return (bytes + 63) / 64 * 64;
}

// The most frequent high bytes without their signs, the lower of two as frequent.
void choose_table(const int64_t (&counts)[128], uint8_t (&table)[16]) {
  std::array<uint8_t, 128> order;
  std::iota(order.begin(), order.end(), uint8_t{0});
  std::partial_sort(
      order.begin(), order.begin() + kEntries, order.end(),
      [&](uint8_t a, uint8_t b) { return counts[a] != counts[b] ? counts[a] > counts[b] : a < b; });
  for (int i = 0; i < kEntries; ++i) {
    table[i] = order[static_cast<size_t>(i)];
    table[kEntries + i] = table[i] | 0x80;
  }
}

}  // namespace

Coding::Coding(const PackedMatrix& plain, ThreadPool& pool)
    : plain_(plain), blocks_(static_cast<size_t>(packed_blocks(plain.n))) {
  CE_CHECK(plain.dtype == DType::bf16, "only bf16 weights can be coded");
  CE_CHECK(plain.k <= kMaxCodedColumns, "weights of k = ", plain.k, " cannot be coded: at most ",
           kMaxCodedColumns);
  for_each_item(pool, static_cast<int64_t>(blocks_.size()), [&](int64_t i) {
    const bf16* in = plain_block(plain, i);
    const int64_t elements = steps_of(plain.k) * 64;
    int64_t parts[4][128] = {};  // one alone would wait for its own last write
    for (int64_t e = 0; e < elements; ++e) ++parts[e % 4][in[e].bits >> 8 & 0x7f];
    int64_t counts[128];
    for (int b = 0; b < 128; ++b) counts[b] = parts[0][b] + parts[1][b] + parts[2][b] + parts[3][b];
    Block& block = blocks_[static_cast<size_t>(i)];
    choose_table(counts, block.table);
    block.exceptions = elements;
    for (int b = 0; b < kEntries; ++b) block.exceptions -= counts[block.table[b]];
  });
}

int64_t Coding::exceptions() const {
  int64_t sum = 0;
  for (const Block& block : blocks_) sum += block.exceptions;
  return sum;
}

int64_t Coding::num_bytes() const {
  const int64_t count = static_cast<int64_t>(blocks_.size());
  return packed_elements(plain_.n, plain_.k, DType::coded) + aligned(16 * count) +
         aligned(4 * count) + 4 * (exceptions() + count);
}

PackedMatrix Coding::write(void* memory, ThreadPool& pool) const {
  const int64_t count = static_cast<int64_t>(blocks_.size());
  char* at = static_cast<char*>(memory);
  PackedMatrix coded{at, DType::coded, plain_.n, plain_.k};
  at += packed_elements(plain_.n, plain_.k, DType::coded);
  uint8_t* tables = reinterpret_cast<uint8_t*>(at);
  uint32_t* first = reinterpret_cast<uint32_t*>(at + aligned(16 * count));
  uint32_t next = 0;
  for (int64_t i = 0; i < count; ++i) {
    const Block& block = blocks_[static_cast<size_t>(i)];
    std::memcpy(tables + 16 * i, block.table, 16);
    first[i] = next;
    next += static_cast<uint32_t>(block.exceptions) + 1;
  }
  coded.coded = {tables,
                 reinterpret_cast<uint32_t*>(reinterpret_cast<char*>(first) + aligned(4 * count)),
                 first};
  for_each_item(pool, count, [&](int64_t i) { write_block(i, coded); });
  return coded;
}

void Coding::write_block(int64_t block, const PackedMatrix& coded) const {
  const Block& facts = blocks_[static_cast<size_t>(block)];
  uint8_t codes[256];
  std::memset(codes, 255, sizeof codes);
  for (int code = 0; code < 2 * kEntries; ++code)
    codes[facts.table[code]] = static_cast<uint8_t>(code);
  uint32_t* exception = const_cast<uint32_t*>(coded.coded.exceptions) + coded.coded.first[block];
  const int64_t units = coded_units(plain_.k);
  const bf16* in = plain_block(plain_, block);
  uint8_t* out = static_cast<uint8_t*>(const_cast<void*>(coded.data)) + block * units * kUnitBytes;
  for (int64_t unit = 0; unit < units; ++unit, in += kUnitPlaces, out += kUnitBytes) {
    std::memset(out, 0, kUnitBytes);
    for (int place = 0; place < places(plain_, unit); ++place) {
      const uint16_t bits = in[pair_element(place)].bits;
      out[place] = static_cast<uint8_t>(bits);
      uint8_t code = codes[bits >> 8];
      if (code == 255) {
        *exception++ = static_cast<uint32_t>(unit * kUnitPlaces + place) << 8 | bits >> 8;
        code = 0;
      }
      out[kUnitPlaces + place % 64] |= static_cast<uint8_t>(code << (place / 64 * 4));
    }
  }
  *exception = kNoPlace;
}

void decode(const PackedMatrix& coded, bf16* memory) {
  CE_CHECK(coded.dtype == DType::coded, "only coded weights can be decoded");
  const int64_t units = coded_units(coded.k);
  for (int64_t block = 0; block < packed_blocks(coded.n); ++block) {
    const uint8_t* in = static_cast<const uint8_t*>(coded.data) + block * units * kUnitBytes;
    const uint8_t* table = coded.coded.tables + 16 * block;
    bf16* out = memory + block * steps_of(coded.k) * 64;
    for (int64_t unit = 0; unit < units; ++unit)
      for (int place = 0; place < places(coded, unit); ++place) {
        const uint8_t* bytes = in + unit * kUnitBytes;
        const int code = bytes[kUnitPlaces + place % 64] >> (place / 64 * 4) & 15;
        out[unit * kUnitPlaces + pair_element(place)].bits =
            static_cast<uint16_t>(table[code] << 8 | bytes[place]);
      }
    for (const uint32_t* e = coded.coded.exceptions + coded.coded.first[block]; *e != kNoPlace;
         ++e) {
      bf16& value = out[*e / 256 / kUnitPlaces * kUnitPlaces +
                        pair_element(static_cast<int>(*e / 256 % kUnitPlaces))];
      value.bits = static_cast<uint16_t>((value.bits & 255u) | (*e & 255u) << 8);
    }
  }
}

}  // namespace ce
