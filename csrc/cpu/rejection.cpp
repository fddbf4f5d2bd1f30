// The rejection rule: see review_by_rejection in ce/accept.h.
#include <algorithm>
#include <vector>

#include "ce/accept.h"
#include "ce/check.h"

namespace ce {
namespace {

// Working memory of a thread: distributions [vocab].
struct Scratch {
  std::vector<float> level;  // the reviewing level's
  std::vector<float> left;   // what is left of it after a rejection
  std::vector<float> final_level, final_left;

  void resize(int64_t vocab) {
    for (auto* v : {&level, &left, &final_level, &final_left})
      v->resize(static_cast<size_t>(vocab));
  }
};

Scratch& rejection_scratch(int64_t vocab) {
  thread_local Scratch scratch;
  scratch.resize(vocab);
  return scratch;
}

struct Uniforms {
  double accept, choose;  // in (0, 1)
};

double uniform(uint32_t high, uint32_t low) {
  const uint64_t bits = static_cast<uint64_t>(high) << 20 | low >> 12;
  return (static_cast<double>(bits) + 0.5) * 0x1p-52;
}

Uniforms uniforms(const ReviewRow& r, int64_t position, uint32_t round) {
  const SamplerParams& p = r.sampler->params();
  const PhiloxBlock b =
      philox4x32(r.rejection.number, static_cast<uint32_t>(position), p.sample_index,
                 kRejectionStream + (round << 8), static_cast<uint32_t>(p.seed),
                 static_cast<uint32_t>(p.seed >> 32));
  return {uniform(b.lane[0], b.lane[1]), uniform(b.lane[2], b.lane[3])};
}

// A drafted token and what it was drawn from; null: itself, with certainty.
struct Draft {
  int32_t token;
  const float* probs;

  double prob(int64_t vocab) const {
    return probs == nullptr ? 1.0 : probability(probs, token, vocab);
  }
  static double probability(const float* from, int32_t token, int64_t vocab) {
    return token < vocab ? static_cast<double>(from[token]) : 0.0;
  }
};

// out = max(0, scale * from - draft); returns its sum. `out` may be `from`.
double residual(const float* from, double scale, const Draft& draft, int64_t vocab, float* out) {
  constexpr int kSums = 8;  // sums of their own, so that additions need not wait for each other
  double sums[kSums] = {};
  const auto put = [&](int64_t i, double value) {
    value = std::max(value, 0.0);
    out[i] = static_cast<float>(value);
    sums[i % kSums] += value;
  };
  if (draft.probs != nullptr) {
    for (int64_t i = 0; i < vocab; ++i)
      put(i, scale * static_cast<double>(from[i]) - static_cast<double>(draft.probs[i]));
  } else {
    for (int64_t i = 0; i < vocab; ++i)
      put(i, scale * static_cast<double>(from[i]) - (i == draft.token ? 1.0 : 0.0));
  }
  double total = 0.0;
  for (const double sum : sums) total += sum;
  return total;
}

// The token at the share u of the weights' sum, in the order of ids.
int32_t pick(const float* weights, double total, double u, int64_t vocab) {
  const double wanted = u * total;
  double sum = 0.0;
  int64_t last = 0;
  for (int64_t i = 0; i < vocab; ++i) {
    if (weights[i] <= 0.0f) continue;
    sum += static_cast<double>(weights[i]);
    last = i;
    if (sum > wanted) break;
  }
  return static_cast<int32_t>(last);
}

// What one lenient round leaves has this distribution:
//   min(draft, l level) + (1 - sum of that) * normalised max(0, l level - draft).
void lenient_mixture(const float* level, double lenience, const Draft& draft, int64_t vocab,
                     float* left, float* out) {
  const double total = residual(level, lenience, draft, vocab, left);
  double accepted = 0.0;
  const auto kept = [&](int64_t i) {
    const double drafted = draft.probs != nullptr ? static_cast<double>(draft.probs[i])
                                                  : (i == draft.token ? 1.0 : 0.0);
    return std::min(drafted, lenience * static_cast<double>(level[i]));
  };
  for (int64_t i = 0; i < vocab; ++i) accepted += kept(i);
  const double scale = total > 0.0 ? std::max(0.0, 1.0 - accepted) / total : 0.0;
  for (int64_t i = 0; i < vocab; ++i)
    out[i] = static_cast<float>(kept(i) + scale * static_cast<double>(left[i]));
}

// A row under review, and what all rules need of it.
class Review {
 public:
  Review(const ReviewArgs& args, const ReviewRow& r, const Kernels& kernels)
      : args_(args),
        r_(r),
        kernels_(kernels),
        vocab_(args.vocab),
        tokens_(args.tokens + r.row * args.token_stride),
        probs_(args.probs == nullptr ? nullptr : args.probs + r.row * args.token_stride),
        s_(rejection_scratch(args.vocab)) {}

