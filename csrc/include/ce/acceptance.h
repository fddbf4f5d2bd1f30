// How many drafted tokens a review keeps: decayed counts, by level and source over all rows, and of
// single rows beside them.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace ce {

// Depths from here on are one.
inline constexpr int kDepths = 32;
// Trees that are told apart, in nodes.
inline constexpr std::array<int, 4> kTreeSizes = {8, 16, 32, 64};

using PerSize = std::array<double, kTreeSizes.size()>;
// Tokens that trees of these sizes give beyond a chain, until it is known better.
inline constexpr PerSize kTreeLift = {0.5, 0.8, 1.1, 1.3};

using Counts = std::array<double, kDepths>;
// [d]: the chance that d tokens are kept one after the other.
using Survival = std::array<double, kDepths + 1>;

// Runs of tokens of one source that one level keeps, from one rejection to the next: by depth in
// the run, tokens that were kept and that were rejected. A review may begin within a run, and tells
// of the depths that it looked at (the product-limit estimate of Kaplan and Meier, with late
// entry): so drafts of all lengths tell of all others.
class Ends {
 public:
  // `prior`: the chance that a token is kept, before any was seen.
  explicit Ends(double prior) : prior_(prior) {}

  // A review at depth `from` kept `kept` tokens, and then rejected one or found no more. It counts
  // as `weight` reviews.
  void add(int from, int kept, bool rejected, double weight = 1.0);
  void scale(double factor);
  void restore(const Counts& kept, const Counts& rejected, double reviews);

  const Survival& survival() const;
  // Of the tokens that were looked at.
  double kept_share() const;
  double reviews() const { return reviews_; }
  double rejections() const;
  const Counts& kept() const { return kept_; }
  const Counts& rejected() const { return rejected_; }

 private:
  double prior_;
  Counts kept_{}, rejected_{};
  double reviews_ = 0.0;
  mutable Survival survival_{};
  mutable bool stale_ = true;
};

// How far a row is in a run, as far as that is known: of a token that a level writes itself, behind
// a draft that it kept whole, nobody knows whether the source would have drafted it.
class Run {
 public:
  // What a review that begins here keeps, up to `tokens` tokens.
  Survival survival(const Survival& runs, int tokens) const;
  // It kept `kept`, and then rejected one or found no more; `ends` are told of it.
  void review(Ends& ends, int kept, bool rejected);
  // A token of the level's own.
  void pass(const Survival& runs);

 private:
  std::array<double, kDepths + 1> chances_{1.0};  // by depth
};

// What drafts keep that follow one another through runs, each with a token of the reviewing level
// behind it. Texts have easy and hard passages: the shorter the drafts, the more of them begin in
// easy ones.
class Drafts {
 public:
  // `runs`: how they survive.
  explicit Drafts(const Survival& runs);

  // Of `drafted` tokens at a time, up to kDepths: how many are kept on average, the chance that all
  // are, and [d] that at least d are.
  double mean(int drafted) const { return tokens_ / at(0, drafted + 1) - 1.0; }
  double whole(int drafted) const { return at(drafted, drafted + 1) / at(0, drafted + 1); }
  Survival kept(int drafted) const;

 private:
  double at(int depth, int period) const;

  Survival runs_;
  std::array<double, kDepths + 2> powers_;  // of what keeps a token far down a run
  double tokens_;                           // of a run, and the one behind it
};

// Reviews that trees would have needed for a text; `last` > 0: tokens of it that the last of them
// gave, which might have given more.
struct Needed {
  int reviews = 0, last = 0;
};

// What trees of each size gave beyond a chain. A review of a large tree tells what the smaller ones
// within it would have given, so sizes are compared over the same text.
class TreeGains {
 public:
  // Of a tree of `nodes` nodes, those of these ranks were kept one after the other; the chain in
  // it, which stands in every tree, would have kept `trunk`.
  void add(int nodes, int trunk, const std::vector<int>& ranks);
  // A tree of `nodes` nodes gave `text` tokens, for which trees of each size would have needed so
  // many reviews: of trees that follow one another, which many small ones do in easy passages.
  // `means` are what they are taken to give so far.
  void replay(int nodes, int text, const std::array<Needed, kTreeSizes.size()>& needed,
              const PerSize& means);
  void scale(double factor);

  // Tokens that trees of each size add; `prior` has guesses for all of them.
  PerSize means(const PerSize& prior) const;
  // Reviews that the mean of kTreeSizes[size] rests on.
  double evidence(size_t size) const;

  // By size, of the reviews that tell: tokens beyond the chain, and one more each; what the next
  // smaller size would have given in them. The mean of a size is that of the next smaller one times
  // tokens / below.
  PerSize tokens{}, below{}, reviews{};
};

// Of trees of any number of nodes, between the means of the sizes beside it.
double tree_mean(const PerSize& means, double nodes);

// How rows are taken to differ: a row's hazard (how much oftener than in rows in general its drafts
// are rejected) is Gamma distributed over rows, a frailty, with mean 1 and variance 1 / alike. What
// its reviews tell fades at one of two paces, since texts change.
struct Belief {
  double alike;
  size_t pace;
};
inline constexpr std::array<double, 2> kPaces = {0.8, 0.96};
inline constexpr std::array<Belief, 6> kBeliefs = {
    {{1e9, 0}, {10.0, 0}, {10.0, 1}, {3.0, 0}, {3.0, 1}, {1.0, 1}}};

// Where tokens are rejected `hazard` times as often.
Survival weakened(const Survival& general, double hazard);

// What a row's reviews of one source's drafts tell beside those of all rows.
class Frailty {
 public:
  // A review kept `kept` tokens and then rejected one or found no more, where `survival` is what
  // rows in general do.
  void add(const Survival& survival, int kept, bool rejected);
  // The same of a tree that gives rows in general `mean` tokens.
  void add_tree(double mean, int kept);
  void fade(double factor);

  double hazard(const Belief& belief) const;
  Survival survival(const Survival& general, const Belief& belief) const {
    return weakened(general, hazard(belief));
  }
  // Of a tree that gives rows in general `mean` tokens.
  double tree_mean(double mean, const Belief& belief) const;

 private:
  void add(double expected, bool rejected);

  std::array<double, kPaces.size()> rejected_{}, expected_{};
};

// Which belief has foretold reviews best, of late.
class Beliefs {
 public:
  // Before `row` learns of it: a review, as Frailty is told of it.
  void add(const Frailty& row, const Survival& survival, int kept, bool rejected);
  const Belief& best() const { return kBeliefs[best_]; }

 private:
  std::array<double, kBeliefs.size()> scores_{};
  size_t best_ = 0;
};

}  // namespace ce
