// Max-Gram (CS Drafting, Chen et al., arXiv 2312.11462): the longest suffix of a text that occurs
// earlier in it predicts that what followed then follows now. No state: the text is the index.
#pragma once

#include <cstdint>

#include "ce/kernels.h"

namespace ce {

// Matches longer than this are not told apart unless the caller says so.
inline constexpr int kMaxMatch = 32;

struct GramMatch {
  int64_t matched = 0;  // tokens of the suffix found, 0: none
  int64_t next = 0;     // index in the searched text of the token after the match
};

// Finds the longest suffix of tokens[0:length], of at most max_match tokens, that occurs in
// text[0:searchable] with at least one token after it; the latest occurrence among the longest.
// The text may be tokens itself, with searchable = length; occurrences may then overlap the suffix.
GramMatch longest_suffix(const Kernels& kernels, const int32_t* text, int64_t searchable,
                         const int32_t* tokens, int64_t length, int64_t max_match);

// A text that is searched beside the row: an expected answer, say.
struct Corpus {
  const int32_t* tokens = nullptr;
  int64_t length = 0;
};

// Drafts up to `count` tokens at tokens[length..] and returns how many: what followed the longest
// match, the corpus' before the row's own at equal length. A copy from the row that reaches the
// row's end goes on with the tokens it has just written, so that a text with period n is continued
// with period n. A copy from the corpus stops at the corpus' end.
int64_t max_gram(const Kernels& kernels, int32_t* tokens, int64_t length, int64_t count,
                 int64_t max_match, const Corpus& corpus);

}  // namespace ce
