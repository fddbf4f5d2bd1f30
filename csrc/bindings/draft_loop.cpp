// A model that drafts on its own.
#include "ce/draft_loop.h"

#include <tuple>

#include "bindings/bindings.h"
#include "bindings/rows.h"

namespace py = pybind11;

namespace ce {
namespace {

std::vector<int> draft(CpuContext& c, Program& program, int logits, int64_t vocab, Address tokens,
                       int64_t token_stride, Address probs, const std::vector<int>& rows,
                       const std::vector<int>& cached, const std::vector<int>& lengths,
                       const std::vector<int>& counts, const Samplers& samplers, bool left_padded,
                       DraftDistributions* distributions, const std::vector<uint32_t>& reviews,
                       const std::vector<double>& min_confidences) {
  check_lengths(rows.size(), {{"cached", cached.size()},
                              {"lengths", lengths.size()},
                              {"counts", counts.size()},
                              {"samplers", samplers.size()},
                              {"reviews", reviews.empty() ? rows.size() : reviews.size()},
                              {"min_confidences",
                               min_confidences.empty() ? rows.size() : min_confidences.size()}});
  check_samplers(samplers);
  std::vector<DraftRow> drafts;
  for (size_t i = 0; i < rows.size(); ++i)
    drafts.push_back({rows[i],
                      cached[i],
                      lengths[i],
                      counts[i],
                      samplers[i].get(),
                      {reviews.empty() ? 0 : reviews[i], true, 0},
                      min_confidences.empty() ? 0.0 : min_confidences[i]});
  const ReviewArgs review{nullptr,
                          0,
                          -1,
                          vocab,
                          pointer<int32_t>(tokens),
                          token_stride,
                          pointer<float>(probs),
                          1.0f,
                          distributions};
  return draft_tokens({program, logits, left_padded, review}, drafts, c.kernels, c.pool);
}

}  // namespace
}  // namespace ce

void bind_draft_loop(py::module_& m) {
  m.def("draft", &ce::draft, py::arg("context"), py::arg("program"), py::arg("logits"),
        py::arg("vocab"), py::arg("tokens"), py::arg("token_stride"), py::arg("probs"),
        py::arg("rows"), py::arg("cached"), py::arg("lengths"), py::arg("counts"),
        py::arg("samplers"), py::arg("left_padded") = false, py::arg("distributions") = py::none(),
        py::arg("reviews") = std::vector<uint32_t>(),
        py::arg("min_confidences") = std::vector<double>(),
        py::call_guard<py::gil_scoped_release>(),
        "Appends up to counts[i] tokens to rows[i], whose lengths[i] tokens are cached up to "
        "cached[i]: those that as many calls of the program and of `accept` would. `logits` is the "
        "program's buffer; its block tables must have room for lengths + counts - 1. probs as in "
        "`accept`. distributions, reviews: for samplers that reject; the number of the first of "
        "these reviews among the row's. min_confidences: row i stops behind the token with which "
        "the product of its tokens' probabilities falls below min_confidences[i] in 0..1. Returns "
        "the tokens that each row has more. Raises ValueError if the first pass allows no token.");
}
