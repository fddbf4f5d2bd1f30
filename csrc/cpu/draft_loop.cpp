#include "ce/draft_loop.h"

#include <algorithm>

#include "ce/check.h"

namespace ce {
namespace {

void check(const std::vector<DraftRow>& rows, bool has_probs) {
  for (size_t i = 0; i < rows.size(); ++i) {
    CE_CHECK(rows[i].cached >= 0 && rows[i].cached < rows[i].length, "cached[", i,
             "] = ", rows[i].cached, " must be in 0..", rows[i].length - 1,
             ", before the row's last token");
    CE_CHECK(rows[i].tokens >= 1, "counts[", i, "] must be >= 1, got ", rows[i].tokens);
    const double least = rows[i].min_confidence;
    CE_CHECK(least >= 0.0 && least <= 1.0, "min_confidences[", i, "] must be in [0, 1], got ",
             least);
    CE_CHECK(least == 0.0 || has_probs, "min_confidences[", i, "] = ", least,
             " looks at probabilities: pass probs, or 0");
  }
}

// What has become of one row.
struct Drafted {
  int tokens = 0;
  double confidence = 1.0;
  bool done = false;

  void add(const DraftRow& row, int32_t token, double prob) {
    const bool ends = row.sampler->ends_drafts(token, row.length + tokens);
    ++tokens;
    confidence *= prob;
    done = tokens == row.tokens || ends || confidence < row.min_confidence;
  }
};

// What one pass feeds, and what is reviewed behind it: a token for each row that is not done.
struct Pass {
  std::vector<int> rows, starts, counts, logits;
  std::vector<ReviewRow> reviews;
  std::vector<Accepted> accepted;

  void gather(const std::vector<DraftRow>& drafts, const std::vector<Drafted>& states,
              int drafted) {
    for (auto* list : {&rows, &starts, &counts, &logits}) list->clear();
    reviews.clear();
    for (size_t i = 0; i < drafts.size(); ++i) {
      if (states[i].done) continue;
      const DraftRow& d = drafts[i];
      const int end = d.length + drafted;
      const int start = drafted == 0 ? d.cached : end - 1;
      rows.push_back(d.row);
      starts.push_back(start);
      counts.push_back(end - start);
      logits.push_back(1);
      RejectionRow rejection = d.rejection;
      rejection.number += static_cast<uint32_t>(drafted);
      reviews.push_back({d.row, end, end, d.sampler, nullptr, {}, rejection, 0});
    }
    accepted.resize(reviews.size());
  }
};

std::vector<int> counts_of(const std::vector<Drafted>& states) {
  std::vector<int> counts;
  for (const Drafted& state : states) counts.push_back(state.tokens);
  return counts;
}

}  // namespace

std::vector<int> draft_tokens(const DraftLoopArgs& args, const std::vector<DraftRow>& rows,
                              const Kernels& kernels, ThreadPool& pool) {
  const float* probs = args.review.probs;
  check(rows, probs != nullptr);
  std::vector<Drafted> states(rows.size());
  Pass pass;
  for (int drafted = 0;; ++drafted) {
    pass.gather(rows, states, drafted);
    if (pass.rows.empty()) return counts_of(states);
    args.program.run(pass.rows, pass.starts, pass.counts, pass.logits,
                     args.left_padded && drafted == 0, {});
    ReviewArgs review = args.review;
    review.logits = args.program.data_f32(args.logits);
    review.logits_stride = args.program.cols(args.logits);
    review.logit_rows = args.program.rows(args.logits);
    try {
      accept(review, pass.reviews.data(), static_cast<int64_t>(pass.reviews.size()), kernels, pool,
             pass.accepted.data());
    } catch (const InvalidArgument&) {
      if (drafted == 0) throw;
      return counts_of(states);
    }
    for (size_t i = 0; i < rows.size(); ++i) {
      const DraftRow& d = rows[i];
      if (states[i].done) continue;
      const int64_t at = d.row * args.review.token_stride + d.length + drafted;
      const double prob = probs == nullptr ? 1.0 : static_cast<double>(probs[at]);
      states[i].add(d, args.review.tokens[at], prob);
    }
  }
}

}  // namespace ce
