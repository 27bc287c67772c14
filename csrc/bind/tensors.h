// torch tensors as views, without torch: through the exchange API that torch.Tensor hands out in a capsule.
#pragma once

#include <pybind11/pybind11.h>

#include "../view.h"

namespace codegen_fast::bind {

namespace py = pybind11;

// Remembers torch's tensor types and its exchange API. Throws ImportError for an API this binding cannot use.
void bind_torch(py::type tensor, py::type parameter, py::object capsule);

// A view of a torch tensor for as long as the object lives and keeps its memory (no resize_, set_ or .data = ...). Throws TypeError or ValueError that
// begins with `name` for anything the ops must not see.
TensorView view(py::handle object, const char* name);

// torch's current stream of a CUDA device (a cudaStream_t); null for the CPU, which has none. Needs no GIL.
void* current_stream(Device device);

}  // namespace codegen_fast::bind
