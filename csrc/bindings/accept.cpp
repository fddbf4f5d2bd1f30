// Acceptance of drafted tokens.
#include "ce/accept.h"

#include <algorithm>
#include <tuple>
#include <vector>

#include "bindings/bindings.h"
#include "bindings/rows.h"

namespace py = pybind11;

namespace ce {
namespace {

// Tokens, parents, probabilities of a row's drafts.
using Tree = std::tuple<std::vector<int32_t>, std::vector<int32_t>, std::vector<float>>;

ReviewTree review_tree(const Tree& tree, int64_t nodes, size_t i) {
  const auto& [tokens, parents, probs] = tree;
  if (tokens.empty()) return {};
  CE_CHECK(static_cast<int64_t>(tokens.size()) == nodes && parents.size() == tokens.size() &&
               (probs.empty() || probs.size() == tokens.size()),
           "trees[", i, "] has ", tokens.size(), " tokens, ", parents.size(), " parents and ",
           probs.size(), " probs for length - frontier = ", nodes, " nodes");
  return {tokens.data(), parents.data(), probs.empty() ? nullptr : probs.data()};
}

// Number of the review among the row's, whether its distributions are kept, nodes of the trunk.
using Rejections = std::vector<std::tuple<uint32_t, bool, int64_t>>;

RejectionRow rejection_row(const Rejections& rejections, size_t i) {
  if (rejections.empty()) return {};
  const auto& [number, keeps, trunk] = rejections[i];
  return {number, keeps, trunk};
}

using Verdict = std::tuple<int32_t, int32_t, std::vector<int32_t>>;

std::vector<Verdict> accept_rows(CpuContext& c, Address logits, int64_t logits_stride,
                                 int64_t vocab, Address tokens, int64_t token_stride, Address probs,
                                 const Ints& rows, const Ints& frontiers, const Ints& lengths,
                                 const Samplers& samplers, float lenience,
                                 const std::vector<Address>& allowed, int64_t logit_rows,
                                 const std::vector<Tree>& trees, DraftDistributions* distributions,
                                 const Rejections& rejections) {
  check_lengths(rows.size(), {{"frontiers", frontiers.size()},
                              {"lengths", lengths.size()},
                              {"trees", trees.empty() ? rows.size() : trees.size()},
                              {"samplers", samplers.size()},
                              {"rejections", rejections.empty() ? rows.size() : rejections.size()},
                              {"allowed", allowed.empty() ? rows.size() : allowed.size()}});
  check_samplers(samplers);
  std::vector<ReviewRow> reviews(rows.size());
  for (size_t i = 0; i < rows.size(); ++i)
    reviews[i] = {
        rows[i],
        frontiers[i],
        lengths[i],
        samplers[i].get(),
        allowed.empty() ? nullptr : pointer<uint32_t>(allowed[i]),
        trees.empty() ? ReviewTree{} : review_tree(trees[i], lengths[i] - frontiers[i], i),
        rejection_row(rejections, i),
        0};
  std::vector<Accepted> accepted(rows.size());
  const ReviewArgs args{pointer<float>(logits),
                        logits_stride,
                        logit_rows,
                        vocab,
                        pointer<int32_t>(tokens),
                        token_stride,
                        pointer<float>(probs),
                        lenience,
                        distributions};
  accept(args, reviews.data(), static_cast<int64_t>(reviews.size()), c.kernels, c.pool,
         accepted.data());
  std::vector<Verdict> out;
  for (Accepted& a : accepted) out.emplace_back(a.num_accepted, a.token, std::move(a.path));
  return out;
}

void bind_rules(py::module_& m) {
  py::class_<DraftDistributions>(
      m, "DraftDistributions",
      "What the drafted tokens of rows were drawn from, by position, until the target's review.")
      .def(py::init<int64_t, int64_t>(), py::arg("rows"), py::arg("vocab"))
      .def_property_readonly("vocab", &DraftDistributions::vocab)
      .def_property_readonly("held", &DraftDistributions::held, "Distributions in use.")
      .def("truncate", &DraftDistributions::truncate, py::arg("row"), py::arg("length"),
           "Forgets the tokens of a row from position `length` on.")
      .def("clear", &DraftDistributions::clear, py::arg("row"), "Forgets a row.")
      .def(
          "read",
          [](const DraftDistributions& d, int64_t row, int64_t position) {
            CE_CHECK(row >= 0 && row < d.rows(), "row must be in 0..", d.rows() - 1, ", got ", row);
            const float* probs = d.find(row, position);
            return probs == nullptr ? std::vector<float>()
                                    : std::vector<float>(probs, probs + d.vocab());
          },
          py::arg("row"), py::arg("position"), "[vocab], empty where the draft was certain.")
      .def(
          "write",
          [](DraftDistributions& d, int64_t row, int64_t position,
             const std::vector<float>& probs) {
            CE_CHECK(row >= 0 && row < d.rows(), "row must be in 0..", d.rows() - 1, ", got ", row);
            CE_CHECK(static_cast<int64_t>(probs.size()) == d.vocab(), "probs has ", probs.size(),
                     " entries for a vocabulary of ", d.vocab());
            std::copy(probs.begin(), probs.end(), d.put(row, position).begin());
          },
          py::arg("row"), py::arg("position"), py::arg("probs"));
  m.def(
      "accept", &accept_rows, py::arg("context"), py::arg("logits"), py::arg("logits_stride"),
      py::arg("vocab"), py::arg("tokens"), py::arg("token_stride"), py::arg("probs"),
      py::arg("rows"), py::arg("frontiers"), py::arg("lengths"), py::arg("samplers"),
      py::arg("lenience") = 1.0f, py::arg("allowed") = std::vector<Address>(),
      py::arg("logit_rows") = -1, py::arg("trees") = std::vector<Tree>(),
      py::arg("distributions") = py::none(), py::arg("rejections") = Rejections(),
      py::call_guard<py::gil_scoped_release>(),
      "Reviews drafted tokens at positions frontiers[i]..lengths[i] - 1 of rows[i]; its "
      "length - frontier + 1 logit rows follow those of the row before. Returns (num_accepted, "
      "own token, path) for each row and writes the own token at frontier + num_accepted. probs: "
      "float32 like tokens, the drafting level's probabilities (1 for statistics), updated with "
      "this level's; 0 where lenience is 1 and nobody needs them. `allowed`: addresses of uint32 "
      "masks [logit rows of the row, ceil(vocab / 32)], 0 for none. logit_rows: how many there "
      "are, checked against what the rows need; -1: not checked. trees: none, or (tokens, "
      "parents, probs) for each row, of length - frontier nodes (probs may be empty at lenience "
      "1); logit row 1 + j follows node j, accepted nodes are written into the row, and path "
      "names them. Without nodes the row's own tokens are reviewed. distributions, rejections: for "
      "samplers that reject; of each row the number of this review among the row's (reviews with "
      "one number share their noise), whether the distributions of what it leaves are kept for a "
      "better level, and how many leading nodes of its tree are the row's own drafts.");
}

}  // namespace
}  // namespace ce

void bind_accept(py::module_& m) {
  ce::bind_rules(m);
}
