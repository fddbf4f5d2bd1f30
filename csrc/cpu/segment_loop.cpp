#include "ce/segment_loop.h"

#include <algorithm>
#include <chrono>
#include <numeric>

#include "ce/check.h"
#include "ce/parallel.h"

namespace ce {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

void check(const std::vector<SegmentRow>& rows, const ReviewArgs& review) {
  CE_CHECK(review.tokens != nullptr, "segments are drafted into rows of tokens: there are none");
  for (size_t i = 0; i < rows.size(); ++i) {
    const SegmentRow& r = rows[i];
    CE_CHECK(r.row >= 0, "rows[", i, "] must be >= 0, got ", r.row);
    CE_CHECK(r.cached >= 0 && r.cached < r.length, "cached[", i, "] = ", r.cached,
             " must be in 0..", r.length - 1, ", before the row's last token");
    CE_CHECK(r.tokens >= 1 && r.most >= 1 && r.width >= 1, "segments[", i, "]: tokens ", r.tokens,
             ", most ", r.most, " and width ", r.width, " must be >= 1");
    CE_CHECK(r.most <= review.token_stride - r.length, "segments[", i, "]: ", r.most,
             " tokens do not fit behind ", r.length, " in rows of ", review.token_stride);
    const double least = r.min_confidence;
    CE_CHECK(least >= 0.0 && least <= 1.0, "segments[", i, "]: min_confidence must be in [0, 1], ",
             "got ", least);
    CE_CHECK(least == 0.0 || review.probs != nullptr, "segments[", i, "]: min_confidence ", least,
             " looks at probabilities: pass probs, or 0");
  }
}

// A row on its way.
struct Drafting {
  const SegmentRow* row;
  DraftedSegment* out;
  int length, cached;  // without drafts that nobody has reviewed
  int drafted = 0;     // of those
  int asked = 0;       // statistics, for them
  bool ended = false;  // the row's request, by a token of its segment
  double confidence = 1.0;

  bool wants_more() const {
    const int got = length - row->length;
    return !ended && got < row->tokens && got < row->most && confidence >= row->min_confidence;
  }

  void propose(const Statistics& statistics, const ReviewArgs& review) {
    const int64_t at = row->row * review.token_stride;
    float* probs = review.probs == nullptr ? nullptr : review.probs + at;
    const int room = row->most - (length - row->length) - 1;
    drafted = asked = 0;
    do {
      if (drafted >= room) return;
      const int64_t found = ce::propose(statistics, review.tokens + at, probs, length + drafted,
                                        std::min(row->width, room - drafted), row->corpus);
      ++asked;
      if (found == 0) return;
      drafted += static_cast<int>(found);
    } while (drafted < row->least);
  }

  ReviewRow review() const {
    const RejectionRow rejection{row->reviews + static_cast<uint32_t>(out->accepted.size()), true,
                                 drafted};
    return {row->row, length, length + drafted, row->sampler, nullptr, {}, rejection, 0};
  }

  void settle(const Accepted& accepted, const ReviewArgs& review) {
    const int64_t at = row->row * review.token_stride;
    out->proposed.push_back(drafted);
    out->accepted.push_back(accepted.num_accepted);
    for (int i = 0; i <= accepted.num_accepted; ++i, ++length) {
      ended = ended || row->sampler->ends_drafts(review.tokens[at + length], length);
      if (review.probs != nullptr) confidence *= static_cast<double>(review.probs[at + length]);
    }
    cached = length - 1;
  }
};

class Loop {
 public:
  Loop(const SegmentArgs& args, const Kernels& kernels, ThreadPool& pool)
      : args_(args), kernels_(kernels), pool_(pool) {}

  DraftedSegments run(const std::vector<SegmentRow>& rows) {
    out_.rows.resize(rows.size());
    for (size_t i = 0; i < rows.size(); ++i)
      active_.push_back({&rows[i], &out_.rows[i], rows[i].length, rows[i].cached});
    for (bool first = true;; first = false) {
      std::erase_if(active_, [](const Drafting& d) { return !d.wants_more(); });
      if (active_.empty()) return std::move(out_);
      propose();
      if (!review(first)) return std::move(out_);
    }
  }

 private:
  void propose() {
    const auto begin = Clock::now();
    for_each_item(pool_, static_cast<int64_t>(active_.size()), [&](int64_t i) {
      active_[static_cast<size_t>(i)].propose(args_.statistics, args_.review);
    });
    SegmentPass pass{0};
    for (const Drafting& d : active_) {
      pass.passes = std::max<int64_t>(pass.passes, d.asked);
      pass.rows += d.asked;
      pass.tokens += d.drafted;
      d.out->asked += d.asked;
    }
    pass.seconds = seconds_since(begin);
    if (pass.passes > 0) out_.proposals.push_back(pass);
  }

  // Whether every row has got its tokens; throws instead of saying no to the first pass.
  bool review(bool first) {
    const auto begin = Clock::now();
    for (auto* list : {&rows_, &starts_, &counts_, &logits_}) list->clear();
    reviews_.clear();
    for (const Drafting& d : active_) {
      rows_.push_back(d.row->row);
      starts_.push_back(d.cached);
      counts_.push_back(d.length + d.drafted - d.cached);
      logits_.push_back(d.drafted + 1);
      reviews_.push_back(d.review());
    }
    args_.program.run(rows_, starts_, counts_, logits_, args_.left_padded, {});
    ReviewArgs review = args_.review;
    review.logits = args_.program.data_f32(args_.logits);
    review.logits_stride = args_.program.cols(args_.logits);
    review.logit_rows = args_.program.rows(args_.logits);
    accepted_.resize(reviews_.size());
    try {
      accept(review, reviews_.data(), static_cast<int64_t>(reviews_.size()), kernels_, pool_,
             accepted_.data());
    } catch (const InvalidArgument&) {
      if (first) throw;
      return false;
    }
    for (size_t i = 0; i < active_.size(); ++i) active_[i].settle(accepted_[i], args_.review);
    const int64_t read = std::accumulate(counts_.begin(), counts_.end(), int64_t{0});
    const int64_t rows = static_cast<int64_t>(active_.size());
    out_.reviews.push_back({1, rows, read, seconds_since(begin)});
    return true;
  }

  const SegmentArgs& args_;
  const Kernels& kernels_;
  ThreadPool& pool_;
  DraftedSegments out_;
  std::vector<Drafting> active_;
  // Of the pass under way.
  std::vector<int> rows_, starts_, counts_, logits_;
  std::vector<ReviewRow> reviews_;
  std::vector<Accepted> accepted_;
};

}  // namespace

DraftedSegments draft_segments(const SegmentArgs& args, const std::vector<SegmentRow>& rows,
                               const Kernels& kernels, ThreadPool& pool) {
  check(rows, args.review);
  return Loop(args, kernels, pool).run(rows);
}

}  // namespace ce
