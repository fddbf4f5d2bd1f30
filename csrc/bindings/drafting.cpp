// Drafting by statistics: Max-Gram and n-gram tables.
#include <memory>
#include <string>
#include <vector>

#include "bindings/bindings.h"
#include "bindings/tables.h"
#include "ce/check.h"
#include "ce/parallel.h"
#include "ce/propose.h"

namespace py = pybind11;

namespace ce {
namespace {

using Address = std::uintptr_t;
using Ints = std::vector<int64_t>;

template <typename T>
const T* array_of(MappedTable& owner, const py::dict& arrays, const std::string& name,
                  int64_t item_bytes, int64_t* size) {
  CE_CHECK(arrays.contains(name.c_str()), "the table has no array '", name, "'");
  owner.buffers.push_back(py::cast<py::buffer>(arrays[name.c_str()]).request());
  owner.names.push_back(name);
  const py::buffer_info& info = owner.buffers.back();
  const int64_t bytes = static_cast<int64_t>(info.size) * static_cast<int64_t>(info.itemsize);
  CE_CHECK(bytes % item_bytes == 0, "array '", name, "' has ", bytes,
           " bytes, no multiple of its element size ", item_bytes);
  CE_CHECK(reinterpret_cast<Address>(info.ptr) % static_cast<Address>(item_bytes) == 0, "array '",
           name, "' does not start at a multiple of its element size ", item_bytes);
  *size = bytes / item_bytes;
  return static_cast<const T*>(info.ptr);
}

std::unique_ptr<MappedTable> map_table(int order, int64_t vocab, int block_shift,
                                       const py::dict& arrays, std::vector<float> doubts) {
  CE_CHECK(order >= 1 && order <= kMaxOrder, "order must be in 1..", kMaxOrder, ", got ", order);
  auto owner = std::make_unique<MappedTable>();
  const int64_t token_bytes = vocab > 65536 ? 4 : 2;
  NgramOrder orders[kMaxOrder];
  for (int n = 1; n <= order; ++n) {
    NgramOrder& o = orders[n - 1];
    const std::string prefix = "order" + std::to_string(n) + ".";
    const auto runs = [&](const std::string& name, NgramRuns& r) {
      r.base = array_of<uint32_t>(*owner, arrays, prefix + name + "_base", 4, &r.base_size);
      r.delta = array_of<uint16_t>(*owner, arrays, prefix + name + "_delta", 2, &r.delta_size);
    };
    o.total = array_of<uint8_t>(*owner, arrays, prefix + "total", 1, &o.total_size);
    o.contexts = o.total_size;
    if (n > 1)
      o.token.data = array_of<char>(*owner, arrays, prefix + "token", token_bytes, &o.token.size);
    runs("successors", o.successors);
    if (n < order) runs("children", o.children);
    o.successor.data =
        array_of<char>(*owner, arrays, prefix + "successor", token_bytes, &o.successor.size);
    o.count = array_of<uint8_t>(*owner, arrays, prefix + "count", 1, &o.count_size);
  }
  CE_CHECK(doubts.empty() || doubts.size() == static_cast<size_t>(4 * order), "doubts must have ",
           4 * order, " numbers for order ", order, ", got ", doubts.size());
  for (size_t i = 0; i < doubts.size(); ++i)
    CE_CHECK(doubts[i] > 0.0f && doubts[i] < 1e30f, "doubts[", i, "] must be > 0, got ", doubts[i]);
  owner->doubts = std::move(doubts);
  owner->block_shift = block_shift;
  owner->table = std::make_unique<NgramTable>(order, vocab, block_shift, orders);
  return owner;
}

py::dict table_arrays(const MappedTable& t) {
  py::dict out;
  for (size_t i = 0; i < t.buffers.size(); ++i) {
    const py::buffer_info& info = t.buffers[i];
    out[t.names[i].c_str()] = py::bytes(static_cast<const char*>(info.ptr),
                                        static_cast<size_t>(info.size * info.itemsize));
  }
  return out;
}

std::vector<float> table_counts(const MappedTable& t) {
  std::vector<float> out;
  for (int q = 0; q < 256; ++q) out.push_back(t.table->counts()[q]);
  return out;
}

py::list table_lookup(const MappedTable& t, const std::vector<int32_t>& context) {
  NgramLayer layers[kMaxOrder];
  const int count = t.table->layers(context.data() + context.size(),
                                    static_cast<int64_t>(context.size()), layers);
  py::list out;
  for (int l = 0; l < count; ++l) {
    py::list successors;
    for (int64_t i = layers[l].first; i < layers[l].first + layers[l].size; ++i)
      successors.append(py::make_tuple(t.table->successor(layers[l].order, i),
                                       t.table->count(layers[l].order, i)));
    out.append(py::make_tuple(layers[l].order, layers[l].total, successors));
  }
  return out;
}

Ints propose_rows(CpuContext& c, Address tokens, int64_t token_stride, Address probs,
                  const Ints& rows, const Ints& lengths, const Ints& counts, int64_t max_match,
                  const MappedTable* table, const std::vector<Address>& corpora,
                  const Ints& corpus_lengths) {
  CE_CHECK(lengths.size() == rows.size() && counts.size() == rows.size(),
           "lengths and counts have ", lengths.size(), " and ", counts.size(), " entries for ",
           rows.size(), " rows");
  CE_CHECK(
      corpora.size() == corpus_lengths.size() && (corpora.empty() || corpora.size() == rows.size()),
      "corpora and corpus_lengths have ", corpora.size(), " and ", corpus_lengths.size(),
      " entries for ", rows.size(), " rows; leave both out or give one for each row");
  CE_CHECK(max_match >= 1, "max_match must be >= 1, got ", max_match);
  for (size_t i = 0; i < rows.size(); ++i) {
    CE_CHECK(rows[i] >= 0, "rows[", i, "] must be >= 0, got ", rows[i]);
    CE_CHECK(lengths[i] >= 0 && counts[i] >= 0 && counts[i] <= token_stride - lengths[i], "counts[",
             i, "] = ", counts[i], " tokens do not fit behind lengths[", i, "] = ", lengths[i],
             " in rows of ", token_stride);
    if (!corpora.empty())
      CE_CHECK(corpus_lengths[i] >= 0 && (corpora[i] != 0 || corpus_lengths[i] == 0),
               "corpus_lengths[", i, "] = ", corpus_lengths[i],
               " must be >= 0, and 0 where there is no corpus");
  }
  const Statistics statistics{c.kernels, max_match,
                              table == nullptr ? nullptr : table->table.get()};
  Ints out(rows.size());
  for_each_item(c.pool, static_cast<int64_t>(rows.size()), [&](int64_t i) {
    const size_t r = static_cast<size_t>(i);
    int32_t* row = pointer<int32_t>(tokens) + rows[r] * token_stride;
    Corpus corpus;
    if (!corpora.empty()) corpus = {pointer<int32_t>(corpora[r]), corpus_lengths[r]};
    float* row_probs = probs == 0 ? nullptr : pointer<float>(probs) + rows[r] * token_stride;
    out[r] = propose(statistics, row, row_probs, lengths[r], counts[r], corpus);
  });
  return out;
}

}  // namespace
}  // namespace ce

