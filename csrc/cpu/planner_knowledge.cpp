#include <algorithm>
#include <stdexcept>
#include <string>
#include <utility>

#include "ce/planner.h"

namespace ce {
namespace {

constexpr double kNeuralPrior = 0.8;
constexpr double kStatisticalPrior = 0.5;
// What is known of a row counts less with each review that tells nothing new.
constexpr double kUnseen = 0.98;
// Tokens of a chain that a tree is taken to hold, until it is known better.
constexpr int kPriorChain = 16;

size_t pairs(int neural) {
  return static_cast<size_t>(neural) * (neural + 1) / 2;
}

}  // namespace

RowRecord::RowRecord(int neural) : frailties(pairs(neural)), runs(pairs(neural)), read(neural) {}

void Confident::add(int kept_tokens, int drafted_tokens, int most) {
  const bool ended = drafted_tokens < most;
  drafted.add(0, drafted_tokens, ended);
  kept.add(0, kept_tokens, ended || kept_tokens < drafted_tokens);
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
  const Drafts chains(ends(0, neural_).survival());
  PerSize prior = kTreeLift;
  for (size_t i = 0; i < prior.size(); ++i)
    prior[i] += chains.mean(std::min(kTreeSizes[i], kPriorChain));
  return trees_[0].means(prior);
}

void Knowledge::scale(double factor) {
  for (Ends& ends : ends_) ends.scale(factor);
  for (TreeGains& gains : trees_) gains.scale(factor);
  for (Confident& each : confident_) each.scale(factor);
  ended *= factor;
  emitted = std::max(emitted * factor, 20.0);
}

// Where the last review ended, or behind a token that a better level has written since, a run goes
// on.
Run& Knowledge::run(RowRecord& row, size_t pair, int64_t start) {
  auto& [run, end] = row.runs[pair];
  if (start == end + 1)
    run.pass(ends_[pair].survival());
  else if (start != end)
    run = {};
  return run;
}

void Knowledge::observe(RowRecord& row, int level, int source, int64_t start, int kept,
                        bool rejected) {
  const size_t pair = this->pair(level, source);
  Run& run = this->run(row, pair, start);
  const Survival expected = run.survival(ends_[pair].survival(), kept + 1);
  beliefs_[pair].add(row.frailties[pair], expected, kept, rejected);
  row.frailties[pair].add(expected, kept, rejected);
  run.review(ends_[pair], kept, rejected);
  row.runs[pair].second = start + kept + 1;
}

void Knowledge::drafted(RowRecord& row, int level, int source, int kept, int drafted,
                        int64_t length) {
  if (drafted > 0) observe(row, level, source, length - kept - 1, kept, kept < drafted);
  row.vouched = length;
  row.read.at(level) = length;
}

// A tree tells of lone trees and of the chain, which follows the likeliest of siblings, too: where
// the draft in it ended, they begin.
void Knowledge::tree_reviewed(RowRecord& row, int drafter, int64_t start, int drafted, int trunk,
                              const TreeReview& tree) {
  if (drafter) trees_.at(drafter).add(tree.nodes, trunk, tree.ranks);
  const int kept = static_cast<int>(tree.ranks.size()) - trunk, nodes = tree.nodes - drafted;
  const size_t pair = this->pair(0, neural_);
  const PerSize means = lone_trees();
  row.frailties[pair].add_tree(tree_mean(means, nodes), kept);
  trees_[0].replay(nodes, kept + 1, tree.needed, means);
  Run& run = this->run(row, pair, start + trunk);
  int held = 0;
  for (int i = 0; i < kept; ++i) {
    ++held;
    if (!tree.likeliest[i]) run.review(ends_[pair], std::exchange(held, 0) - 1, true);
  }
  if (held || tree.likeliest[kept]) run.review(ends_[pair], held, tree.likeliest[kept]);
  row.runs[pair].second = start + trunk + kept + 1;
}

void Knowledge::reviewed(RowRecord& row, const Plan& plan, int64_t start, int64_t end, int kept,
                         const std::optional<TreeReview>& tree, int64_t length) {
  for (Frailty& each : row.frailties) each.fade(kUnseen);
  const int drafted = static_cast<int>(end - start);
  const int trunk = static_cast<int>(std::max<int64_t>(row.vouched - start, 0));
  if (trunk && plan.drafter) {
    observe(row, 0, plan.drafter, start, std::min(kept, trunk), kept < trunk);
    if (plan.min_confidence > 0.0)
      confident(plan.drafter, plan.width > 0).add(std::min(kept, trunk), trunk, plan.tokens);
  }
  if (tree) {
    tree_reviewed(row, plan.drafter, start, drafted, kept, *tree);
  } else if (plan.tail && kept >= trunk) {
    // What was not found could not be kept.
    const int found = drafted - trunk;
    observe(row, 0, neural_, start + trunk, kept - trunk,
            kept - trunk < found || found < plan.tail);
  }
  row.vouched = 0;
  row.length = length;
}

}  // namespace ce
