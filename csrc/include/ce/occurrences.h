// Where every n-gram of a growing text occurred: the counts of a request's own tokens, and of
// finished requests. Flat arrays without pointers: the text, for each position and order the
// previous position with the same context, and one open-addressing hash table of the latest ones.
//
// Position i is an occurrence of the contexts text[i - n, i) for n = 1..kRowOrder; text[i] is what
// followed. Contexts do not reach across a kBoundary. Appending costs O(kRowOrder) a token, taking
// tokens back as much, and leaves exactly the state from before they were appended.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace ce {

inline constexpr int kRowOrder = 8;
inline constexpr int64_t kMostTokens = int64_t{1} << 24;  // of a text
inline constexpr int32_t kBoundary = -1;                  // between texts; no token has this id

class Occurrences {
 public:
  int64_t length() const { return static_cast<int64_t>(text_.size()); }
  const int32_t* text() const { return text_.data(); }

  // Tokens are >= 0 or kBoundary. Throws InvalidArgument beyond kMostTokens; nothing is appended
  // then.
  void append(const int32_t* tokens, int64_t count);
  void truncate(int64_t length);
  // Forgets the first `count` tokens; costs as much as appending the others.
  void drop_front(int64_t count);
  // Empties it; `release` gives the memory back too.
  void clear(bool release);

  // The latest occurrences of the contexts that end before `end`, of which `available` tokens may
  // be read: heads[n - 1] for order n. Returns how many orders are known, without gaps.
  int heads(const int32_t* end, int64_t available, int32_t* heads) const;
  // The occurrence of the same context of `order` tokens before this one, or -1.
  int32_t previous(int32_t position, int order) const {
    return previous_[static_cast<size_t>(position) * kRowOrder + static_cast<size_t>(order - 1)];
  }

  int64_t nbytes() const;

 private:
  struct Slot {
    uint32_t tag = 0;
    int32_t position = kEmpty;
  };
  static constexpr int32_t kEmpty = -1;
  static constexpr int32_t kDeleted = -2;

  bool same(int32_t position, const int32_t* end, int order) const;
  const Slot* find(uint64_t hash, const int32_t* end, int order) const;
  Slot& claim(uint64_t hash, const int32_t* end, int order);
  void grow(int64_t length);
  void index(int64_t position);

  std::vector<int32_t> text_;
  std::vector<int32_t> previous_;  // [length][kRowOrder]
  std::vector<Slot> slots_;        // a power of two
  int64_t used_ = 0;               // slots that are not kEmpty
};

}  // namespace ce
