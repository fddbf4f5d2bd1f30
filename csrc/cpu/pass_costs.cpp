#include "ce/pass_costs.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdlib>

namespace ce {
namespace {

// What each token adds to a pass over one, as long as nothing is known: next to nothing, since
// weights are read once. Optimistic, so that wider passes get tried and measured.
constexpr double kSlope = 0.02;
// Passes that a size needs to weigh as much as what the sizes around it tell.
constexpr double kPull = 4.0;
// How far a time may move what is known of its size, as a logarithm, at first and later: about
// towards the median, since a moment when the machine does something else says little.
constexpr double kFirst = 1.4, kLater = 0.35;
// A size's first time is more than what the sizes around it tell by this factor at most.
constexpr double kSurprise = 2.0;
// A pass costs hardly more than two over half the tokens, where such were measured so often.
constexpr double kHalves = 1.1, kSure = 3.0;
// Passes over as many tokens of few and of many rows differ by this at most.
constexpr double kRowsMatter = 3.0;

int table_of(int level, bool tree) {
  return 2 * level + (tree ? 1 : 0);
}

// Sizes of passes that are told apart, in tokens over all rows: all up to 32, every fourth up to
// 64, every eighth up to 128, beyond by factors of 1.25.
int size_of(int64_t tokens) {
  if (tokens <= 32) return static_cast<int>(std::max<int64_t>(tokens, 1));
  if (tokens <= 64) return static_cast<int>((tokens + 3) / 4 * 4);
  if (tokens <= 128) return static_cast<int>((tokens + 7) / 8 * 8);
  const double steps = std::ceil(std::log(static_cast<double>(tokens) / 128.0) / std::log(1.25));
  return static_cast<int>(std::nearbyint(128.0 * std::pow(1.25, steps)));
}

}  // namespace

int row_bucket(int rows) {
  if (rows <= 4) return std::max(rows, 1);
  const int power = static_cast<int>(std::bit_floor(static_cast<unsigned>(rows)));
  return rows < power + power / 2 ? power : power + power / 2;
}

void PassCosts::observe(int level, int rows, int64_t tokens, double seconds, bool tree) {
  const int size = size_of(tokens);
  rows = row_bucket(rows);
  Table& table = tables_[table_of(level, tree)];
  const double unit = speed_ * table.factor(rows);
  const auto found = table.cells.find(size);
  if (found == table.cells.end()) {
    const double guess = this->seconds(level, rows, tokens, tree) / unit;
    double scaled = seconds / unit;
    if (guess > 0.0 && scaled > kSurprise * guess)
      scaled = measured(table_of(level, tree), rows, tokens)
                   ? kSurprise * guess
                   : std::sqrt(kSurprise * guess * scaled);
    table.cells[size] = {scaled, 1.0};
    table.values.clear();
    return;
  }
  Cell& cell = found->second;
  const double off = std::log(std::max(seconds, 1e-12) / std::max(cell.seconds * unit, 1e-12));
  const double most = cell.weight < 4.0 ? kFirst : kLater;
  const double change = std::clamp(off, -most, most);
  cell.weight = std::min(cell.weight + 1.0, 12.0);
  cell.seconds *= std::exp(change / cell.weight);
  table.values.clear();
  if (cell.weight <= 4.0) return;
  speed_ *= std::exp(0.05 * change);
  Cell& factor = table.factors.try_emplace(rows, Cell{table.factor(rows), 4.0}).first->second;
  factor.weight = std::min(factor.weight + 1.0, 24.0);
  factor.seconds *= std::exp(change / factor.weight);
  factor.seconds = std::clamp(factor.seconds, 1.0 / kRowsMatter, kRowsMatter);
}

double PassCosts::seconds(int level, int rows, int64_t tokens, bool tree) const {
  std::optional<double> found = measured(table_of(level, tree), rows, tokens);
  if (!found && tree) found = measured(table_of(level, false), rows, tokens);
  return (found ? *found : from_another_level(level, rows, tokens)) * speed_;
}

int64_t PassCosts::reach(int level, int rows) const {
  int widest = 1;
  for (const bool tree : {false, true}) {
    const auto found = tables_.find(table_of(level, tree));
    if (found != tables_.end() && !found->second.cells.empty())
      widest = std::max(widest, found->second.cells.rbegin()->first);
  }
  return 2 * static_cast<int64_t>(widest) + 2 * rows;
}

std::optional<double> PassCosts::measured(int table, int rows, int64_t tokens) const {
  const auto found = tables_.find(table);
  if (found == tables_.end() || found->second.cells.empty()) return std::nullopt;
  return found->second.at(tokens) * found->second.factor(row_bucket(rows));
}

double PassCosts::from_another_level(int level, int rows, int64_t tokens) const {
  const int levels = static_cast<int>(bytes_.size());
  for (int other = 0; other < levels; ++other) {
    const std::optional<double> found = measured(table_of(other, false), rows, tokens);
    if (!found) continue;
    if (level >= levels) return *found / 50.0;  // no weights
    const double share = static_cast<double>(bytes_[level]) /
                         static_cast<double>(std::max<int64_t>(bytes_[other], 1));
    return *found * std::max(share, 0.02);
  }
  return 0.0;
}

std::vector<PassCosts::Measured> PassCosts::cells() const {
  std::vector<Measured> found;
  for (const auto& [number, table] : tables_) {
    for (const auto& [size, cell] : table.cells)
      found.push_back({number, 0, size, {cell.seconds * speed_, cell.weight}});
    for (const auto& [rows, factor] : table.factors) found.push_back({number, rows, 0, factor});
  }
  return found;
}

void PassCosts::restore(const std::vector<Measured>& cells) {
  for (const Measured& each : cells) {
    Table& table = tables_[each.table];
    if (each.tokens)
      table.cells[each.tokens] = {each.cell.seconds / speed_, each.cell.weight};
    else
      table.factors[each.rows] = each.cell;
    table.values.clear();
  }
}

// Of the nearest number of rows.
double PassCosts::Table::factor(int rows) const {
  if (factors.empty()) return 1.0;
  auto above = factors.lower_bound(rows);
  if (above == factors.end()) return std::prev(above)->second.seconds;
  if (above == factors.begin() || above->first == rows) return above->second.seconds;
  const auto below = std::prev(above);
  return (rows * rows < below->first * above->first ? below : above)->second.seconds;
}

void PassCosts::Table::smooth() {
  sizes.clear();
  for (const auto& [size, cell] : cells) {
    sizes.push_back(size);
    values.push_back(cell.seconds);
  }
  std::vector<double> found;
  for (size_t i = 0; i < sizes.size(); ++i) {
    const Cell& cell = cells[sizes[i]];
    const bool inside = i > 0 && i + 1 < sizes.size();
    const double near = inside ? guess(sizes[i], i, i + 1, 1.0) : 0.0;
    found.push_back(near > 0.0 ? (kPull * near + cell.weight * cell.seconds) / (kPull + cell.weight)
                               : cell.seconds);
  }
  double each = INFINITY;  // what a token costs at most, by smaller passes
  for (size_t i = 0; i < found.size(); ++i) {
    found[i] = std::min(found[i], each * sizes[i]);
    if (cells[sizes[i]].weight >= kSure) each = std::min(each, kHalves * found[i] / sizes[i]);
  }
  for (size_t i = found.size() - 1; i-- > 0;) found[i] = std::min(found[i], found[i + 1]);
  values = std::move(found);
}

double PassCosts::Table::at(int64_t tokens) {
  if (values.empty()) smooth();
  const size_t i = std::lower_bound(sizes.begin(), sizes.end(), tokens) - sizes.begin();
  if (i < sizes.size() && sizes[i] == tokens) return values[i];
  return guess(tokens, i, i, 0.5);
}

// From the sizes before index `below` and from index `above` on, 0 without any: along the line
// between them (`straight` 1), or below it, since costs are mostly convex.
double PassCosts::Table::guess(int64_t tokens, size_t below, size_t above, double straight) const {
  const double size = static_cast<double>(tokens);
  if (below == 0) {
    if (above == sizes.size()) return 0.0;
    return values[above] * (1.0 + kSlope * (size - 1.0)) / (1.0 + kSlope * (sizes[above] - 1.0));
  }
  const double near = sizes[below - 1], value = values[below - 1];
  double slope = kSlope * value / (1.0 + kSlope * (near - 1.0));
  if (above < sizes.size()) {
    const double line = (values[above] - value) / (sizes[above] - near);
    const double low = std::max(std::min(slope, line), 0.0);
    return value + (straight * line + (1.0 - straight) * low) * (size - near);
  }
  if (below > 1)
    slope = std::max(
        slope, std::min((value - values[below - 2]) / (near - sizes[below - 2]), value / near));
  return value + slope * (size - near);
}

}  // namespace ce
