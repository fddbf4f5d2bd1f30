#include "ce/occurrences.h"

#include <algorithm>

#include "ce/check.h"

namespace ce {
namespace {

constexpr int64_t kLeastSlots = 256;

// The low bits of a tag are the order, so that contexts of two orders are never taken for one.
uint32_t tag_of(uint64_t hash, int order) {
  return (static_cast<uint32_t>(hash >> 32) & ~7u) | static_cast<uint32_t>(order - 1);
}

// Extends the hash of a context by one token in front of it.
uint64_t extended(uint64_t hash, int32_t token) {
  hash = (hash ^ static_cast<uint32_t>(token)) * 0x9E3779B97F4A7C15ull;
  return hash ^ (hash >> 31);
}

}  // namespace

bool Occurrences::same(int32_t position, const int32_t* end, int order) const {
  if (position < order) return false;
  const int32_t* found = text_.data() + position;
  for (int n = 1; n <= order; ++n)
    if (found[-n] != end[-n]) return false;
  return true;
}

const Occurrences::Slot* Occurrences::find(uint64_t hash, const int32_t* end, int order) const {
  const size_t mask = slots_.size() - 1;
  const uint32_t tag = tag_of(hash, order);
  for (size_t i = (hash >> 32) & mask;; i = (i + 1) & mask) {
    const Slot& slot = slots_[i];
    if (slot.position == kEmpty) return nullptr;
    if (slot.tag == tag && same(slot.position, end, order)) return &slot;
  }
}

Occurrences::Slot& Occurrences::claim(uint64_t hash, const int32_t* end, int order) {
  const size_t mask = slots_.size() - 1;
  const uint32_t tag = tag_of(hash, order);
  Slot* free = nullptr;
  for (size_t i = (hash >> 32) & mask;; i = (i + 1) & mask) {
    Slot& slot = slots_[i];
    if (slot.position < 0) {
      if (free == nullptr) free = &slot;
      if (slot.position == kEmpty) break;
    } else if (slot.tag == tag && same(slot.position, end, order)) {
      return slot;
    }
  }
  if (free->position == kEmpty) ++used_;
  *free = {tag, kDeleted};
  return *free;
}

void Occurrences::index(int64_t position) {
  const int32_t* end = text_.data() + position;
  int32_t* previous = previous_.data() + position * kRowOrder;
  std::fill(previous, previous + kRowOrder, -1);
  if (*end == kBoundary) return;
  uint64_t hash = 0;
  for (int n = 1; n <= kRowOrder && n <= position && end[-n] != kBoundary; ++n) {
    hash = extended(hash, end[-n]);
    Slot& slot = claim(hash, end, n);
    if (slot.position >= 0) previous[n - 1] = slot.position;
    slot.position = static_cast<int32_t>(position);
  }
}

// Makes room for all contexts of `length` tokens at a load of at most a half, deleted ones swept.
void Occurrences::grow(int64_t length) {
  int64_t size = kLeastSlots;
  while (size < 2 * kRowOrder * length) size *= 2;
  slots_.assign(static_cast<size_t>(size), Slot{});
  used_ = 0;
}

void Occurrences::append(const int32_t* tokens, int64_t count) {
  const int64_t before = length(), after = before + count;
  CE_CHECK(after <= kMostTokens, "a text may have up to ", kMostTokens, " tokens, got ", after);
  text_.insert(text_.end(), tokens, tokens + count);
  previous_.resize(static_cast<size_t>(after) * kRowOrder);
  int64_t from = before;
  const int64_t needed = used_ + count * kRowOrder;
  if (3 * needed > 2 * static_cast<int64_t>(slots_.size())) {
    grow(after + after / 4);
    from = 0;
  }
  for (int64_t i = from; i < after; ++i) index(i);
}

void Occurrences::truncate(int64_t length) {
  CE_CHECK(length >= 0, "length must be >= 0, got ", length);
  for (int64_t i = this->length() - 1; i >= length; --i) {
    const int32_t* end = text_.data() + i;
    if (*end == kBoundary) continue;
    uint64_t hash = 0;
    for (int n = 1; n <= kRowOrder && n <= i && end[-n] != kBoundary; ++n) {
      hash = extended(hash, end[-n]);
      const int32_t before = previous(static_cast<int32_t>(i), n);
      claim(hash, end, n).position = before >= 0 ? before : kDeleted;
    }
  }
  if (length >= this->length()) return;
  text_.resize(static_cast<size_t>(length));
  previous_.resize(static_cast<size_t>(length) * kRowOrder);
}

void Occurrences::drop_front(int64_t count) {
  const std::vector<int32_t> kept(text_.begin() + std::min(count, length()), text_.end());
  clear(false);
  append(kept.data(), static_cast<int64_t>(kept.size()));
}

void Occurrences::clear(bool release) {
  if (release) {
    *this = Occurrences();
    return;
  }
  text_.clear();
  previous_.clear();
  std::fill(slots_.begin(), slots_.end(), Slot{});
  used_ = 0;
}

int Occurrences::heads(const int32_t* end, int64_t available, int32_t* heads) const {
  if (slots_.empty()) return 0;
  const int deepest = static_cast<int>(std::min<int64_t>(kRowOrder, available));
  uint64_t hash = 0;
  for (int n = 1; n <= deepest; ++n) {
    hash = extended(hash, end[-n]);
    if (n > 1 && previous(heads[n - 2], n - 1) < 0) {
      // The shorter context occurred once; the longer one occurred there or nowhere.
      const int32_t only = heads[n - 2];
      if (only < n || text_[static_cast<size_t>(only - n)] != end[-n]) return n - 1;
      heads[n - 1] = only;
      continue;
    }
    const Slot* slot = find(hash, end, n);
    if (slot == nullptr) return n - 1;
    heads[n - 1] = slot->position;
  }
  return deepest;
}

int64_t Occurrences::nbytes() const {
  return static_cast<int64_t>(text_.capacity() * 4 + previous_.capacity() * 4 +
                              slots_.capacity() * sizeof(Slot));
}

}  // namespace ce