  Accepted chain();
  Accepted tree(const ReviewTree& tree);

 private:
  // Fills s_.level for logit row j, which predicts the token at `position`.
  void judge(int64_t j, int64_t position, bool new_row) {
    const int64_t mask_words = (vocab_ + 31) / 32;
    const uint32_t* allowed = r_.allowed == nullptr ? nullptr : r_.allowed + j * mask_words;
    const float* logits = args_.logits + (r_.first_logit_row + j) * args_.logits_stride;
    Decision decision(kernels_, *r_.sampler, {logits, vocab_, tokens_, position, allowed, new_row},
                      sampler_scratch());
    decision.distribution(s_.level.data());
  }
  // The draft at a position of the row.
  Draft drafted(int64_t position, int32_t token) const {
    CE_CHECK(token >= 0, "row ", r_.row, " holds token ", token, " at position ", position,
             ", before its length ", r_.length);
    return {token, args_.distributions->find(r_.row, position)};
  }
  void keep(int64_t position, const float* probs) {
    if (r_.rejection.keeps)
      std::copy(probs, probs + vocab_, args_.distributions->put(r_.row, position).data());
  }
  void write(int64_t position, int32_t token, const float* from) {
    tokens_[position] = token;
    if (probs_ != nullptr)
      probs_[position] = static_cast<float>(Draft::probability(from, token, vocab_));
  }
  void finish(int64_t length) {
    args_.distributions->truncate(r_.row, r_.rejection.keeps ? length : 0);
  }

