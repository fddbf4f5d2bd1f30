#include "ce/acceptance.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace ce {
namespace {

// Tokens that a depth needs to weigh as much as what the depth before it tells.
constexpr double kStrength = 15.0;
// What of how well a belief foretold earlier reviews counts after another one.
constexpr double kRecent = 0.998;
// Log-likelihood that a belief needs beyond the one before it, that rows differ less.
constexpr double kDoubt = 3.0;
// Bound of what a token far down a run is kept with.
constexpr double kMostKept = 0.999;
// Of a smaller tree, as a share of its nodes, that a tree is taken to tell what it would have
// given.
constexpr double kTold = 0.8;
// Bounds of a row's hazard.
constexpr double kLeastHazard = 0.5;
constexpr double kMostHazard = 8.0;

// The chance that the token behind d kept ones is rejected.
double rejects(const Survival& survival, int d) {
  return 1.0 - survival[d + 1] / std::max(survival[d], 1e-9);
}

int depth_of(int kept) {
  return std::min(kept, kDepths - 1);
}

}  // namespace

void Ends::add(int from, int kept, bool rejected, double weight) {
  for (int d = from; d < from + kept; ++d) kept_[depth_of(d)] += weight;
  if (rejected) rejected_[depth_of(from + kept)] += weight;
  reviews_ += weight;
  stale_ = true;
}

void Ends::scale(double factor) {
  for (double& count : kept_) count *= factor;
  for (double& count : rejected_) count *= factor;
  reviews_ *= factor;
  stale_ = true;
}

void Ends::restore(const Counts& kept, const Counts& rejected, double reviews) {
  kept_ = kept;
  rejected_ = rejected;
  reviews_ = reviews;
  stale_ = true;
}

const Survival& Ends::survival() const {
  if (!stale_) return survival_;
  double keeps = prior_, strength = 2.0;
  survival_[0] = 1.0;
  for (int d = 0; d < kDepths; ++d) {
    keeps = (strength * keeps + kept_[d]) / (strength + kept_[d] + rejected_[d]);
    strength = kStrength;
    survival_[d + 1] = survival_[d] * keeps;
  }
  stale_ = false;
  return survival_;
}

double Ends::rejections() const {
  return std::accumulate(rejected_.begin(), rejected_.end(), 0.0);
}

double Ends::kept_share() const {
  const double kept = std::accumulate(kept_.begin(), kept_.end(), 0.0);
  return kept / std::max(kept + rejections(), 1e-9);
}

Survival Run::survival(const Survival& runs, int tokens) const {
  Survival found{};
  for (int depth = 0; depth <= kDepths; ++depth) {
    double chance = chances_[depth];
    for (int d = 0; d <= std::min(tokens, kDepths) && chance > 0.0; ++d) {
      found[d] += chance;
      chance *= 1.0 - rejects(runs, depth_of(depth + d));
    }
  }
  return found;
}

void Run::review(Ends& ends, int kept, bool rejected) {
  const Survival runs = ends.survival();
  decltype(chances_) next{};
  for (int depth = 0; depth <= kDepths; ++depth) {
    if (chances_[depth] == 0.0) continue;
    ends.add(depth, kept, rejected, chances_[depth]);
    next[rejected ? 0 : std::min(depth + kept, kDepths)] += chances_[depth];
  }
  chances_ = next;
  if (!rejected) pass(runs);
}

void Run::pass(const Survival& runs) {
  decltype(chances_) next{};
  for (int depth = 0; depth <= kDepths; ++depth) {
    const double ended = chances_[depth] * rejects(runs, depth_of(depth));
    next[std::min(depth + 1, kDepths)] += chances_[depth] - ended;
    next[0] += ended;
  }
  chances_ = next;
}

// Beyond what is told apart the chance falls by the same factor with each token.
Drafts::Drafts(const Survival& runs) : runs_(runs) {
  const double keeps = std::min(1.0 - rejects(runs, kDepths - 1), kMostKept);
  powers_[0] = 1.0;
  for (size_t d = 1; d < powers_.size(); ++d) powers_[d] = powers_[d - 1] * keeps;
  tokens_ = at(0, 1);
}

// The expected number of depths `depth`, depth + period, depth + 2 period, ... that a run reaches.
double Drafts::at(int depth, int period) const {
  double sum = 0.0;
  for (; depth < kDepths; depth += period) sum += runs_[depth];
  return sum + runs_[kDepths] * powers_[depth - kDepths] / (1.0 - powers_[period]);
}

Survival Drafts::kept(int drafted) const {
  const double drafts = at(0, drafted + 1);
  Survival found{};
  for (int d = 0; d <= drafted; ++d) found[d] = at(d, drafted + 1) / drafts;
  return found;
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

// Of a review that might have gone on counts what it gave, as a share of what it would have.
void TreeGains::replay(int nodes, int text, const std::array<Needed, kTreeSizes.size()>& needed,
                       const PerSize& means) {
  double smaller = text;
  for (size_t i = 0; i < kTreeSizes.size() && kTold * kTreeSizes[i] <= nodes; ++i) {
    double count = needed[i].reviews;
    if (needed[i].last) count -= means[i] / (needed[i].last + means[i]);
    tokens[i] += smaller;
    below[i] += count;
    reviews[i] += count;
    smaller = count;
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

double tree_mean(const PerSize& means, double nodes) {
  double size = 0.0, mean = 0.0;
  for (size_t i = 0; i < means.size(); ++i) {
    const double next = kTreeSizes[i];
    if (nodes <= next)
      return mean + (std::max(nodes, 0.0) - size) / (next - size) * (means[i] - mean);
    size = next, mean = means[i];
  }
  return mean;
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

Survival weakened(const Survival& general, double hazard) {
  if (hazard == 1.0) return general;
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
