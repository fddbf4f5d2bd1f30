// The kernels of csrc/cuda as a Python module that runs them on the host, for the tests.
#include <pybind11/pybind11.h>

#include "emulation/cuda_emulation.h"

void bind_cuda_kernels(pybind11::module_& m);

PYBIND11_MODULE(cuda_emulation, m) {
  m.def("set_seed", &ce::emulation::set_seed);
  bind_cuda_kernels(m);
}
