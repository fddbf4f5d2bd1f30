// A model that drafts with statistics below it.
#include "ce/segment_loop.h"

#include <tuple>

#include "bindings/bindings.h"
#include "bindings/rows.h"
#include "bindings/tables.h"

namespace py = pybind11;

namespace ce {
namespace {

// Row, cached, length, tokens, most, width, least, sampler, number of the first review, address and
// length of a corpus, least confidence.
using Row = std::tuple<int, int, int, int, int, int, int, std::shared_ptr<Sampler>, uint32_t,
                       Address, int64_t, double>;
using Drafted = std::tuple<std::vector<int32_t>, std::vector<int32_t>, int32_t>;
using Passes = std::vector<std::tuple<int64_t, int64_t, int64_t, double>>;

Passes passes(const std::vector<SegmentPass>& list) {
  Passes out;
  for (const SegmentPass& p : list) out.emplace_back(p.passes, p.rows, p.tokens, p.seconds);
  return out;
}

std::tuple<std::vector<Drafted>, Passes, Passes> segments(
    CpuContext& c, Program& program, int logits, int64_t vocab, Address tokens,
    int64_t token_stride, Address probs, const std::vector<Row>& rows, float lenience,
    int64_t max_match, const MappedTable* table, bool left_padded,
    DraftDistributions* distributions) {
  CE_CHECK(max_match >= 1, "max_match must be >= 1, got ", max_match);
  std::vector<SegmentRow> asked;
  for (const auto& [row, cached, length, wanted, most, width, least, sampler, reviews, corpus,
                    corpus_length, min_confidence] : rows) {
    CE_CHECK(sampler != nullptr, "rows[", asked.size(), "] has no sampler");
    CE_CHECK(corpus_length >= 0 && (corpus != 0 || corpus_length == 0), "rows[", asked.size(),
             "] has ", corpus_length, " tokens of a corpus: must be >= 0, and 0 without one");
    asked.push_back({row,
                     cached,
                     length,
                     wanted,
                     most,
                     width,
                     least,
                     sampler.get(),
                     reviews,
                     {pointer<int32_t>(corpus), corpus_length},
                     min_confidence});
  }
  const ReviewArgs review{nullptr,
                          0,
                          -1,
                          vocab,
                          pointer<int32_t>(tokens),
                          token_stride,
                          pointer<float>(probs),
                          lenience,
                          distributions};
  const Statistics statistics{c.kernels, max_match,
                              table == nullptr ? nullptr : table->table.get()};
  DraftedSegments found =
      draft_segments({program, logits, left_padded, review, statistics}, asked, c.kernels, c.pool);
  std::vector<Drafted> out;
  for (DraftedSegment& r : found.rows)
    out.emplace_back(std::move(r.proposed), std::move(r.accepted), r.asked);
  return {std::move(out), passes(found.proposals), passes(found.reviews)};
}

}  // namespace
}  // namespace ce

void bind_segment_loop(py::module_& m) {
  m.def(
      "draft_segments", &ce::segments, py::arg("context"), py::arg("program"), py::arg("logits"),
      py::arg("vocab"), py::arg("tokens"), py::arg("token_stride"), py::arg("probs"),
      py::arg("rows"), py::arg("lenience"), py::arg("max_match"), py::arg("table") = py::none(),
      py::arg("left_padded") = false, py::arg("distributions") = py::none(),
      py::call_guard<py::gil_scoped_release>(),
      "Statistics propose and the program's model reviews, in turn, until each row's segment is "
      "long enough: what calls of `propose`, of the program and of `accept` would leave. rows: "
      "(row, cached tokens, length, tokens of the segment that suffice, tokens it may have at "
      "most, tokens asked of the statistics at a time, drafts of theirs that are reviewed "
      "without asking again, sampler, number of the first review where the sampler rejects, "
      "address and length of a corpus, and in 0..1 the product of the tokens' probabilities "
      "below which the segment ends). `logits` is the program's buffer; its block tables must "
      "have room for the most that can be fed. Returns for each row (drafts that each review saw, "
      "those that it accepted, times that the statistics were asked), then what was proposed and "
      "the reviews, one after the other as (passes, rows in them, tokens, seconds). Raises "
      "ValueError if the first review allows no token; a later "
      "one only ends the segments.");
}
