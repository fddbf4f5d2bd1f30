#include "ce/propose.h"

#include <algorithm>

namespace ce {

int64_t propose(const Statistics& statistics, int32_t* tokens, float* probs, int64_t length,
                int64_t count, const Corpus& corpus) {
  int64_t drafted =
      max_gram(statistics.kernels, tokens, length, count, statistics.max_match, corpus);
  if (statistics.table != nullptr)
    drafted += ngram_chain(*statistics.table, tokens, length + drafted, count - drafted);
  if (probs != nullptr) std::fill_n(probs + length, drafted, 1.0f);
  return drafted;
}

}  // namespace ce
