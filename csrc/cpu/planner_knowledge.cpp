#include <algorithm>
#include <stdexcept>
#include <string>

#include "ce/planner.h"

namespace ce {
namespace {

constexpr double kNeuralPrior = 0.8;
constexpr double kStatisticalPrior = 0.5;
// What is known of a row counts less with each review that tells nothing new.
constexpr double kUnseen = 0.98;

size_t pairs(int neural) {
  return static_cast<size_t>(neural) * (neural + 1) / 2;
}

}  // namespace

RowRecord::RowRecord(int neural) : frailties(pairs(neural)), read(neural) {}

void Confident::add(int kept_tokens, int drafted_tokens, int most) {
  const bool ended = drafted_tokens < most;
  drafted.add(drafted_tokens, ended);
  kept.add(kept_tokens, ended || kept_tokens < drafted_tokens);
}

void Confident::scale(double factor) {
  drafted.scale(factor);
  kept.scale(factor);
}

Knowledge::Knowledge(int neural)
    : neural_(neural), trees_(neural), confident_(2 * neural), beliefs_(pairs(neural)) {
  for (int level = 0; level < neural; ++level)
    for (int source = level + 1; source <= neural; ++source)
      ends_.emplace_back(source == neural ? kStatisticalPrior : kNeuralPrior);
}

size_t Knowledge::pair(int level, int source) const {
  if (level < 0 || source <= level || source > neural_)
    throw std::out_of_range("no level " + std::to_string(level) + " reviews drafts of level " +
                            std::to_string(source) + " among " + std::to_string(neural_));
  return static_cast<size_t>(level) * neural_ - level * (level - 1) / 2 + source - level - 1;
}

PerSize Knowledge::lone_trees() const {
  const Survival& survival = ends(0, neural_).survival();
  PerSize prior = kTreeLift;
  for (size_t i = 0; i < prior.size(); ++i)
    for (int d = 1; d <= std::min(kTreeSizes[i], 16); ++d) prior[i] += survival[d];
  return trees_[0].means(prior);
}

void Knowledge::scale(double factor) {
  for (Ends& ends : ends_) ends.scale(factor);
  for (TreeGains& gains : trees_) gains.scale(factor);
  for (Confident& each : confident_) each.scale(factor);
  ended *= factor;
  emitted = std::max(emitted * factor, 20.0);
}

void Knowledge::observe(RowRecord& row, int level, int source, int kept, bool rejected) {
  Ends& ends = this->ends(level, source);
  const size_t pair = this->pair(level, source);
  beliefs_[pair].add(row.frailties[pair], ends.survival(), kept, rejected);
  row.frailties[pair].add(ends.survival(), kept, rejected);
  ends.add(kept, rejected);
}

void Knowledge::drafted(RowRecord& row, int level, int source, int kept, int drafted,
                        int64_t length) {
  if (drafted > 0) observe(row, level, source, kept, kept < drafted);
  row.vouched = length;
  row.read.at(level) = length;
}

// A tree that stands alone tells of the chain in it, too: its first token is the likeliest of all.
void Knowledge::tree_reviewed(RowRecord& row, int drafter, int trunk, int nodes,
                              const std::vector<int>& ranks) {
  trees_.at(drafter).add(nodes, trunk, ranks);
  if (drafter) return;
  const auto large = std::find_if(kTreeSizes.begin(), kTreeSizes.end() - 1,
                                  [&](int size) { return size >= nodes; });
  const int kept = static_cast<int>(ranks.size());
  row.frailties[pair(0, neural_)].add_tree(lone_trees()[large - kTreeSizes.begin()], kept);
  const bool first = kept && ranks[0] == 0;
  ends(0, neural_).add(first, !first);
}

void Knowledge::reviewed(RowRecord& row, const Plan& plan, int64_t start, int64_t end, int kept,
                         int nodes, const std::vector<int>& ranks, int64_t length) {
  for (Frailty& each : row.frailties) each.fade(kUnseen);
  const int drafted = static_cast<int>(end - start);
  const int trunk = static_cast<int>(std::max<int64_t>(row.vouched - start, 0));
  if (trunk && plan.drafter) {
    observe(row, 0, plan.drafter, std::min(kept, trunk), kept < trunk);
    if (plan.min_confidence > 0.0)
      confident(plan.drafter, plan.width > 0).add(std::min(kept, trunk), trunk, plan.tokens);
  }
  if (nodes) {
    tree_reviewed(row, plan.drafter, kept, nodes, ranks);
  } else if (plan.tail && kept >= trunk) {
    // What was not found could not be kept.
    const int found = drafted - trunk;
    observe(row, 0, neural_, kept - trunk, kept - trunk < found || found < plan.tail);
  }
  row.vouched = 0;
  row.length = length;
}

}  // namespace ce
