// Plans of the automatic policy: what each is expected to give and to take, and which to follow.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "ce/acceptance.h"
#include "ce/pass_costs.h"

namespace ce {

// How a row drafts until its next target review. All zeros: plain decoding. Levels are 0 (target),
// 1..neural-1 (drafts, large to small) and neural (statistical).
struct Plan {
  int drafter = 0;        // the neural level that drafts; 0: none
  int tokens = 0;         // that it vouches for before the target reviews
  int second = 0;         // a smaller neural level that drafts for it; 0: none
  int second_tokens = 0;  // that the second vouches for before the drafter reviews them
  int width = 0;          // statistical tokens that the lowest reviews at a time; 0: none
  int tail = 0;           // statistical tokens behind, unseen by the drafters
  int nodes = 0;          // of the tree that the target reviews instead; 0: a chain
  int siblings = 0;       // runners-up beside each token of a neural draft, in a tree
  // Of a drafter alone, or above statistical drafts: its draft ends, before it has `tokens`, where
  // its confidence falls below. 0: it does not.
  double min_confidence = 0.0;
};

// Drafts that end where their confidence falls below a plan's: where they ended, and how many
// tokens of each the target kept. Ends before the plan's length count as rejections in both.
struct Confident {
  // `kept` of `drafted` tokens, where up to `most` were wanted.
  void add(int kept, int drafted, int most);
  void scale(double factor);

  Ends drafted{1.0}, kept{1.0};
};

// A tree that the target reviewed, and the nodes of it that it kept, behind those of the row's own
// draft that it kept.
struct TreeReview {
  int nodes = 0;
  std::vector<int> ranks;  // of all nodes kept: how many of the tree's are likelier
  // Of those behind the draft: the likeliest of its siblings? Last: was there one to reject?
  std::vector<bool> likeliest;
  // Trees of each size would have needed so many reviews for what came behind the draft.
  std::array<Needed, kTreeSizes.size()> needed{};
};

// One row: what is known of it alone, and how far its drafts have come.
struct RowRecord {
  explicit RowRecord(int neural);

  std::vector<Frailty> frailties;             // by Knowledge::pair
  std::vector<std::pair<Run, int64_t>> runs;  // likewise: with where the last review ended
  int64_t vouched = 0;  // tokens that drafts vouched for since the last target review
  int64_t length = 0;
  std::vector<int64_t> read;  // tokens that each level has read
  bool drafts = true;         // follows the plan in force; else it decodes plainly
};

// Acceptance by reviewer and source, and gains of trees by the draft behind which they stand (0:
// none), over all rows. Decays all alike.
class Knowledge {
 public:
  explicit Knowledge(int neural);

  // Of reviews by `level` of what `source` > level drafted. Throws std::out_of_range.
  size_t pair(int level, int source) const;
  Ends& ends(int level, int source) { return ends_[pair(level, source)]; }
  const Ends& ends(int level, int source) const { return ends_[pair(level, source)]; }
  // Of a drafter that drafts on its own, or above statistical drafts.
  Confident& confident(int drafter, bool above) { return confident_.at(2 * drafter + above); }
  const Confident& confident(int drafter, bool above) const {
    return confident_.at(2 * drafter + above);
  }
  TreeGains& trees(int drafter) { return trees_.at(drafter); }
  const TreeGains& trees(int drafter) const { return trees_.at(drafter); }
  int neural() const { return neural_; }
  const Belief& belief(size_t pair) const { return beliefs_[pair].best(); }
  // Tokens that lone trees give rows in general.
  PerSize lone_trees() const;
  void scale(double factor);

  // A drafting level kept `kept` of `drafted` tokens that `source` drafted for a row, which has
  // `length` tokens now.
  void drafted(RowRecord& row, int level, int source, int kept, int drafted, int64_t length);
  // The target reviewed a row, from `start` up to `end`, and kept `kept` of its chain, maybe as
  // part of a tree. `plan` is what it followed.
  void reviewed(RowRecord& row, const Plan& plan, int64_t start, int64_t end, int kept,
                const std::optional<TreeReview>& tree, int64_t length);

  // Rows that came to their end, and tokens in all: what was drafted behind an end is lost.
  double ended = 0.0, emitted = 20.0;

 private:
  Run& run(RowRecord& row, size_t pair, int64_t start);
  void observe(RowRecord& row, int level, int source, int64_t start, int kept, bool rejected);
  void tree_reviewed(RowRecord& row, int drafter, int64_t start, int drafted, int trunk,
                     const TreeReview& tree);

  int neural_;
  std::vector<Ends> ends_;
  std::vector<TreeGains> trees_;
  std::vector<Confident> confident_;
  std::vector<Beliefs> beliefs_;
};

// What one target review is expected to give and to take, for all rows.
struct Estimate {
  Plan plan;
  double tokens = 1.0;    // of a row, on average
  double seconds = 1.0;   // of all of it
  int drafting = 0;       // rows that follow the plan; others decode plainly
  int kind = 0;           // plans of one kind differ in lengths only
  double one_more = 0.0;  // seconds that one more drafted token of a row takes
  double spread = 1e-9;   // of the rate, as a share of it
  double rate() const { return tokens / seconds; }
};

// Estimates the plans for rows that share passes, some of which draft.
class Evaluation {
 public:
  // `overhead` seconds are spent around each pass, and for each row in it; `rows` share the
  // target's.
  Evaluation(const Knowledge& knowledge, const PassCosts& costs, int rows, double overhead,
             bool trees);

