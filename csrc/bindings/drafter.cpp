// The statistical drafter of trees and chains.
#include "ce/drafter.h"

#include <memory>
#include <string>
#include <vector>

#include "bindings/bindings.h"
#include "bindings/tables.h"
#include "ce/check.h"
#include "ce/parallel.h"

namespace py = pybind11;

namespace ce {
namespace {

using Address = std::uintptr_t;
using Ints = std::vector<int64_t>;
using Tokens = std::vector<int32_t>;
using Doubts = std::vector<float>;

int64_t size_of(const Tokens& tokens) {
  return static_cast<int64_t>(tokens.size());
}

// [source][one][order - 1] of the trees, then of the chains.
Doubts get_doubts(const Drafter& d) {
  const float* tree = &d.tree_weights.doubt[0][0][0];
  const float* chain = &d.chain_weights.doubt[0][0][0];
  constexpr size_t kCount = sizeof(DraftWeights) / sizeof(float);
  Doubts out(tree, tree + kCount);
  out.insert(out.end(), chain, chain + kCount);
  return out;
}

void set_doubts(Drafter& d, const Doubts& doubts) {
  constexpr size_t kCount = sizeof(DraftWeights) / sizeof(float);
  CE_CHECK(doubts.size() == 2 * kCount, "doubts must have ", 2 * kCount, " numbers, got ",
           doubts.size());
  for (size_t i = 0; i < doubts.size(); ++i)
    CE_CHECK(doubts[i] > 0.0f && doubts[i] < 1e30f, "doubts[", i, "] must be > 0, got ", doubts[i]);
  std::copy_n(doubts.data(), kCount, &d.tree_weights.doubt[0][0][0]);
  std::copy_n(doubts.data() + kCount, kCount, &d.chain_weights.doubt[0][0][0]);
}

std::unique_ptr<Drafter> make(int64_t rows, const MappedTable* table, int64_t learn_tokens) {
  auto d = std::make_unique<Drafter>(rows, table == nullptr ? nullptr : table->table.get(),
                                     learn_tokens);
  if (table == nullptr || table->doubts.empty()) return d;
  const float* doubt = table->doubts.data();
  for (DraftWeights* weights : {&d->tree_weights, &d->chain_weights})
    for (int one = 0; one < 2; ++one)
      for (int n = 0; n < table->table->order(); ++n) weights->doubt[kFromTable][one][n] = *doubt++;
  return d;
}

Ints propose(const Drafter& d, CpuContext& c, Address tokens, int64_t token_stride,
             const Ints& rows, const Ints& lengths, const Ints& budgets, const Ints& depths,
             bool chain, float least, Address out_tokens, Address out_parents, Address out_probs,
             int64_t out_stride, const std::vector<Address>& predictions,
             const Ints& prediction_lengths) {
  CE_CHECK(lengths.size() == rows.size() && budgets.size() == rows.size() &&
               depths.size() == rows.size(),
           "lengths, budgets and depths have ", lengths.size(), ", ", budgets.size(), " and ",
           depths.size(), " entries for ", rows.size(), " rows");
  CE_CHECK(predictions.size() == prediction_lengths.size() &&
               (predictions.empty() || predictions.size() == rows.size()),
           "predictions and prediction_lengths have ", predictions.size(), " and ",
           prediction_lengths.size(), " entries for ", rows.size(),
           " rows; leave both out or give one for each row");
  for (size_t i = 0; i < rows.size(); ++i) {
    CE_CHECK(rows[i] >= 0 && rows[i] < d.rows(), "rows[", i, "] must be in 0..", d.rows() - 1,
             ", got ", rows[i]);
    CE_CHECK(lengths[i] >= d.length(rows[i]) && lengths[i] <= token_stride, "lengths[", i,
             "] must be in ", d.length(rows[i]), "..", token_stride,
             " (the tokens that row has been given, and its capacity), got ", lengths[i]);
    CE_CHECK(budgets[i] >= 0 && budgets[i] <= std::min<int64_t>(kMaxTreeNodes, out_stride),
             "budgets[", i, "] must be in 0..", std::min<int64_t>(kMaxTreeNodes, out_stride),
             ", got ", budgets[i]);
    CE_CHECK(depths[i] >= 0, "depths[", i, "] must be >= 0, got ", depths[i]);
    if (!predictions.empty())
      CE_CHECK(prediction_lengths[i] >= 0 && (predictions[i] != 0 || prediction_lengths[i] == 0),
               "prediction_lengths[", i, "] = ", prediction_lengths[i],
               " must be >= 0, and 0 where there is no prediction");
  }
  Ints out(rows.size());
  for_each_item(c.pool, static_cast<int64_t>(rows.size()), [&](int64_t i) {
    const size_t r = static_cast<size_t>(i);
    Corpus prediction;
    if (!predictions.empty())
      prediction = {pointer<int32_t>(predictions[r]), prediction_lengths[r]};
    const int64_t at = i * out_stride;
    const DraftTree tree{pointer<int32_t>(out_tokens) + at, pointer<int32_t>(out_parents) + at,
                         pointer<float>(out_probs) + at};
    const TreeLimits limits{static_cast<int>(budgets[r]),
                            static_cast<int>(std::min<int64_t>(depths[r], kMaxTreeNodes)), least};
    out[r] = d.propose(c.kernels, rows[r], pointer<int32_t>(tokens) + rows[r] * token_stride,
                       lengths[r], prediction, chain, limits, tree);
  });
  return out;
}

}  // namespace
}  // namespace ce

