// The automatic policy's estimates and choices.
#include "ce/planner.h"

#include <algorithm>

#include "bindings/bindings.h"

namespace py = pybind11;

namespace ce {
namespace {

using PlanTuple = std::tuple<int, int, int, int, int, int, int, int, double>;
using NeededTuple = std::pair<int, int>;
using TreeTuple = std::tuple<int, std::vector<int>, std::vector<bool>,
                             std::array<NeededTuple, kTreeSizes.size()>>;
using CellTuple = std::tuple<int, int, int, double, double>;

PlanTuple to_tuple(const Plan& p) {
  return {p.drafter, p.tokens, p.second,   p.second_tokens, p.width,
          p.tail,    p.nodes,  p.siblings, p.min_confidence};
}

Plan to_plan(const PlanTuple& t) {
  return std::apply([](auto... each) { return Plan{each...}; }, t);
}

Needed to_needed(const NeededTuple& needed) {
  return {needed.first, needed.second};
}

std::optional<TreeReview> to_tree(const std::optional<TreeTuple>& tree, int trunk) {
  if (!tree) return std::nullopt;
  const auto& [nodes, ranks, likeliest, needed] = *tree;
  TreeReview found{nodes, ranks, likeliest, {}};
  std::transform(needed.begin(), needed.end(), found.needed.begin(), to_needed);
  if (found.ranks.size() + 1 != found.likeliest.size() + trunk)
    throw std::invalid_argument(
        "`likeliest` must tell of each node behind the draft, and one more");
  return found;
}

std::vector<CellTuple> cells(const PassCosts& costs) {
  std::vector<CellTuple> found;
  for (const auto& each : costs.cells())
    found.emplace_back(each.table, each.rows, each.tokens, each.cell.seconds, each.cell.weight);
  return found;
}

void restore(PassCosts& costs, const std::vector<CellTuple>& cells) {
  std::vector<PassCosts::Measured> found;
  for (const auto& [table, rows, tokens, seconds, weight] : cells) {
    if (table < 0 || rows < 0 || tokens < 0 || (rows > 0) == (tokens > 0) || !(seconds > 0.0) ||
        !(weight > 0.0))
      throw std::invalid_argument(
          "a cell needs a table >= 0, either rows or tokens > 0, seconds and weight > 0");
    found.push_back({table, rows, tokens, {seconds, weight}});
  }
  costs.restore(found);
}

}  // namespace
}  // namespace ce