void bind_drafting(py::module_& m) {
  using namespace ce;
  py::class_<MappedTable>(m, "NgramTable",
                          "An n-gram table over the arrays of a table file; keeps them alive.")
      .def(py::init(&map_table), py::arg("order"), py::arg("vocab_size"), py::arg("block_shift"),
           py::arg("arrays"), py::arg("doubts") = std::vector<float>(),
           "arrays: name -> buffer, as csrc/include/ce/ngram.h describes and "
           "cascade_engine.tables writes. doubts: float[2][2][order] for the statistical drafter "
           "(trees and chains; several successors or one), none: the built-in ones. Everything is "
           "checked; ValueError says what is wrong.")
      .def_readonly("doubts", &MappedTable::doubts)
      .def_property_readonly("order", [](const MappedTable& t) { return t.table->order(); })
      .def_property_readonly("vocab_size", [](const MappedTable& t) { return t.table->vocab(); })
      .def_readonly("block_shift", &MappedTable::block_shift)
      .def("arrays", &table_arrays, "Name -> a copy of the array's bytes.")
      .def_property_readonly("counts", &table_counts,
                             "float[256]: what a stored logarithmic count stands for.")
      .def(
          "contexts", [](const MappedTable& t, int n) { return t.table->contexts(n); },
          py::arg("order"), "Number of contexts of `order` tokens.")
      .def(
          "successors", [](const MappedTable& t, int n) { return t.table->successors(n); },
          py::arg("order"), "Number of successors over all contexts of `order` tokens.")
      .def("lookup", &table_lookup, py::arg("context"),
           "[(order, total, [(token, count), ...]), ...], shortest context first.");
  m.def("propose", &propose_rows, py::arg("context"), py::arg("tokens"), py::arg("token_stride"),
        py::arg("probs"), py::arg("rows"), py::arg("lengths"), py::arg("counts"),
        py::arg("max_match") = kMaxMatch, py::arg("table") = nullptr,
        py::arg("corpora") = std::vector<Address>(), py::arg("corpus_lengths") = Ints(),
        py::call_guard<py::gil_scoped_release>(),
        "Drafts up to counts[i] tokens behind the lengths[i] tokens of rows[i]: Max-Gram (the "
        "longest suffix, up to max_match tokens, that occurs earlier in the row or in its corpus; "
        "the corpus wins at equal length), then the most likely successors of the table. Writes "
        "tokens and probs = 1 (probs may be 0: none); returns how many for each row. corpora: "
        "addresses of int32 tokens, 0 for none; a corpus that starts with the prompt's last tokens "
        "is found from the first token on.");
}
