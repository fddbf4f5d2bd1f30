#include "ce/draft_tree.h"

#include <algorithm>

#include "ce/check.h"

namespace ce {
namespace {

struct Layer {
  DraftSource source;
  int order;
};

// The layers in the order of trust. An order that is not known at a place is passed over.
constexpr Layer kLayers[] = {
    {kFromRow, 8},      {kFromRow, 7},      {kFromRow, 6},      {kFromRow, 5},
    {kFromRow, 4},      {kFromRow, 3},      {kFromRow, 2},      {kFromRow, 1},
    {kFromFinished, 8}, {kFromFinished, 7}, {kFromFinished, 6}, {kFromFinished, 5},
    {kFromFinished, 4}, {kFromTable, 8},    {kFromTable, 7},    {kFromTable, 6},
    {kFromTable, 5},    {kFromTable, 4},    {kFromTable, 3},    {kFromTable, 2},
    {kFromTable, 1},    {kFromFinished, 3}, {kFromFinished, 2},
};

// Candidates of one context with their probabilities, in the order in which they were found.
class Blend {
 public:
  Blend() { std::fill(place_, place_ + kPlaces, int16_t{-1}); }
  int size() const { return size_; }
  int32_t token(int i) const { return tokens_[i]; }
  float share(int i) const { return shares_[i]; }
  void clear() {
    for (int i = 0; i < size_; ++i) place_[taken_[i]] = -1;
    size_ = 0;
  }
  void add(int32_t token, float share) {
    uint32_t at = (static_cast<uint32_t>(token) * 0x9E3779B1u) >> (32 - kPlaceBits);
    for (; place_[at] >= 0; at = (at + 1) & (kPlaces - 1)) {
      if (tokens_[place_[at]] != token) continue;
      shares_[place_[at]] += share;
      return;
    }
    place_[at] = static_cast<int16_t>(size_);
    taken_[size_] = static_cast<int16_t>(at);
    tokens_[size_] = token;
    shares_[size_++] = share;
  }

 private:
  static constexpr int kPlaceBits = 10;
  static constexpr int kPlaces = 1 << kPlaceBits;
  static constexpr int kMost = static_cast<int>(std::size(kLayers)) * kWindow + 1;
  static_assert(kMost < kPlaces / 2);
  int size_ = 0;
  int16_t place_[kPlaces];
  int16_t taken_[kMost];
  int32_t tokens_[kMost];
  float shares_[kMost];
};

// `predicted` is the index in the predicted text of the token after this one, -1 off its path.
struct Candidate {
  float prob;
  int32_t parent, token;
  int64_t predicted;
};

class Builder {
 public:
  Builder(const Kernels& kernels, const DraftSources& sources, const DraftWeights& weights,
          const int32_t* tokens, int64_t length, const TreeLimits& limits)
      : s_(sources), w_(weights), end_(tokens + length), length_(length), l_(limits) {
    const Corpus& text = s_.prediction;
    if (text.length == 0) return;
    const GramMatch match =
        longest_suffix(kernels, text.tokens, text.length, tokens, length, kMaxMatch);
    matched_ = match.matched;
    predicted_ = matched_ > 0 ? match.next : -1;
  }

  int tree(const DraftTree& out) {
    if (l_.budget > 0 && l_.depth > 0) expand(-1);
    while (count_ < l_.budget && first_ < last_) {
      add(open_[first_++]);
      if (count_ < l_.budget && depth_[count_ - 1] < l_.depth) expand(count_ - 1);
    }
    write(out);
    return count_;
  }

  int chain(const DraftTree& out) {
    const int most = std::min(l_.budget, l_.depth);
    while (count_ < most) {
      first_ = last_ = 0;
      room_ = 1;
      expand(count_ - 1);
      if (last_ == 0) break;
      add(open_[0]);
    }
    write(out);
    return count_;
  }

 private:
  int room() const { return room_ > 0 ? room_ : l_.budget - count_; }
  // A path must be likelier than this to become a node.
  float floor() const { return last_ - first_ >= room() ? open_[last_ - 1].prob : l_.least; }

  void add(const Candidate& c) {
    depth_[count_] = c.parent < 0 ? 1 : depth_[c.parent] + 1;
    nodes_[count_++] = c;
  }

  void expand(int parent) {
    int32_t context[kMaxOrder];
    int known = 0;
    for (int node = parent; node >= 0 && known < kMaxOrder; node = nodes_[node].parent)
      context[kMaxOrder - ++known] = nodes_[node].token;
    for (int64_t i = 1; known < kMaxOrder && i <= length_; ++i)
      context[kMaxOrder - ++known] = end_[-i];
    const float path = parent < 0 ? 1.0f : nodes_[parent].prob;
    const int64_t at = parent < 0 ? predicted_ : nodes_[parent].predicted;
    const bool follows = at >= 0 && at < s_.prediction.length;
    float rest = 1.0f;
    if (follows) {
      const float matched =
          static_cast<float>(matched_) + static_cast<float>(parent < 0 ? 0 : depth_[parent]);
      rest -= matched / (matched + kPredictionDoubt);
      blend_.add(s_.prediction.tokens[at], 1.0f - rest);
    }
    collect(context + kMaxOrder, known, path, rest);
    for (int i = 0; i < blend_.size(); ++i) {
      const bool on_path = follows && blend_.token(i) == s_.prediction.tokens[at];
      push({path * blend_.share(i), parent, blend_.token(i), on_path ? at + 1 : -1});
    }
    blend_.clear();
  }

