// What every extension built from these sources offers to Python, over the backends that it has.
#pragma once

#include <pybind11/pybind11.h>

#include "backend.h"

namespace codegen_fast::bind {

// Binds operands, ops and sizes, and the translation of errors. Once a module.
void define(pybind11::module_& m, const Backends& backends);

}  // namespace codegen_fast::bind