  // The best plan of each kind, the first `drafting` of these rows following it. None of them: rows
  // in general. `hope`: standard deviations by which acceptance is taken to be better than it
  // seems.
  const std::vector<Estimate>& by_kind(const std::vector<const RowRecord*>& rows, int drafting,
                                       double hope = 0.0);

  static constexpr int kPlain = 0;

 private:
  struct Alike;
  struct Writing;

  void average();
  Survival average(const Survival& general, size_t pair) const;
  std::vector<Alike> rows_alike() const;
  void sum(const Alike& alike, size_t pair);
  void infer(std::vector<Survival>& runs, int source) const;
  void hope(Survival& survival, double rejections) const;
  double hope(double mean, double reviews) const;
  void offer(const Plan& plan, double tokens, double seconds, double one_more = 0.0);
  void lone_chains();
  void lone_trees();
  void neural_plans(int drafter, int second, int second_tokens, int width);
  void confident_plans(int drafter, int width);
  void longer(const Plan& plan, double tokens, double length, double spent);
  Writing writing(int level, int width);
  double writing_by(int rows, int level, int width) const;
  double pass(int level, int width, bool tree = false);
  double tree_mean(double general) const;
  // Seconds around what drafting rows do in one go.
  double around() const { return overhead_ * (1 + drafting_); }

  const Knowledge& known_;
  const PassCosts& costs_;
  int rows_, drafting_ = 0;
  double overhead_, goes_on_, hope_ = 0.0;
  bool trees_;
  std::vector<Survival> survivals_;        // of runs, by pair
  std::vector<Survival> sums_, wholes_;    // [d]: of d drafted tokens, how many are kept; all?
  std::vector<const RowRecord*> records_;  // of the drafting rows
  std::vector<double> seconds_;            // by level, tree and width; < 0: not asked yet
  std::vector<int64_t> reaches_;
  std::vector<int> slots_;
  std::vector<Estimate> found_;
};

// How what a kind of plan gives compares with the model of it, of late.
class Fit {
 public:
  // Of a step of `rows` rows: the ratio of its tokens to what was expected; how much slower it was,
  // as a logarithm.
  void add(int rows, double tokens, double slower);
  void forget_tokens() { tokens_ = reviews_ = 0.0; }
  double token_factor() const;
  double factor() const;  // of the rate

 private:
  double tokens_ = 0.0, reviews_ = 0.0, slower_ = 0.0, steps_ = 0.0;
};

// What a look is for.
struct Demand {
  double overhead = 0.0;  // seconds around each pass, and for each row in it
  bool loyal = false;     // the kind in force is kept unless another is clearly better
  double allowed = -1.0;  // seconds that a trial may lose; < 0: none is wanted
  double horizon = 64.0;  // reviews that a better plan is taken to be of use for
  bool refresh = false;   // to measure again what is nearly as good
};

struct Choice {
  Estimate best, plain;
  double rate = 0.0, plain_rate = 0.0;  // tokens of a row per second, as far as plans keep to it
  std::optional<Estimate> trial;        // first
};

// Chooses among plans, and remembers how they did.
class Planner {
 public:
  Planner(Knowledge& knowledge, const PassCosts& costs, bool trees)
      : known_(knowledge), costs_(costs), trees_(trees) {}

  // The plan to follow for these rows.
  Choice look(const std::vector<std::shared_ptr<RowRecord>>& rows, const Demand& demand);
  // From now on this one is in force; of the rows of the last look, the most promising follow it.
  void adopt(const Estimate& estimate);
  // What the estimate in force should have given beside what it gave: tokens of all rows. Returns
  // the tokens of a row that were to be expected after all.
  double add(int rows, double tokens, double seconds);
  // The text is another one.
  void forget();

 private:
  double corrected(const Estimate& estimate) const;
  void set_confidence(Estimate& estimate, double rate) const;
  void order(const std::vector<std::shared_ptr<RowRecord>>& rows);
  double gain(const Choice& choice, const Estimate& each, const Demand& demand) const;
  bool worth_trying(const Choice& choice, const std::vector<Estimate>& kinds,
                    const Demand& demand) const;
  std::optional<Estimate> trial(const Choice& choice, const std::vector<Estimate>& kinds,
                                const std::vector<Estimate>& trials, const Demand& demand) const;
  std::optional<Estimate> refresh(const Choice& choice, const std::vector<Estimate>& kinds);
  double lag(const Estimate& estimate) const;

  Knowledge& known_;
  const PassCosts& costs_;
  bool trees_;
  int bucket_ = 1;
  Estimate force_;
  std::vector<std::shared_ptr<RowRecord>> rows_;  // of the last look, the most promising first
  std::map<std::pair<int, int>, Fit> fits_;       // by kind and bucket
  std::map<int, int64_t> used_;                   // by kind: when it was last measured again
  bool apart_ = false;                            // these rows differ
  int64_t looks_ = 0;
};

}  // namespace ce
