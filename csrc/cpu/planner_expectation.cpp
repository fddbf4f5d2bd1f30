// What drafts are expected to keep, by the rows that they are for.
#include <algorithm>
#include <cmath>

#include "ce/planner.h"

namespace ce {
namespace {

// Reviews that what is guessed of drafts counts as.
constexpr double kGuess = 8.0;

}  // namespace

// Rows whose drafts are rejected equally often.
struct Evaluation::Alike {
  std::vector<double> hazards;  // by pair
  double share;                 // of the rows
  std::vector<Survival> runs;   // by pair
};

// Expected tokens are sums of survival, so that rows that share a plan are their mean.
Survival Evaluation::average(const Survival& general, size_t pair) const {
  if (records_.empty()) return general;
  Survival mean{};
  for (const RowRecord* row : records_) {
    const Survival own = row->frailties[pair].survival(general, known_.belief(pair));
    for (int d = 0; d <= kDepths; ++d) mean[d] += own[d];
  }
  for (double& each : mean) each /= static_cast<double>(records_.size());
  return mean;
}

// Drafts of different rows do not follow one another: what they keep is averaged, not the runs that
// they go through.
void Evaluation::average() {
  const int n = known_.neural();
  std::fill(survivals_.begin(), survivals_.end(), Survival{});
  std::fill(sums_.begin(), sums_.end(), Survival{});
  std::fill(wholes_.begin(), wholes_.end(), Survival{});
  for (Alike& alike : rows_alike()) {
    for (int source = 2; source <= n; ++source) infer(alike.runs, source);
    for (int level = 0; level < n; ++level) {
      for (int source = level + 1; source <= n; ++source) {
        const size_t pair = known_.pair(level, source);
        hope(alike.runs[pair], known_.ends(level, source).rejections());
        for (int d = 0; d <= kDepths; ++d) survivals_[pair][d] += alike.share * alike.runs[pair][d];
        if (level == 0) sum(alike, pair);
      }
    }
  }
}

std::vector<Evaluation::Alike> Evaluation::rows_alike() const {
  std::vector<Alike> found;
  const auto add = [&](std::vector<double> hazards) {
    auto same = std::find_if(found.begin(), found.end(),
                             [&](const Alike& each) { return each.hazards == hazards; });
    if (same == found.end()) same = found.insert(found.end(), {std::move(hazards), 0.0, {}});
    same->share += 1.0 / static_cast<double>(std::max<size_t>(records_.size(), 1));
  };
  for (const RowRecord* row : records_) {
    std::vector<double> hazards;
    for (size_t pair = 0; pair < survivals_.size(); ++pair)
      hazards.push_back(row->frailties[pair].hazard(known_.belief(pair)));
    add(std::move(hazards));
  }
  if (records_.empty()) add(std::vector<double>(survivals_.size(), 1.0));
  const int n = known_.neural();
  for (Alike& each : found)
    for (int level = 0; level < n; ++level)
      for (int source = level + 1; source <= n; ++source)
        each.runs.push_back(
            weakened(known_.ends(level, source).survival(), each.hazards[each.runs.size()]));
  return found;
}

// Of what the target reviews. A run ends with its row, too.
void Evaluation::sum(const Alike& alike, size_t pair) {
  Survival runs = alike.runs[pair];
  double going = 1.0;
  for (double& each : runs) each *= going, going *= goes_on_;
  const Drafts drafts(runs);
  for (int drafted = 0; drafted <= kDepths; ++drafted) {
    sums_[pair][drafted] += alike.share * drafts.mean(drafted);
    wholes_[pair][drafted] += alike.share * drafts.whole(drafted);
  }
}

// Rejections are counts: how often they come is known the better the more were seen.
void Evaluation::hope(Survival& survival, double rejections) const {
  if (hope_ == 0.0) return;
  const double hazard = std::exp(-hope_ / std::sqrt(rejections + 1.0));
  Survival found{};
  found[0] = 1.0;
  for (int d = 0; d < kDepths; ++d)
    found[d + 1] =
        found[d] * (1.0 - hazard * (1.0 - survival[d + 1] / std::max(survival[d], 1e-9)));
  survival = found;
}

// Of trees, whose reviews differ less.
double Evaluation::hope(double mean, double reviews) const {
  return (1.0 + mean) * (1.0 + 0.5 * hope_ / std::sqrt(reviews + 1.0)) - 1.0;
}

// Of drafts that the target has hardly seen yet: what a level between keeps of them, and the target
// of that level's, the target is taken to keep itself.
void Evaluation::infer(std::vector<Survival>& runs, int source) const {
  double known = 0.0;
  size_t below = 0, above = 0;
  for (int level = 1; level < source; ++level) {
    const double least =
        std::min(known_.ends(level, source).reviews(), known_.ends(0, level).reviews());
    if (least <= known) continue;
    known = least;
    below = known_.pair(level, source), above = known_.pair(0, level);
  }
  const size_t pair = known_.pair(0, source);
  const double share =
      kGuess / (known_.ends(0, source).reviews() + kGuess) * known / (known + kGuess);
  for (int d = 1; d <= kDepths && known > 0.0; ++d)
    runs[pair][d] += share * (runs[below][d] * runs[above][d] - runs[pair][d]);
}

}  // namespace ce