void bind_drafter(py::module_& m) {
  using namespace ce;
  using namespace pybind11::literals;
  m.attr("MAX_TREE_NODES") = kMaxTreeNodes;
  py::class_<Drafter>(m, "Drafter", "Drafts by n-gram statistics: csrc/include/ce/drafter.h.")
      .def(py::init(&make), "rows"_a, "table"_a = nullptr, "learn_tokens"_a = 0,
           py::keep_alive<1, 3>())
      .def(
          "begin",
          [](Drafter& d, int64_t row, const Tokens& tokens, int64_t prompt) {
            d.begin(row, tokens.data(), size_of(tokens), prompt < 0 ? size_of(tokens) : prompt);
          },
          "row"_a, "tokens"_a, "prompt"_a = -1,
          "Starts a row over; its first `prompt` tokens (-1: all) are not learnt from.")
      .def(
          "extend",
          [](Drafter& d, int64_t row, const Tokens& tokens) {
            d.extend(row, tokens.data(), size_of(tokens));
          },
          "row"_a, "tokens"_a)
      .def("truncate", &Drafter::truncate, "row"_a, "length"_a)
      .def("release", &Drafter::release, "row"_a)
      .def("finish", &Drafter::finish, "row"_a)
      .def("clear_learned", &Drafter::clear_learned)
      .def("length", &Drafter::length, "row"_a)
      .def_property_readonly("rows", &Drafter::rows)
      .def_property_readonly("learned", &Drafter::learned, "Tokens of finished requests held.")
      .def(
          "learned_text",
          [](const Drafter& d) {
            return py::bytes(reinterpret_cast<const char*>(d.learned_text()),
                             static_cast<size_t>(d.learned()) * sizeof(int32_t));
          },
          "The tokens of finished requests, -1 between them: int32[learned], as bytes.")
      .def_property_readonly("learned_changes", &Drafter::learned_changes,
                             "How often what is held of finished requests has changed.")
      .def_property_readonly("nbytes", &Drafter::nbytes)
      .def_property("doubts", &get_doubts, &set_doubts,
                    "float[2][3][2][8]: trees and chains; request, finished requests, table; "
                    "several successors seen or one; order - 1.")
      .def("propose", &propose, "context"_a, "tokens"_a, "token_stride"_a, "rows"_a, "lengths"_a,
           "budgets"_a, "depths"_a, "chain"_a, "least"_a, "out_tokens"_a, "out_parents"_a,
           "out_probs"_a, "out_stride"_a, "predictions"_a = std::vector<Address>(),
           "prediction_lengths"_a = Ints(), py::call_guard<py::gil_scoped_release>(),
           "Drafts up to budgets[i] nodes, at most depths[i] deep, behind the lengths[i] tokens of "
           "rows[i]: a tree or a chain, as csrc/include/ce/draft_tree.h says. Row i of the outputs "
           "[rows, out_stride] receives tokens, parents (-1: the row's last token) and path "
           "probabilities; returns how many nodes for each row.");
}
