// What passes cost: measured while running, interpolated where nothing was measured yet.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <vector>

namespace ce {

// 1, 2, 3, 4, 6, 8, 12, 16, ...: rows that are told apart.
int row_bucket(int rows);

// Times of passes by (level, tokens over all rows) in seconds, times a factor for the number of
// rows and one that follows the machine's speed, so that times taken with few and with many rows,
// in a busy and in a quiet moment compare.
//
// Level numbers are those of the engine; passes over trees are a table of their own. Where a cell
// is empty its neighbours in tokens tell, rather too low: what looks good is tried and measured.
// Without any, weights are compared with those of a level that was measured.
class PassCosts {
 public:
  struct Cell {
    double seconds, weight;
  };
  // Of a table: the time of so many tokens (rows = 0), or the factor of so many rows (tokens = 0).
  struct Measured {
    int table, rows, tokens;
    Cell cell;
  };

  explicit PassCosts(std::vector<int64_t> weight_bytes) : bytes_(std::move(weight_bytes)) {}

  // A pass took `seconds`. A single slow one counts as little more than a slow one.
  void observe(int level, int rows, int64_t tokens, double seconds, bool tree);
  // Expected time of a pass; 0 while nothing at all is known.
  double seconds(int level, int rows, int64_t tokens, bool tree) const;
  // Tokens of a pass that its price can be told for: about twice the widest measured one.
  int64_t reach(int level, int rows) const;

  std::vector<Measured> cells() const;
  // Begins with such cells.
  void restore(const std::vector<Measured>& cells);

 private:
  // One table. Asked often between two measurements: a pass over fewer tokens costs no more than
  // one over many, one over many hardly more than several over fewer, and what was measured once or
  // twice is pulled to what the sizes around it tell, so that a slow moment that hit a rare size
  // does not count for long.
  struct Table {
    std::map<int, Cell> cells, factors;  // by tokens; by rows
    std::vector<int> sizes;
    std::vector<double> values;  // smooth; empty: to be made

    double factor(int rows) const;
    void smooth();
    double at(int64_t tokens);
    double guess(int64_t tokens, size_t below, size_t above, double straight) const;
  };

  std::optional<double> measured(int table, int rows, int64_t tokens) const;
  double from_another_level(int level, int rows, int64_t tokens) const;

  std::vector<int64_t> bytes_;
  mutable std::map<int, Table> tables_;
  double speed_ = 1.0;
};

}  // namespace ce
