#include "bindings/bindings.h"

#if defined(CE_HAVE_CUDA)
#include "ce/cuda.h"
#endif

namespace py = pybind11;

namespace {

py::dict build_info() {
  py::dict info;
  py::list cpu;
  for (const char* name : {"amx", "avx512bf16", "avx512", "avx2", "portable"})
    if (ce::kernels_for(name) != nullptr) cpu.append(name);
  info["cpu_supported"] = cpu;
  info["cpu_default"] = ce::default_kernels().name;
  info["compiler"] = __VERSION__;
#if defined(CE_HAVE_CUDA)
  info["cuda_compiled"] = ce::cuda::compiled_version();
  py::list devices;
  for (const auto& device : ce::cuda::devices()) {
    py::dict entry;
    entry["name"] = device.name;
    entry["capability"] = py::make_tuple(device.major, device.minor);
    entry["memory_bytes"] = device.memory_bytes;
    devices.append(entry);
  }
  info["cuda_devices"] = devices;
#else
  info["cuda_compiled"] = py::none();
  info["cuda_devices"] = py::list();
#endif
  return info;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Native operations of cascade_engine; use cascade_engine.ops.";
  m.def("build_info", &build_info, "What was compiled and what this machine can run.");
  bind_kernels(m);
  bind_program(m);
  bind_sampling(m);
  bind_accept(m);
  bind_drafting(m);
  bind_drafter(m);
  bind_draft_loop(m);
  bind_segment_loop(m);
  bind_planner(m);
#if defined(CE_HAVE_CUDA)
  auto cuda = m.def_submodule("cuda", "Launchers of the CUDA kernels; use cascade_engine.ops.");
  bind_cuda_kernels(cuda);
#endif
}
