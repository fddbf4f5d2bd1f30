#include "ce/draft_loop.h"

#include <algorithm>

#include "ce/check.h"

namespace ce {
namespace {

void check(const std::vector<DraftRow>& rows) {
  for (size_t i = 0; i < rows.size(); ++i) {
    CE_CHECK(rows[i].cached >= 0 && rows[i].cached < rows[i].length, "cached[", i,
             "] = ", rows[i].cached, " must be in 0..", rows[i].length - 1,
             ", before the row's last token");
    CE_CHECK(rows[i].tokens >= 1, "counts[", i, "] must be >= 1, got ", rows[i].tokens);
  }
}

// What one pass feeds, and what is reviewed behind it.
struct Pass {
  std::vector<int> rows, starts, counts, logits;
  std::vector<ReviewRow> reviews;
  std::vector<Accepted> accepted;

  void gather(const std::vector<DraftRow>& drafts, int drafted) {
    for (auto* list : {&rows, &starts, &counts, &logits}) list->clear();
    reviews.clear();
    for (const DraftRow& d : drafts) {
      if (d.tokens <= drafted) continue;
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

}  // namespace

int64_t draft_tokens(const DraftLoopArgs& args, const std::vector<DraftRow>& rows,
                     const Kernels& kernels, ThreadPool& pool) {
  check(rows);
  Pass pass;
  for (int drafted = 0;; ++drafted) {
    pass.gather(rows, drafted);
    if (pass.rows.empty()) return drafted;
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
      return drafted;
    }
  }
}

}  // namespace ce