void bind_planner(py::module_& m) {
  using namespace ce;
  using namespace pybind11::literals;
  m.attr("TREE_SIZES") = kTreeSizes;
  m.def("row_bucket", &row_bucket, "rows"_a, "1, 2, 3, 4, 6, 8, 12, ...: rows told apart.");
  py::class_<PassCosts>(m, "PassCosts", "Times of passes: csrc/include/ce/pass_costs.h.")
      .def(py::init<std::vector<int64_t>>(), "weight_bytes"_a)
      .def("observe", &PassCosts::observe, "level"_a, "rows"_a, "tokens"_a, "seconds"_a, "tree"_a)
      .def("seconds", &PassCosts::seconds, "level"_a, "rows"_a, "tokens"_a, "tree"_a = false)
      .def("reach", &PassCosts::reach, "level"_a, "rows"_a)
      .def("cells", &cells,
           "What was measured: (table, 0, tokens, seconds, weight), and of rows (table, rows, 0, "
           "factor, "
           "weight).")
      .def("restore", &restore, "cells"_a);
  py::class_<Ends>(m, "Ends", "Where reviews of chains stopped: csrc/include/ce/acceptance.h.")
      .def(py::init<double>(), "prior"_a)
      .def("add", &Ends::add, "start"_a, "kept"_a, "rejected"_a, "weight"_a = 1.0)
      .def("scale", &Ends::scale, "factor"_a)
      .def("restore", &Ends::restore, "kept"_a, "rejected"_a, "reviews"_a)
      .def("survival", &Ends::survival)
      .def("kept_share", &Ends::kept_share)
      .def_property_readonly("reviews", &Ends::reviews)
      .def_property_readonly("kept", &Ends::kept)
      .def_property_readonly("rejected", &Ends::rejected);
  py::class_<Run>(m, "Run", "How far a row is in a run: csrc/include/ce/acceptance.h.")
      .def(py::init<>())
      .def("survival", &Run::survival, "runs"_a, "tokens"_a)
      .def("review", &Run::review, "ends"_a, "kept"_a, "rejected"_a);
  py::class_<Drafts>(m, "Drafts", "What drafts keep: csrc/include/ce/acceptance.h.")
      .def(py::init<Survival>(), "runs"_a)
      .def("mean", &Drafts::mean, "drafted"_a)
      .def("whole", &Drafts::whole, "drafted"_a)
      .def("kept", &Drafts::kept, "drafted"_a);
  py::class_<TreeGains>(m, "TreeGains", "What trees add: csrc/include/ce/acceptance.h.")
      .def(py::init<>())
      .def("add", &TreeGains::add, "nodes"_a, "trunk"_a, "ranks"_a)
      .def(
          "replay",
          [](TreeGains& gains, int nodes, int text,
             const std::array<NeededTuple, kTreeSizes.size()>& needed, const PerSize& means) {
            std::array<Needed, kTreeSizes.size()> found;
            std::transform(needed.begin(), needed.end(), found.begin(), to_needed);
            gains.replay(nodes, text, found, means);
          },
          "nodes"_a, "text"_a, "needed"_a, "means"_a)
      .def("scale", &TreeGains::scale, "factor"_a)
      .def("means", &TreeGains::means, "prior"_a)
      .def("evidence", &TreeGains::evidence, "size"_a)
      .def_readwrite("tokens", &TreeGains::tokens)
      .def_readwrite("below", &TreeGains::below)
      .def_readwrite("reviews", &TreeGains::reviews);
  py::class_<Confident>(m, "Confident", "Drafts that may end early: csrc/include/ce/planner.h.")
      .def("add", &Confident::add, "kept"_a, "drafted"_a, "most"_a)
      .def("scale", &Confident::scale, "factor"_a)
      .def_readonly("drafted", &Confident::drafted)
      .def_readonly("kept", &Confident::kept);
  py::class_<RowRecord, std::shared_ptr<RowRecord>>(m, "RowRecord", "What is known of a row.")
      .def(py::init<int>(), "neural"_a)
      .def_readwrite("drafts", &RowRecord::drafts)
      .def_readonly("vouched", &RowRecord::vouched)
      .def_readonly("length", &RowRecord::length)
      .def_readonly("read", &RowRecord::read);
  py::class_<Knowledge>(m, "Knowledge", "Acceptance over all rows: csrc/include/ce/planner.h.")
      .def(py::init<int>(), "neural"_a)
      .def_property_readonly("neural", &Knowledge::neural)
      .def("pair", &Knowledge::pair, "level"_a, "source"_a)
      .def("ends", py::overload_cast<int, int>(&Knowledge::ends), "level"_a, "source"_a,
           py::return_value_policy::reference_internal)
      .def("confident", py::overload_cast<int, bool>(&Knowledge::confident), "drafter"_a, "above"_a,
           py::return_value_policy::reference_internal)
      .def("trees", py::overload_cast<int>(&Knowledge::trees), "drafter"_a,
           py::return_value_policy::reference_internal)
      .def("scale", &Knowledge::scale, "factor"_a)
      .def("drafted", &Knowledge::drafted, "row"_a, "level"_a, "source"_a, "kept"_a, "drafted"_a,
           "length"_a)
      .def(
          "reviewed",
          [](Knowledge& known, RowRecord& row, const Estimate& followed, int64_t start, int64_t end,
             int kept, const std::optional<TreeTuple>& tree, int64_t length) {
            known.reviewed(row, followed.plan, start, end, kept, to_tree(tree, kept), length);
          },
          "row"_a, "followed"_a, "start"_a, "end"_a, "kept"_a, "tree"_a, "length"_a)
      .def(
          "hazard",
          [](const Knowledge& known, const RowRecord& row, int level, int source) {
            const size_t pair = known.pair(level, source);
            return row.frailties[pair].hazard(known.belief(pair));
          },
          "row"_a, "level"_a, "source"_a,
          "How much oftener than in rows in general the row's drafts are rejected.")
      .def(
          "survival",
          [](const Knowledge& known, const RowRecord& row, int level, int source) {
            const size_t pair = known.pair(level, source);
            return row.frailties[pair].survival(known.ends(level, source).survival(),
                                                known.belief(pair));
          },
          "row"_a, "level"_a, "source"_a)
      .def_readwrite("ended", &Knowledge::ended)
      .def_readwrite("emitted", &Knowledge::emitted);
  py::class_<Estimate>(m, "Estimate", "What a plan is expected to give and to take.")
      .def(py::init([](const PlanTuple& plan) { return Estimate{to_plan(plan)}; }), "plan"_a)
      .def_property_readonly("plan", [](const Estimate& e) { return to_tuple(e.plan); })
      .def_readonly("tokens", &Estimate::tokens)
      .def_readonly("seconds", &Estimate::seconds)
      .def_readonly("drafting", &Estimate::drafting)
      .def_readonly("kind", &Estimate::kind)
      .def_property_readonly("rate", &Estimate::rate);
  py::class_<Choice>(m, "Choice", "Of a look.")
      .def_readonly("best", &Choice::best)
      .def_readonly("plain", &Choice::plain)
      .def_readonly("rate", &Choice::rate)
      .def_readonly("plain_rate", &Choice::plain_rate)
      .def_readonly("trial", &Choice::trial);
  py::class_<Planner>(m, "Planner", "Chooses among plans: csrc/include/ce/planner.h.")
      .def(py::init<Knowledge&, const PassCosts&, bool>(), "knowledge"_a, "costs"_a, "trees"_a,
           py::keep_alive<1, 2>(), py::keep_alive<1, 3>())
      .def(
          "look",
          [](Planner& planner, const std::vector<std::shared_ptr<RowRecord>>& rows, double overhead,
             bool loyal, double allowed, double horizon, bool refresh) {
            return planner.look(rows, {overhead, loyal, allowed, horizon, refresh});
          },
          "rows"_a, "overhead"_a, "loyal"_a, "allowed"_a, "horizon"_a, "refresh"_a)
      .def("adopt", &Planner::adopt, "estimate"_a)
      .def("add", &Planner::add, "rows"_a, "tokens"_a, "seconds"_a)
      .def("forget", &Planner::forget);
  m.def(
      "best_plans",
      [](const Knowledge& known, const PassCosts& costs, int rows, double overhead, bool trees,
         double hope) {
        return Evaluation(known, costs, rows, overhead, trees).by_kind({}, rows, hope);
      },
      "knowledge"_a, "costs"_a, "rows"_a, "overhead"_a, "trees"_a, "hope"_a = 0.0,
      "The best plan of each kind for rows in general, by acceptance that is so many standard "
      "deviations better than it seems.");
}
