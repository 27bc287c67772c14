// The binding of csrc/stops.
#pragma once

#include <pybind11/pybind11.h>

namespace codegen_fast::bind {

void bind_stops(pybind11::module_& m);

}  // namespace codegen_fast::bind
