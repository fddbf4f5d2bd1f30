// Recording and running a forward pass.
#include "ce/program.h"

#include "bindings/bindings.h"
#include "ce/check.h"

namespace py = pybind11;

void bind_program(py::module_& m) {
  using namespace ce;
  using Address = std::uintptr_t;

  py::class_<CacheLayer>(m, "CacheLayer",
                         "One layer's keys and values in the paged cache; borrows its memory.")
      .def(py::init([](Address keys, Address values, DType dtype, int kv_heads, int head_dim) {
             CE_CHECK(kv_heads > 0 && head_dim > 0,
                      "a cache layer needs kv_heads > 0 and head_dim > 0, got ", kv_heads, " and ",
                      head_dim);
             CE_CHECK(dtype != DType::i8, "a cache layer is f32 or bf16, not i8");
             return CacheLayer{pointer<void>(keys), pointer<void>(values), dtype, kv_heads,
                               head_dim};
           }),
           py::arg("keys"), py::arg("values"), py::arg("dtype"), py::arg("kv_heads"),
           py::arg("head_dim"))
      .def_readonly("kv_heads", &CacheLayer::kv_heads)
      .def_readonly("head_dim", &CacheLayer::head_dim);

  py::class_<Program>(m, "Program", "A forward pass recorded once and run many times.")
      .def(py::init([](CpuContext& c) { return std::make_unique<Program>(c.pool, c.kernels); }),
           py::arg("context"), py::keep_alive<1, 2>())
      .def("buffer", &Program::buffer, py::arg("dtype"), py::arg("cols"),
           py::arg("per_logit") = false)
      .def("embedding", &Program::embedding, py::arg("out"), py::arg("table"), py::arg("packed"))
      .def(
          "rms_norm",
          [](Program& p, int out, int x, Address weight, float eps) {
            p.rms_norm(out, x, pointer<float>(weight), eps);
          },
          py::arg("out"), py::arg("x"), py::arg("weight"), py::arg("eps"))
      .def(
          "linear",
          [](Program& p, int y, int x, const PackedMatrix& w, Address bias, bool accumulate) {
            p.linear(y, x, w, pointer<float>(bias), accumulate);
          },
          py::arg("y"), py::arg("x"), py::arg("w"), py::arg("bias") = 0,
          py::arg("accumulate") = false)
      .def(
          "rope_angles",
          [](Program& p, Address inv_freq, int head_dim) {
            p.rope_angles(pointer<float>(inv_freq), head_dim);
          },
          py::arg("inv_freq"), py::arg("head_dim"))
      .def("rope_store", &Program::rope_store, py::arg("qkv"), py::arg("heads"), py::arg("cache"))
      .def(
          "attention",
          [](Program& p, int out, int queries, int heads, float scale, const CacheLayer& cache,
             bool over_source, Address bias, int bias_reach) {
            p.attention(out, queries, heads, scale, cache, over_source,
                        {pointer<float>(bias), bias_reach});
          },
          py::arg("out"), py::arg("queries"), py::arg("heads"), py::arg("scale"), py::arg("cache"),
          py::arg("over_source") = false, py::arg("bias") = 0, py::arg("bias_reach") = 0)
      .def("swiglu", &Program::swiglu, py::arg("out"), py::arg("gate_up"))
      .def("geglu", &Program::geglu, py::arg("out"), py::arg("gate_up"))
      .def("relu", &Program::relu, py::arg("out"), py::arg("x"))
      .def("select_logit_rows", &Program::select_logit_rows, py::arg("out"), py::arg("x"))
      .def(
          "bind_rows",
          [](Program& p, Address tokens, int64_t stride, int64_t rows) {
            p.bind_rows(pointer<int32_t>(tokens), stride, rows);
          },
          py::arg("tokens"), py::arg("stride"), py::arg("rows"))
      .def(
          "bind_block_tables",
          [](Program& p, Address tables, int64_t stride, int64_t pages) {
            p.bind_block_tables(pointer<int32_t>(tables), stride, pages);
          },
          py::arg("tables"), py::arg("stride"), py::arg("pages"))
      .def(
          "bind_sources",
          [](Program& p, Address sources) { p.bind_sources(pointer<int32_t>(sources)); },
          py::arg("sources"), "int32 [rows]: tokens at each row's beginning that an encoder reads.")
      .def(
          "run",
          [](Program& p, const std::vector<int>& rows, const std::vector<int>& starts,
             const std::vector<int>& counts, const std::vector<int>& logits, bool left_padded,
             std::vector<std::pair<std::vector<int32_t>, std::vector<int32_t>>> trees) {
            std::vector<FedTree> drafts;
            for (auto& [tokens, parents] : trees)
              drafts.push_back({std::move(tokens), std::move(parents)});
            p.run(rows, starts, counts, logits, left_padded, drafts);
          },
          py::arg("rows"), py::arg("starts"), py::arg("counts"), py::arg("logits"),
          py::arg("left_padded") = false,
          py::arg("trees") = std::vector<std::pair<std::vector<int32_t>, std::vector<int32_t>>>(),
          py::call_guard<py::gil_scoped_release>(),
          "One pass: rows[i] feeds slots starts[i]..starts[i]+counts[i]-1 and wants logits for the "
          "last logits[i] of them. trees: none, or (tokens, parents) for each row, whose nodes "
          "take "
          "the last slots; parent -1 is the token before the tree.")
      .def("commit", &Program::commit, py::arg("row"), py::arg("base"), py::arg("path"),
           py::call_guard<py::gil_scoped_release>(),
           "Moves keys and values from slots base + path[i] to base + i in all layers.")
      .def(
          "data", [](Program& p, int id) { return reinterpret_cast<Address>(p.data_f32(id)); },
          py::arg("buffer"), "Address of a buffer, valid until the next run.")
      .def("rows", &Program::rows, py::arg("buffer"), "Rows of a buffer in the last run.")
      .def("cols", &Program::cols, py::arg("buffer"));
}
