// Kernels of the emulator's own tests: each takes buffers and numbers, and is called from Python by its name.
#pragma once

#include "../../../csrc/cuda/intrinsics.h"
#include "../../../csrc/cuda/launch.h"

namespace codegen_fast::cuda {

struct Arguments {
  void* buffer[6];
  int number[6];
  template <class T> T* as(int i) const { return static_cast<T*>(buffer[i]); }
};

struct NamedKernel {
  const char* name;
  void (*kernel)(Arguments);
};
extern const NamedKernel kKernels[];  // the last has no name

}  // namespace codegen_fast::cuda
