#include <algorithm>
#include <array>
#include <cmath>

#include "ce/planner.h"

namespace ce {
namespace {

constexpr std::array kTails = {1, 2, 3, 4, 6, 8, 10, 12, 16, 20};
constexpr std::array kWidths = {0, 4, 8};
constexpr std::array kLengths = {1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24};
constexpr std::array kSecondLengths = {3, 6};
constexpr std::array kLaterTails = {4, 8};
constexpr std::array kSecondWidths = {0, 8};
constexpr int kLongest = 24;
// Widths beyond are not asked for: the longest draft with the widest tail.
constexpr int kWidest = 512;
// Reviews of confident drafts that what is guessed of them counts as.
constexpr double kGuess = 8.0;

// Reviews that each add 1..w+1 tokens, one after the other.
struct Renewal {
  std::array<double, kLongest + 1> reviews;  // [k]: expected number until k tokens are there
  double mean = 0.0;                         // tokens of one
};

// `kept[d]` is the chance that a review keeps at least d tokens, d = 0..width; it adds one of its
// own. Exact: the chance that the total passes through v sums over the last review.
Renewal renewal(const Survival& kept, int width) {
  Renewal found{};
  std::array<double, kDepths + 1> sizes{};
  std::array<double, kLongest + 1> passes{};
  for (int d = 0; d <= width; ++d) {
    sizes[d] = d < width ? kept[d] - kept[d + 1] : kept[width];
    found.mean += kept[d];
  }
  passes[0] = 1.0;
  double total = 1.0;
  found.reviews[1] = 1.0;
  for (int v = 1; v < kLongest; ++v) {
    for (int x = 1; x <= std::min(v, width + 1); ++x) passes[v] += passes[v - x] * sizes[x - 1];
    total += passes[v];
    found.reviews[v + 1] = total;
  }
  return found;
}

double between(const Survival& values, double length) {
  const int whole = static_cast<int>(length);
  if (whole >= kDepths) return values[kDepths];
  return values[whole] + (length - whole) * (values[whole + 1] - values[whole]);
}

int size_index(int nodes) {
  for (size_t i = 0; i < kTreeSizes.size(); ++i)
    if (kTreeSizes[i] == nodes) return static_cast<int>(i) + 1;
  return 0;
}

// 0: plain decoding.
int kind_of(const Plan& plan, int neural) {
  int kind = plan.drafter * neural + plan.second;
  kind = (2 * kind + (plan.width > 0)) * 2 + (plan.tail > 0);
  kind = 2 * kind + (plan.min_confidence > 0.0);
  return kind * (static_cast<int>(kTreeSizes.size()) + 1) + size_index(plan.nodes);
}

int rounded(double value) {
  return static_cast<int>(std::nearbyint(value));
}

}  // namespace

// How a level writes with statistical drafts.
struct Evaluation::Writing {
  Renewal process;
  double seconds;  // of one review
};

Evaluation::Evaluation(const Knowledge& knowledge, const PassCosts& costs, int rows,
                       double overhead, bool trees)
    : known_(knowledge),
      costs_(costs),
      rows_(rows),
      overhead_(overhead),
      goes_on_(1.0 - std::min(knowledge.ended / knowledge.emitted, 0.5)),
      trees_(trees) {
  const int n = known_.neural();
  survivals_.resize(static_cast<size_t>(n) * (n + 1) / 2);
  sums_.resize(survivals_.size());
  wholes_.resize(survivals_.size());
  slots_.resize(static_cast<size_t>(n) * n * 8 * (kTreeSizes.size() + 1));
}

const std::vector<Estimate>& Evaluation::by_kind(const std::vector<const RowRecord*>& rows,
                                                 int drafting, double hope) {
  hope_ = hope;
  const int n = known_.neural();
  drafting_ = drafting;
  records_.assign(rows.begin(), rows.begin() + std::min<size_t>(drafting_, rows.size()));
  average();
  seconds_.assign(static_cast<size_t>(n + 1) * 2 * kWidest, -1.0);
  reaches_.clear();
  for (int level = 0; level < n; ++level)
    reaches_.push_back(costs_.reach(level, level ? drafting_ : rows_));
  std::fill(slots_.begin(), slots_.end(), -1);
  found_.clear();
  offer({}, 1.0, pass(0, 1));
  lone_chains();
  if (trees_) lone_trees();
  for (int drafter = 1; drafter < n; ++drafter) {
    for (const int width : kWidths) {
      neural_plans(drafter, 0, 0, width);
      confident_plans(drafter, width);
    }
    for (int second = drafter + 1; second < n; ++second)
      for (const int length : kSecondLengths)
        for (const int width : kSecondWidths) neural_plans(drafter, second, length, width);
  }
  return found_;
}

// `tokens` of a drafting row; `seconds` of all.
void Evaluation::offer(const Plan& plan, double tokens, double seconds, double one_more) {
  const int kind = kind_of(plan, known_.neural());
  const double mean = kind ? (drafting_ * tokens + (rows_ - drafting_)) / rows_ : 1.0;
  const Estimate each{plan, mean, seconds, kind ? drafting_ : rows_, kind, one_more};
  int& slot = slots_[kind];
  if (slot < 0) {
    slot = static_cast<int>(found_.size());
    found_.push_back(each);
  } else if (found_[slot].rate() < each.rate()) {
    found_[slot] = each;
  }
}

void Evaluation::lone_chains() {
  const int n = known_.neural();
  const size_t pair = known_.pair(0, n);
  for (const int tail : kTails) {
    Plan plan;
    plan.tail = tail;
    offer(plan, 1.0 + sums_[pair][tail], pass(n, tail) + pass(0, tail + 1));
  }
}

void Evaluation::lone_trees() {
  const int n = known_.neural();
  const PerSize means = known_.lone_trees();
  for (size_t i = 0; i < kTreeSizes.size(); ++i) {
    const int nodes = kTreeSizes[i];
    const double mean = hope(tree_mean(means[i]), known_.trees(0).evidence(i));
    Plan plan;
    plan.nodes = nodes;
    offer(plan, 1.0 + mean * std::pow(goes_on_, 0.5 * mean),
          pass(n, nodes, true) + pass(0, nodes + 1, true));
  }
}

// All lengths; then tails and trees behind the best of them.
void Evaluation::neural_plans(int drafter, int second, int second_tokens, int width) {
  Writing written;
  if (second) {
    const Writing inner = writing(second, width);
    const double count = inner.process.reviews[second_tokens];
    const int kept = std::min(rounded(count * inner.process.mean), kDepths);
    written = {renewal(Drafts(survivals_[known_.pair(drafter, second)]).kept(kept), kept),
               count * inner.seconds + around() + pass(drafter, kept + 1)};
  } else {
    written = writing(drafter, width);
  }
  const size_t pair = known_.pair(0, drafter);
  struct Option {
    Plan plan;
    double tokens, length, spent;
  };
  std::array<Option, kLengths.size()> options;
  size_t best = 0;
  double best_rate = 0.0;
  for (size_t i = 0; i < kLengths.size(); ++i) {
    const double calls = written.process.reviews[kLengths[i]];
    const double length = calls * written.process.mean;
    const double spent = calls * written.seconds + (second ? 0.0 : around());
    const Plan plan{drafter, kLengths[i], second, second_tokens, width, 0, 0, 0};
    options[i] = {plan, 1.0 + between(sums_[pair], length), length, spent};
    const double seconds = spent + pass(0, rounded(length) + 1);
    offer(plan, options[i].tokens, seconds);
    const double rate = options[i].tokens / seconds;
    if (rate > best_rate) best_rate = rate, best = i;
  }
  for (size_t i = 0; i < kLengths.size(); ++i)
    if (i == best || kLengths[i] == 1 || kLengths[i] == 3)
      longer(options[i].plan, options[i].tokens, options[i].length, options[i].spent);
}

// Drafts that end where their confidence falls: it is counted how often they still go on at each
// depth and how often the target keeps so much. Until then half of the drafts that are about to be
// wrong are taken to end in time. Rows end apart, so that later passes are narrower.
void Evaluation::confident_plans(int drafter, int width) {
  const size_t pair = known_.pair(0, drafter);
  const Confident& seen = known_.confident(drafter, width > 0);
  const double reviews = seen.kept.reviews(), known = reviews / (reviews + kGuess);
  Survival kept = average(seen.kept.survival(), pair);
  const Survival going = average(seen.drafted.survival(), pair);
  hope(kept, seen.kept.rejections());
  const Writing written = writing(drafter, width);
  double tokens = 1.0, length = 0.0, spent = around(), goes_on = 1.0, seconds = 0.0;
  int last = 0;
  for (int d = 1, next = 0; d <= kLongest; ++d) {
    goes_on *= goes_on_;
    tokens += known * kept[d] + (1.0 - known) * survivals_[pair][d] * goes_on;
    const double still = known * going[d] + (1.0 - known) * 0.5 * (1.0 + survivals_[pair][d - 1]);
    const double any = 1.0 - std::pow(1.0 - still, drafting_);
    if (any < 1e-6) break;
    length += still;
    const int rows = std::max(rounded(drafting_ * still / any), 1);
    if (rows != last) last = rows, seconds = writing_by(rows, drafter, width);
    spent += any * (written.process.reviews[d] - written.process.reviews[d - 1]) * seconds;
    if (d != kLengths[next]) continue;
    ++next;
    const int wide = std::max(rounded(length), 1);
    const double review = pass(0, wide + 1);
    const double one_more =
        writing_by(drafting_, drafter, width) / written.process.mean + (review - pass(0, 1)) / wide;
    offer({drafter, d, 0, 0, width, 0, 0, 0, 1.0}, tokens, spent + review,
          std::max(one_more, 0.0) / drafting_);
  }
}

// Seconds of one review of statistical drafts for so many rows, or of one token of their own, amid
// others.
double Evaluation::writing_by(int rows, int level, int width) const {
  const int n = known_.neural();
  const int64_t found = static_cast<int64_t>(rows) * width;
  const double own = costs_.seconds(level, rows, rows + found, false);
  return own + (width ? costs_.seconds(n, rows, found, false) : 0.0);
}

// A statistical tail, or a tree, behind a neural draft.
void Evaluation::longer(const Plan& drafted, double tokens, double length, double spent) {
  const int n = known_.neural();
  const size_t own = known_.pair(0, drafted.drafter), tails = known_.pair(0, n);
  const double reached = between(wholes_[own], length);
  for (const int tail : kLaterTails) {
    Plan plan = drafted;
    plan.tail = tail;
    offer(plan, tokens + reached * sums_[tails][tail],
          spent + pass(n, tail) + pass(0, rounded(length) + tail + 1));
  }
  if (!trees_) return;
  const TreeGains& gains = known_.trees(drafted.drafter);
  const PerSize alone = known_.lone_trees();
  PerSize prior{};
  for (size_t i = 0; i < prior.size(); ++i) prior[i] = ce::tree_mean(alone, kTreeSizes[i] - length);
  const PerSize means = gains.means(prior);
  for (size_t i = 0; i + 1 < kTreeSizes.size(); ++i) {
    const int nodes = kTreeSizes[i];
    if (nodes <= length + 2.0) continue;
    Plan plan = drafted;
    plan.nodes = nodes;
    plan.siblings = 2;
    offer(plan, tokens + hope(tree_mean(means[i]), gains.evidence(i)),
          spent + pass(n, nodes, true) + pass(0, nodes + 1, true));
  }
}

Evaluation::Writing Evaluation::writing(int level, int width) {
  const int n = known_.neural();
  // All passes in one go, and nothing around each of them.
  if (!width) {  // drafts on its own
    Survival none{};
    none[0] = 1.0;
    return {renewal(none, 0), pass(level, 1) - around()};
  }
  return {renewal(Drafts(survivals_[known_.pair(level, n)]).kept(width), width),
          pass(level, width + 1) + pass(n, width) - 2.0 * around()};
}

// Seconds of a pass with `width` tokens of each drafting row; the target's has one of the others.
// Passes far wider than any measured one are taken to gain nothing by it: lengths grow step by
// step, since nobody knows where a machine's arithmetic gives out.
double Evaluation::pass(int level, int width, bool tree) {
  const int n = known_.neural();
  const size_t key =
      (static_cast<size_t>(level) * 2 + tree) * kWidest + std::min(width, kWidest - 1);
  double& found = seconds_[key];
  if (found >= 0.0) return found;
  const int rows = level ? std::max(drafting_, 1) : rows_;
  const int64_t tokens = static_cast<int64_t>(drafting_) * width + (level ? 0 : rows_ - drafting_);
  found = costs_.seconds(level, rows, tokens, tree);
  if (level < n && tokens > reaches_[level]) {
    const int64_t reach = reaches_[level];
    found = std::max(found, costs_.seconds(level, rows, reach, tree) * static_cast<double>(tokens) /
                                static_cast<double>(reach));
  }
  found = std::max(found, 1e-9) + overhead_ * (1 + rows);
  return found;
}

double Evaluation::tree_mean(double general) const {
  if (records_.empty()) return std::max(general, 0.0);
  const size_t pair = known_.pair(0, known_.neural());
  double sum = 0.0;
  for (const RowRecord* row : records_)
    sum += row->frailties[pair].tree_mean(general, known_.belief(pair));
  return sum / static_cast<double>(records_.size());
}

}  // namespace ce
