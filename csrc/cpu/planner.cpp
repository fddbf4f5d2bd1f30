#include "ce/planner.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace ce {
namespace {

// Drafting must promise so much over plain decoding.
constexpr double kGain = 1.03;
// The present kind of plan is kept unless another is better by this factor.
constexpr double kLoyalty = 1.01;
// Standard deviations of acceptance, that tell what knowing a plan better may be worth.
constexpr double kHope = 0.5;
// Target reviews that a trial must be expected to gain, to be looked into.
constexpr double kWorth = 0.3;
// Plans with so much of the best rate are measured again now and then.
constexpr double kNear = 0.85;
// Reviews that the model of a kind of plan counts as, against what the kind gave.
constexpr double kModel = 200.0;
// Steps that the model of a kind's times counts as; how much slower a step may be than expected, as
// a logarithm, to say something of its plan.
constexpr double kTimed = 10.0, kSlower = 0.5;
// Target reviews that a plan is taken to be followed for, once its drafters have read the text; and
// how much of one this may take where a plan is measured again.
constexpr double kStay = 5.0, kReading = 0.5;
// Bounds of the confidence that drafts go on with.
constexpr double kLeastConfidence = 0.05, kMostConfidence = 0.95;
// Rows differ if the most promising one keeps so many times as much as the least.
constexpr double kApart = 0.3;

// Density and upper tail of the standard normal distribution.
double density(double x) {
  return std::exp(-0.5 * x * x) / std::sqrt(2.0 * std::numbers::pi);
}
double tail(double x) {
  return 0.5 * std::erfc(x / std::numbers::sqrt2);
}

}  // namespace

void Fit::add(int rows, double tokens, double slower) {
  const double fade = 0.985;
  tokens_ = tokens_ * fade + rows * tokens;
  reviews_ = reviews_ * fade + rows;
  slower_ = slower_ * fade + slower;
  steps_ = steps_ * fade + 1.0;
}

double Fit::token_factor() const {
  return (tokens_ + kModel) / (reviews_ + kModel);
}

double Fit::factor() const {
  return token_factor() * std::exp(-slower_ / (steps_ + kTimed));
}

double Planner::corrected(const Estimate& estimate) const {
  const auto found = fits_.find({estimate.kind, bucket_});
  const double rate = estimate.rate() * (found == fits_.end() ? 1.0 : found->second.factor());
  return rate / (1.0 + lag(estimate) / (kStay * estimate.seconds));
}

// The most promising rows first: by what they keep of the first tokens of any draft, about.
void Planner::order(const std::vector<std::shared_ptr<RowRecord>>& rows) {
  const int n = known_.neural();
  std::vector<double> kept;
  for (int source = 1; source <= n; ++source) {
    const Survival& general = known_.ends(0, source).survival();
    kept.push_back(general[1] + general[2] + general[3] + general[4]);
  }
  std::vector<std::pair<double, std::shared_ptr<RowRecord>>> ranked;
  for (const auto& row : rows) {
    double promise = 0.0;
    for (int source = 1; source <= n; ++source) {
      const size_t pair = known_.pair(0, source);
      promise += kept[source - 1] / row->frailties[pair].hazard(known_.belief(pair));
    }
    ranked.emplace_back(promise, row);
  }
  std::stable_sort(ranked.begin(), ranked.end(),
                   [](const auto& a, const auto& b) { return a.first > b.first; });
  rows_.clear();
  for (auto& [_, row] : ranked) rows_.push_back(std::move(row));
  apart_ = !ranked.empty() && ranked.front().first > kApart * ranked.back().first;
}

Choice Planner::look(const std::vector<std::shared_ptr<RowRecord>>& rows, const Demand& demand) {
  const int count = std::max<int>(static_cast<int>(rows.size()), 1);
  bucket_ = row_bucket(count);
  ++looks_;
  order(rows);
  std::vector<const RowRecord*> ordered;
  for (const auto& row : rows_) ordered.push_back(row.get());
  Evaluation evaluation(known_, costs_, count, demand.overhead, trees_);
  std::vector<Estimate> kinds = evaluation.by_kind(ordered, count);
  for (int part = 3; part >= 1 && apart_ && count > 1; --part) {
    const int drafting = count * part / 4;
    if (drafting < 1 || drafting == count * (part + 1) / 4) continue;
    for (const Estimate& each : evaluation.by_kind(ordered, drafting)) {
      const auto same = std::find_if(kinds.begin(), kinds.end(),
                                     [&](const Estimate& k) { return k.kind == each.kind; });
      if (same->rate() < each.rate()) *same = each;
    }
  }
  Choice choice;
  choice.plain = kinds.front();
  choice.plain_rate = corrected(choice.plain);
  const Estimate* same = nullptr;
  for (const Estimate& each : kinds) {
    const double rate = corrected(each);
    if (each.kind == force_.kind) same = &each;
    if (rate > choice.rate) choice.rate = rate, choice.best = each;
  }
  if (demand.loyal && same && corrected(*same) * kLoyalty >= choice.rate) {
    choice.best = *same;
    choice.rate = corrected(*same);
  }
  if (choice.rate < kGain * choice.plain_rate) {
    choice.best = choice.plain;
    choice.rate = choice.plain_rate;
  }
  set_confidence(choice.best, choice.rate * count);
  if (demand.allowed < 0.0) return choice;
  for (const Estimate& hoped : evaluation.by_kind(ordered, count, kHope)) {
    const auto same = std::find_if(kinds.begin(), kinds.end(),
                                   [&](const Estimate& k) { return k.kind == hoped.kind; });
    same->spread = std::max(hoped.rate() / same->rate() - 1.0, 1e-9);
  }
  if (worth_trying(choice, kinds, demand)) {
    const int few = std::max(1, count / 4);
    choice.trial =
        trial(choice, kinds, few < count ? evaluation.by_kind(ordered, few) : kinds, demand);
  }
  if (!choice.trial && demand.refresh) choice.trial = refresh(choice, kinds);
  if (choice.trial) set_confidence(*choice.trial, choice.rate * count);
  return choice;
}

