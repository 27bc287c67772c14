// codegen_fast._C: the ops, and what this build and this machine are. Called only by codegen_fast/ops.py.
#include <pybind11/stl.h>

#include "../cpu/bandwidth.h"
#include "../cpu/dispatch.h"
#include "../cpu/huge_pages.h"
#include "../cpu/pool.h"
#ifdef CODEGEN_FAST_HAVE_CUDA
#include "../cuda/devices.h"
#endif
#include "../philox.h"
#include "define.h"
#include "stops.h"
#include "tensors.h"

namespace codegen_fast::bind {
namespace {

namespace py = pybind11;

py::dict build_info() {
  py::dict d;
  d["compiler"] = CODEGEN_FAST_COMPILER;
  d["cuda"] = CODEGEN_FAST_CUDA_BUILD;
  d["cpu_isas"] = cpu::available_isas();
  d["portable_link"] = CODEGEN_FAST_PORTABLE_LINK_BUILD;
  return d;
}

// (list of GPUs, why there is none)
py::tuple cuda_devices() {
  py::list found;
  std::string why_none = std::string("built without CUDA: ") + CODEGEN_FAST_CUDA_BUILD;
#ifdef CODEGEN_FAST_HAVE_CUDA
  const cuda::Devices devices = cuda::devices();
  why_none = devices.why_none;
  for (const cuda::DeviceInfo& i : devices.found) {
    py::dict d;
    d["name"] = i.name;
    d["compute_capability"] = py::make_tuple(i.major, i.minor);
    d["memory_bytes"] = i.memory_bytes;
    d["memory_bytes_per_second"] = i.memory_bytes_per_second;
    found.append(d);
  }
#endif
  return py::make_tuple(found, why_none);
}

// Why the kernels of this build cannot run on GPU number `device`; empty where they can. Wakes the GPU up.
std::string why_unusable([[maybe_unused]] int device) {
#ifdef CODEGEN_FAST_HAVE_CUDA
  return cuda::why_unusable(device);
#else
  return std::string("built without CUDA: ") + CODEGEN_FAST_CUDA_BUILD;
#endif
}

void bind_machine(py::module_& m) {
  m.def("build_info", &build_info);
  m.def("cuda_devices", &cuda_devices);
  m.def("why_unusable", &why_unusable, py::arg("device"));
  m.def("cpu_isa", [] { return cpu::kernels().name; });
  m.def("force_isa", &cpu::force_isa, py::arg("name"));
  m.def("set_num_threads", &cpu::set_num_threads, py::arg("n"), py::call_guard<py::gil_scoped_release>());
  m.def("num_threads", &cpu::num_threads);
  m.def("prefer_huge_pages", [](py::handle data) {
    const TensorView bytes = view(data, "data");
    cpu::prefer_huge_pages(bytes.data, bytes.numel() * dtype_bytes(bytes.dtype));
  }, py::arg("data"));
  m.def("read_bandwidth", &cpu::read_bandwidth, py::arg("bytes"), py::arg("seconds"),
        py::call_guard<py::gil_scoped_release>());
  m.def("philox_uniform", &philox_uniform, py::arg("seed"), py::arg("sample_index"), py::arg("position"));
}

}  // namespace
}  // namespace codegen_fast::bind

PYBIND11_MODULE(_C, m) {
  using namespace codegen_fast;
  m.doc() = "Kernels of codegen_fast. Use codegen_fast.ops.";
#ifdef CODEGEN_FAST_HAVE_CUDA
  bind::define(m, {&bind::kCpuBackend, &bind::kCudaBackend});
#else
  bind::define(m, {&bind::kCpuBackend, nullptr});
#endif
  bind::bind_machine(m);
  bind::bind_stops(m);
}
