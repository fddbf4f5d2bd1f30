// What the binding files share. A binding checks arguments, picks the backend and calls; pointers
// arrive as integers (tensor.data_ptr()), so that torch is not needed to build.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "ce/kernels.h"
#include "ce/thread_pool.h"

namespace ce {

// The CPU backend's state: worker threads and the kernels of one instruction set.
struct CpuContext {
  ThreadPool pool;
  const Kernels& kernels;
};

template <typename T>
T* pointer(std::uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

}  // namespace ce

void bind_accept(pybind11::module_& m);
void bind_drafter(pybind11::module_& m);
void bind_cuda_kernels(pybind11::module_& m);
void bind_draft_loop(pybind11::module_& m);
void bind_drafting(pybind11::module_& m);
void bind_kernels(pybind11::module_& m);
void bind_planner(pybind11::module_& m);
void bind_program(pybind11::module_& m);
void bind_sampling(pybind11::module_& m);
void bind_segment_loop(pybind11::module_& m);