  // Keeps open_[first_, last_) sorted and no longer than the nodes that may still be added.
  void push(const Candidate& c) {
    if (!(c.prob > l_.least)) return;
    if (last_ - first_ >= room()) {
      if (open_[last_ - 1].prob >= c.prob) return;
      --last_;
    }
    int at = last_++;
    for (; at > first_ && open_[at - 1].prob < c.prob; --at) open_[at] = open_[at - 1];
    open_[at] = c;
  }

  void collect(const int32_t* end, int available, float path, float rest) {
    int32_t heads[2][kRowOrder];
    NgramLayer layers[kMaxOrder];
    int known[kDraftSources] = {s_.row->heads(end, available, heads[kFromRow]), 0, 0};
    if (s_.finished != nullptr)
      known[kFromFinished] = s_.finished->heads(end, available, heads[kFromFinished]);
    if (s_.table != nullptr) known[kFromTable] = s_.table->layers(end, available, layers);
    const float enough = std::max(kLeastRest, kLeastOfFloor * floor() / path);
    for (const auto [source, n] : kLayers) {
      if (rest < enough) return;
      if (n > known[source]) continue;
      if (source == kFromTable)
        rest -= from_table(layers[n - 1], rest);
      else
        rest -= from_text(source, source == kFromRow ? *s_.row : *s_.finished, heads[source][n - 1],
                          n, rest);
    }
  }

  float from_text(DraftSource source, const Occurrences& text, int32_t head, int order,
                  float rest) {
    int32_t seen[kWindow];
    int count = 0;
    bool one = true;
    for (int32_t at = head; at >= 0 && count < kWindow; at = text.previous(at, order)) {
      seen[count] = text.text()[at];
      one = one && seen[count] == seen[0];
      ++count;
    }
    const float each = rest / (static_cast<float>(count) + w_.doubt[source][one][order - 1]);
    const float share = each * static_cast<float>(count);
    if (one) {
      blend_.add(seen[0], share);
    } else {
      for (int i = 0; i < count; ++i) blend_.add(seen[i], each);
    }
    return share;
  }

  float from_table(const NgramLayer& layer, float rest) {
    const int size = static_cast<int>(std::min<int64_t>(layer.size, kWindow));
    const float each = rest / (layer.total + w_.doubt[kFromTable][size == 1][layer.order - 1]);
    float spent = 0.0f;
    for (int i = 0; i < size; ++i) {
      // Rounded counts may add up to more than the rounded total.
      const float share =
          std::min(each * s_.table->count(layer.order, layer.first + i), rest - spent);
      blend_.add(s_.table->successor(layer.order, layer.first + i), share);
      spent += share;
    }
    return spent;
  }

  // The nodes with the likely chain first; the others keep their order.
  void write(const DraftTree& out) const {
    int place[kMaxTreeNodes];
    bool chosen[kMaxTreeNodes] = {};
    int placed = 0;
    for (int i = 0, tip = -1; i < count_; ++i) {
      if (nodes_[i].parent != tip) continue;  // the first child is the likeliest
      chosen[i] = true;
      place[i] = placed++;
      tip = i;
    }
    for (int i = 0; i < count_; ++i)
      if (!chosen[i]) place[i] = placed++;
    for (int i = 0; i < count_; ++i) {
      out.tokens[place[i]] = nodes_[i].token;
      out.parents[place[i]] = nodes_[i].parent < 0 ? -1 : place[nodes_[i].parent];
      out.probs[place[i]] = nodes_[i].prob;
    }
  }

  const DraftSources& s_;
  const DraftWeights& w_;
  const int32_t* end_;
  const int64_t length_;
  const TreeLimits& l_;
  int64_t matched_ = 0, predicted_ = -1;
  int room_ = 0;
  Blend blend_;
  Candidate open_[2 * kMaxTreeNodes];
  Candidate nodes_[kMaxTreeNodes];
  int depth_[kMaxTreeNodes];
  int first_ = 0, last_ = 0, count_ = 0;
};

void check(const TreeLimits& limits, int64_t length) {
  CE_CHECK(limits.budget >= 0 && limits.budget <= kMaxTreeNodes, "budget must be in 0..",
           kMaxTreeNodes, ", got ", limits.budget);
  CE_CHECK(limits.depth >= 0, "depth must be >= 0, got ", limits.depth);
  CE_CHECK(limits.least >= 0.0f, "least must be >= 0, got ", limits.least);
  CE_CHECK(length >= 0, "length must be >= 0, got ", length);
}

}  // namespace

int draft_tree(const Kernels& kernels, const DraftSources& sources, const DraftWeights& weights,
               const int32_t* tokens, int64_t length, const TreeLimits& limits,
               const DraftTree& tree) {
  check(limits, length);
  return Builder(kernels, sources, weights, tokens, length, limits).tree(tree);
}

int draft_chain(const Kernels& kernels, const DraftSources& sources, const DraftWeights& weights,
                const int32_t* tokens, int64_t length, const TreeLimits& limits,
                const DraftTree& tree) {
  check(limits, length);
  return Builder(kernels, sources, weights, tokens, length, limits).chain(tree);
}

}  // namespace ce