// One more token of a draft is worth its time while the chance that all of it stays is more than
// what decoding gives in that time, `rate` tokens of all rows a second. The chance only falls, and
// a token costs what the one before it did: the first one that is not worth it is the last to be
// looked at (the monotone case of optimal stopping: Chow, Robbins and Siegmund, Great Expectations,
// 1971).
void Planner::set_confidence(Estimate& estimate, double rate) const {
  double& least = estimate.plan.min_confidence;
  if (least > 0.0) least = std::clamp(rate * estimate.one_more, kLeastConfidence, kMostConfidence);
}

// The expected gain of knowing a kind of plan better (a knowledge gradient) over the time that a
// better plan would be of use for, in target reviews; without what reading costs.
double Planner::gain(const Choice& choice, const Estimate& each, const Demand& demand) const {
  if (each.kind == choice.best.kind || each.kind == Evaluation::kPlain) return -1.0;
  const double reading = lag(each);
  if (reading > demand.allowed) return -1.0;
  const double rate = corrected(each);
  const double spread = rate * each.spread;
  const double gap = (choice.rate - rate) / spread;
  const double gain = spread / choice.rate * (density(gap) - gap * tail(gap)) * demand.horizon;
  return gain - reading * choice.rate;
}

bool Planner::worth_trying(const Choice& choice, const std::vector<Estimate>& kinds,
                           const Demand& demand) const {
  return std::any_of(kinds.begin(), kinds.end(),
                     [&](const Estimate& each) { return gain(choice, each, demand) > kWorth; });
}

// The kind of plan that is worth most beyond what the trial costs, by all rows or by few.
std::optional<Estimate> Planner::trial(const Choice& choice, const std::vector<Estimate>& kinds,
                                       const std::vector<Estimate>& trials,
                                       const Demand& demand) const {
  std::optional<Estimate> found;
  double value = kWorth;
  for (size_t i = 0; i < kinds.size(); ++i) {
    const Estimate& cheaper = corrected(trials[i]) > corrected(kinds[i]) ? trials[i] : kinds[i];
    const double lost = std::max(1.0 - corrected(cheaper) / choice.rate, 0.0);
    const double net = gain(choice, kinds[i], demand) - lost;
    if (net > value) value = net, found = cheaper;
  }
  return found;
}

// One step of a plan that is nearly as good, in turn, or of plain decoding: what was measured of it
// may be out of date. Where nothing comes near plain decoding, of what comes nearest: that may have
// been measured at a bad moment.
std::optional<Estimate> Planner::refresh(const Choice& choice, const std::vector<Estimate>& kinds) {
  const Estimate *found = nullptr, *nearest = nullptr;
  int64_t longest_ago = 0;
  for (const Estimate& each : kinds) {
    const bool plain = each.kind == Evaluation::kPlain;
    if (each.kind == choice.best.kind || lag(each) > kReading * each.seconds) continue;
    if (!nearest || corrected(*nearest) < corrected(each)) nearest = &each;
    if (!plain && corrected(each) < kNear * choice.rate) continue;
    const int64_t used = used_[each.kind];
    if (!found || used < longest_ago) found = &each, longest_ago = used;
  }
  if (!found) found = nearest;
  if (!found) return std::nullopt;
  used_[found->kind] = looks_;
  return *found;
}

// Seconds to read what the drafters of a plan have not read yet.
double Planner::lag(const Estimate& estimate) const {
  double seconds = 0.0;
  for (const int level : {estimate.plan.drafter, estimate.plan.second}) {
    if (!level || rows_.empty()) continue;
    const int64_t behind = rows_.front()->length - rows_.front()->read[level];
    if (behind > 0)
      seconds += estimate.drafting *
                 (costs_.seconds(level, 1, behind + 1, false) - costs_.seconds(level, 1, 1, false));
  }
  return seconds;
}

void Planner::adopt(const Estimate& estimate) {
  force_ = estimate;
  for (size_t i = 0; i < rows_.size(); ++i)
    rows_[i]->drafts = static_cast<int>(i) < estimate.drafting;
}

double Planner::add(int rows, double tokens, double seconds) {
  Fit& fit = fits_[{force_.kind, bucket_}];
  const double slower = std::log(std::max(seconds, 1e-9) / force_.seconds);
  fit.add(rows, tokens / (rows * force_.tokens), std::clamp(slower, -kSlower, kSlower));
  return force_.tokens * fit.token_factor();
}

void Planner::forget() {
  for (auto& [_, fit] : fits_) fit.forget_tokens();
}

}  // namespace ce
