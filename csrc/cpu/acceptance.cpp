#include "ce/acceptance.h"

#include <algorithm>
#include <cmath>

namespace ce {
namespace {

// Tokens that a depth needs to weigh as much as what the depth before it tells.
constexpr double kStrength = 15.0;
// What of how well a belief foretold earlier reviews counts after another one.
constexpr double kRecent = 0.998;
// Log-likelihood that a belief needs beyond the one before it, that rows differ less.
constexpr double kDoubt = 3.0;
// Bounds of a row's hazard.
constexpr double kLeastHazard = 0.5;
constexpr double kMostHazard = 8.0;

// The chance that the token behind d kept ones is rejected.
double rejects(const Survival& survival, int d) {
  return 1.0 - survival[d + 1] / std::max(survival[d], 1e-9);
}

int depth_of(int kept) {
  return std::clamp(kept, 0, kDepths);
}

}  // namespace

void Ends::add(int kept, bool rejected) {
  (rejected ? rejected_ : open_)[depth_of(kept)] += 1.0;
  reviews_ += 1.0;
  stale_ = true;
}

void Ends::scale(double factor) {
  for (double& count : rejected_) count *= factor;
  for (double& count : open_) count *= factor;
  reviews_ *= factor;
  stale_ = true;
}

void Ends::restore(const Counts& rejected, const Counts& open) {
  rejected_ = rejected;
  open_ = open;
  reviews_ = 0.0;
  for (int d = 0; d <= kDepths; ++d) reviews_ += rejected[d] + open[d];
  stale_ = true;
}

const Survival& Ends::survival() const {
  if (!stale_) return survival_;
  double at_risk = reviews_, chance = 1.0, keeps = prior_, strength = 2.0;
  survival_[0] = 1.0;
  for (int d = 0; d < kDepths; ++d) {
    at_risk -= open_[d];
    keeps = (strength * keeps + at_risk - rejected_[d]) / (strength + at_risk);
    at_risk = std::max(at_risk - rejected_[d], 0.0);
    if (at_risk < 1e-6) at_risk = 0.0;
    strength = kStrength;
    chance *= keeps;
    survival_[d + 1] = chance;
  }
  stale_ = false;
  return survival_;
}

double Ends::rejections() const {
  double sum = 0.0;
  for (const double each : rejected_) sum += each;
  return sum;
}

double Ends::kept_share() const {
  double kept = 0.0, lost = 0.0;
  for (int d = 0; d <= kDepths; ++d) {
    kept += d * (rejected_[d] + open_[d]);
    lost += rejected_[d];
  }
  return kept / std::max(kept + lost, 1e-9);
}

void TreeGains::add(int nodes, int trunk, const std::vector<int>& ranks) {
  double smaller = 1.0;
  for (size_t i = 0; i < kTreeSizes.size() && kTreeSizes[i] <= nodes; ++i) {
    int kept = 0;
    for (const int rank : ranks) {
      if (rank >= kTreeSizes[i]) break;
      ++kept;
    }
    const double gained = 1.0 + std::max(kept - trunk, 0);
    tokens[i] += gained;
    below[i] += smaller;
    reviews[i] += 1.0;
    smaller = gained;
  }
}

void TreeGains::scale(double factor) {
  for (PerSize* counts : {&tokens, &below, &reviews})
    for (double& count : *counts) count *= factor;
}

PerSize TreeGains::means(const PerSize& prior) const {
  PerSize found{};
  double mean = (tokens[0] + 2.0 * (1.0 + prior[0])) / (reviews[0] + 2.0);
  found[0] = mean - 1.0;
  for (size_t i = 1; i < kTreeSizes.size(); ++i) {
    const double ratio = (1.0 + prior[i]) / (1.0 + prior[i - 1]);
    mean *= (tokens[i] + 6.0 * ratio) / (below[i] + 6.0);
    found[i] = mean - 1.0;
  }
  return found;
}

double TreeGains::evidence(size_t size) const {
  return std::min(reviews[0], 4.0 * reviews[size]);
}

void Frailty::add(double expected, bool rejected) {
  for (size_t pace = 0; pace < kPaces.size(); ++pace) {
    rejected_[pace] = rejected_[pace] * kPaces[pace] + (rejected ? 1.0 : 0.0);
    expected_[pace] = expected_[pace] * kPaces[pace] + expected;
  }
}

void Frailty::add(const Survival& survival, int kept, bool rejected) {
  const int looked = std::min(kept + (rejected ? 1 : 0), kDepths);
  double expected = 0.0;
  for (int d = 0; d < looked; ++d) expected += rejects(survival, d);
  add(expected, rejected);
}

void Frailty::add_tree(double mean, int kept) {
  add((kept + 1.0) / (1.0 + std::max(mean, 0.0)), true);
}

void Frailty::fade(double factor) {
  for (double& each : rejected_) each *= factor;
  for (double& each : expected_) each *= factor;
}

double Frailty::hazard(const Belief& belief) const {
  const double found =
      (belief.alike + rejected_[belief.pace]) / (belief.alike + expected_[belief.pace]);
  return std::clamp(found, kLeastHazard, kMostHazard);
}

Survival Frailty::survival(const Survival& general, const Belief& belief) const {
  const double hazard = this->hazard(belief);
  Survival found{};
  found[0] = 1.0;
  for (int d = 0; d < kDepths; ++d)
    found[d + 1] = found[d] * std::max(1.0 - hazard * rejects(general, d), 0.0);
  return found;
}

double Frailty::tree_mean(double mean, const Belief& belief) const {
  return std::max((1.0 + std::max(mean, 0.0)) / hazard(belief) - 1.0, 0.0);
}

void Beliefs::add(const Frailty& row, const Survival& survival, int kept, bool rejected) {
  kept = std::min(kept, kDepths - 1);
  size_t best = 0;
  for (size_t i = 0; i < kBeliefs.size(); ++i) {
    const double hazard = row.hazard(kBeliefs[i]);
    double chance = 1.0;
    for (int d = 0; d < kept; ++d) chance *= 1.0 - std::min(hazard * rejects(survival, d), 0.98);
    if (rejected) chance *= std::clamp(hazard * rejects(survival, kept), 0.02, 0.98);
    scores_[i] = scores_[i] * kRecent + std::log(std::max(chance, 1e-12));
    if (scores_[i] - kDoubt * i > scores_[best] - kDoubt * best) best = i;
  }
  best_ = best;
}

}  // namespace ce