  const ReviewArgs& args_;
  const ReviewRow& r_;
  const Kernels& kernels_;
  const int64_t vocab_;
  int32_t* tokens_;
  float* probs_;
  Scratch& s_;
};

// Block verification. `reach` is the probability that the first j drafts stay, given them alone:
// min(1, reach * level(x) / draft(x)) from draft to draft. The longest prefix that passes its own
// draw stays; what was left at its end gives the own token.
Accepted Review::chain() {
  const int64_t drafts = r_.length - r_.frontier;
  int64_t accepted = 0;
  double reach = 1.0, final_total = 0.0;
  for (int64_t j = 0;; ++j) {
    const int64_t position = r_.frontier + j;
    judge(j, position, j == 0);
    Draft draft{};
    double pass = reach, total = 1.0;
    if (j < drafts) {
      draft = drafted(position, tokens_[position]);
      total = residual(s_.level.data(), reach, draft, vocab_, s_.left.data());
      pass = reach < 1.0 ? total / (total + 1.0 - reach) : 1.0;
    }
    if (j == drafts || total <= 0.0) {  // nothing left: the drafts go on, but for rounding
      s_.left = s_.level;
      total = 1.0;
    }
    const float* level = s_.level.data();
    double ratio = 0.0;
    if (j < drafts) {
      const double own = Draft::probability(level, draft.token, vocab_);
      const double other = draft.prob(vocab_);
      ratio = own > 0.0 ? own / other : 0.0;
      keep(position, level);
    }
    if (j == 0 || uniforms(r_, position, 0).accept < pass) {
      accepted = j;
      final_total = total;
      s_.final_level = s_.level;
      std::swap(s_.left, s_.final_left);
    }
    if (j == drafts) break;
    reach = std::min(1.0, reach * ratio);
    if (reach <= 0.0) break;
    if (probs_ != nullptr)
      probs_[position] = static_cast<float>(Draft::probability(level, draft.token, vocab_));
  }
  const int64_t end = r_.frontier + accepted;
  const int32_t own = pick(s_.final_left.data(), final_total, uniforms(r_, end, 0).choose, vocab_);
  keep(end, s_.final_level.data());
  write(end, own, s_.final_level.data());
  finish(end + 1);
  return {static_cast<int32_t>(accepted), own, {}};
}

Accepted Review::tree(const ReviewTree& tree) {
  const int32_t nodes = static_cast<int32_t>(r_.length - r_.frontier);
  std::vector<int32_t> path;
  for (int32_t at = -1;; path.push_back(at)) {
    const int64_t position = r_.frontier + static_cast<int64_t>(path.size());
    judge(at + 1, position, path.empty());
    const float* left = s_.level.data();
    double total = 1.0;
    Draft first{};
    uint32_t round = 0;
    int32_t next = -1;
    for (int32_t c = at + 1; c < nodes && next < 0; ++c) {
      if (tree.parents[c] != at) continue;
      Draft draft{tree.tokens[c], nullptr};
      if (c < r_.rejection.trunk) draft = drafted(position, draft.token);
      if (round == 0) first = draft;
      const double lenience = round == 0 ? static_cast<double>(args_.lenience) : 1.0;
      const double level = lenience / total * Draft::probability(left, draft.token, vocab_);
      if (uniforms(r_, position, round++).accept * draft.prob(vocab_) < level) {
        next = c;
        break;
      }
      const double rest = residual(left, lenience / total, draft, vocab_, s_.left.data());
      if (rest <= 0.0) {  // a token of the level passes for certain, but for rounding
        if (level > 0.0) next = c;
        break;
      }
      left = s_.left.data();
      total = rest;
    }
    const int32_t token = next >= 0
                              ? tree.tokens[next]
                              : pick(left, total, uniforms(r_, position, round).choose, vocab_);
    const float* kept = s_.level.data();
    if (args_.lenience > 1.0f && round > 0) {
      lenient_mixture(s_.level.data(), static_cast<double>(args_.lenience), first, vocab_,
                      s_.left.data(), s_.final_level.data());
      kept = s_.final_level.data();
    }
    keep(position, kept);
    write(position, token, kept);
    if (next < 0) {
      finish(position + 1);
      return {static_cast<int32_t>(path.size()), token, std::move(path)};
    }
    at = next;
  }
}

}  // namespace

// Not greedy: exp((value - highest) / temperature), normalised over what the filters keep.
void Decision::distribution(float* out) {
  if (!filtered_) {
    const int64_t best = kernels_.argmax(values_, vocab_);
    check_choice(best);
    const double total =
        kernels_.exp_terms(values_, vocab_, values_[best], sampler_.params().temperature, out);
    const double scale = 1.0 / total;
    for (int64_t i = 0; i < vocab_; ++i)
      out[i] = static_cast<float>(scale * static_cast<double>(out[i]));
    return;
  }
  keep();
  std::fill(out, out + vocab_, 0.0f);
  for (const Candidate& c : scratch_.candidates)
    out[c.id] = static_cast<float>(c.weight / kept_total_);
}

Accepted review_by_rejection(const ReviewArgs& args, const ReviewRow& r, const Kernels& kernels) {
  Review review(args, r, kernels);
  if (r.tree.tokens != nullptr) return review.tree(r.tree);
  if (args.lenience == 1.0f) return review.chain();
  const int64_t drafts = r.length - r.frontier;
  const int32_t* first = args.tokens + r.row * args.token_stride + r.frontier;
  const std::vector<int32_t> tokens(first, first + drafts);
  std::vector<int32_t> parents(tokens.size());
  for (size_t j = 0; j < parents.size(); ++j) parents[j] = static_cast<int32_t>(j) - 1;
  ReviewRow chain = r;
  chain.rejection.trunk = drafts;
  Accepted accepted = Review(args, chain, kernels).tree({tokens.data(), parents.data(), nullptr});
  accepted.path.clear();
  return accepted;
}

}  // namespace ce
