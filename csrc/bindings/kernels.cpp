// The CPU context, weight packing, and benchmarks' bandwidth ceiling.
#include "bindings/bindings.h"
#include "ce/check.h"
#include "ce/coding.h"

namespace py = pybind11;

namespace ce {
namespace {

const Kernels& named_kernels(const std::string& name) {
  if (name.empty()) return default_kernels();
  const Kernels* found = kernels_for(name.c_str());
  CE_CHECK(found != nullptr, "instruction set '", name,
           "' is unknown or not supported by this machine");
  return *found;
}

}  // namespace
}  // namespace ce

void bind_kernels(py::module_& m) {
  using namespace ce;
  py::enum_<DType>(m, "DType")
      .value("f32", DType::f32)
      .value("bf16", DType::bf16)
      .value("i8", DType::i8)
      .value("coded", DType::coded);
  py::enum_<SourceDType>(m, "SourceDType")
      .value("f32", SourceDType::f32)
      .value("bf16", SourceDType::bf16)
      .value("f16", SourceDType::f16);
  m.attr("PAGE_TOKENS") = kPageTokens;
  m.attr("ATTENTION_CHUNK") = kAttentionChunk;
  m.attr("BLOCK_COLUMNS") = kBlockColumns;
  m.attr("MAX_CODED_COLUMNS") = kMaxCodedColumns;

  py::class_<CpuContext>(m, "CpuContext", "Worker threads and the kernels of one instruction set.")
      .def(py::init([](int threads, const std::string& isa) {
             return new CpuContext{ThreadPool(threads), named_kernels(isa)};
           }),
           py::arg("threads"), py::arg("isa") = "")
      .def_property_readonly("threads", [](const CpuContext& c) { return c.pool.size(); })
      .def_property_readonly("isa", [](const CpuContext& c) { return c.kernels.name; });

  py::class_<PackedMatrix>(m, "PackedMatrix",
                           "A weight [n, k] in the layout `linear` streams; borrows its memory.")
      .def(py::init([](std::uintptr_t data, DType dtype, int64_t n, int64_t k,
                       std::uintptr_t scales) {
             CE_CHECK(n > 0 && k > 0, "a packed matrix needs n > 0 and k > 0, got ", n, " x ", k);
             CE_CHECK(dtype != DType::coded, "a coded matrix is what Coding.write returns");
             CE_CHECK((dtype == DType::i8) == (scales != 0),
                      "a packed matrix has scales when it is i8, and only then");
             return PackedMatrix{pointer<void>(data), dtype, n, k, pointer<float>(scales)};
           }),
           py::arg("data"), py::arg("dtype"), py::arg("n"), py::arg("k"), py::arg("scales") = 0)
      .def_readonly("n", &PackedMatrix::n)
      .def_readonly("k", &PackedMatrix::k)
      .def_readonly("dtype", &PackedMatrix::dtype);
  m.def("packed_elements", &packed_elements, py::arg("n"), py::arg("k"), py::arg("dtype"),
        "Elements of a packed [n, k] matrix, padding included; the buffer must start as zeros.");
  m.def(
      "pack_rows",
      [](CpuContext& c, std::uintptr_t source, SourceDType dtype, int64_t rows,
         const PackedMatrix& target, int64_t first_row) {
        pack_rows(pointer<void>(source), dtype, rows, target, first_row, c.pool);
      },
      py::arg("context"), py::arg("source"), py::arg("source_dtype"), py::arg("rows"),
      py::arg("target"), py::arg("first_row"), py::call_guard<py::gil_scoped_release>(),
      "Copies rows of a row-major [rows, k] matrix into a packed matrix from first_row on.");
  py::class_<Coding>(m, "Coding",
                     "A packed bf16 matrix without loss in 12 bits an element. Borrows the matrix "
                     "until it is written.")
      .def(py::init([](CpuContext& c, const PackedMatrix& plain) {
             const py::gil_scoped_release release;
             return std::make_unique<Coding>(plain, c.pool);
           }),
           py::arg("context"), py::arg("plain"))
      .def_property_readonly("num_bytes", &Coding::num_bytes)
      .def_property_readonly("exceptions", &Coding::exceptions,
                             "Elements whose high byte their block's table lacks.")
      .def(
          "write",
          [](const Coding& coding, CpuContext& c, std::uintptr_t memory) {
            return coding.write(pointer<void>(memory), c.pool);
          },
          py::arg("context"), py::arg("memory"), py::call_guard<py::gil_scoped_release>(),
          "Writes num_bytes to 64-byte aligned memory, which the returned matrix borrows.");
  m.def(
      "decode",
      [](const PackedMatrix& coded, std::uintptr_t memory) {
        decode(coded, pointer<bf16>(memory));
      },
      py::arg("coded"), py::arg("memory"), "The packed bf16 matrix of a coded one.");
  m.def(
      "stream",
      [](CpuContext& c, std::uintptr_t data, int64_t count) {
        return c.kernels.stream({pointer<float>(data), count}, c.pool);
      },
      py::arg("context"), py::arg("data"), py::arg("count"),
      py::call_guard<py::gil_scoped_release>(), "Sums float32 memory at full read bandwidth.");
}
