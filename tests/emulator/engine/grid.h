// How the fake runtime and the binding ask the engine to run a grid, and which memory its kernel may touch.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace codegen_fast::emulator {

// A fault of a kernel: what, where, which kernel, block and thread.
struct KernelError : std::runtime_error { using std::runtime_error::runtime_error; };

// Memory that a kernel may touch, under the name that its user knows.
struct Region {
  std::string name;
  uintptr_t begin = 0, end = 0;
  bool writable = false;
  bool early = false;       // readable before dependency_wait(): no kernel writes it
  size_t row_bytes = 0;     // with period: rows of row_bytes every `period` bytes, and nothing between them
  size_t period = 0;
};
using Regions = std::vector<Region>;

// Adds to what kernels launched by this host thread may touch, while it lives.
class MemoryScope {
 public:
  explicit MemoryScope(Regions regions);
  ~MemoryScope();
  MemoryScope(const MemoryScope&) = delete;
  MemoryScope& operator=(const MemoryScope&) = delete;

 private:
  std::shared_ptr<const Regions> before_;
};
std::shared_ptr<const Regions> current_memory();

// Memory that every kernel may touch (cudaMalloc).
void add_allocation(Region region);
void remove_allocation(const void* begin);

struct GridLaunch {
  KernelCall call;
  dim3 blocks, threads;
  size_t shared_bytes;
  std::shared_ptr<const Regions> memory;
};

// Runs every thread of every block, one block after another. Throws KernelError at the first fault; later grids run
// as if nothing had been.
void run_grid(const GridLaunch& launch);

// The order of blocks, warps and lanes, and when asynchronous copies arrive, follow from the seed.
void set_seed(uint64_t seed);

// "decode_product_kernel<f16>": the function at this address, without namespaces and parameters.
std::string kernel_name(const void* function);
// "csrc/cuda/sample.cu:71" for the instruction before this return address, or "" where that cannot be told.
std::string source_line(const void* return_address);
std::string short_path(const std::string& path);

}  // namespace codegen_fast::emulator
