// How every kernel is launched: on the stream of the calling thread's StreamScope, through cudaLaunchKernelEx.
#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>
#include <utility>

namespace codegen_fast::cuda {

// A CUDA call that failed; the binding makes it a RuntimeError.
struct DeviceError : std::runtime_error { using std::runtime_error::runtime_error; };

// Throws DeviceError with what was being done, unless the call succeeded.
void check_call(cudaError_t error, const char* doing);

// What kernels are configured by, of the current device. Asked once a device.
struct DeviceLimits {
  int multiprocessors;
  int shared_bytes_per_block;  // that a block may have after asking for it
  bool dependent_launch;       // sm_90 and later
};
const DeviceLimits& device_limits();

// While it lives, ops of this thread run on this device and stream. With `chained`, kernels may start before the one
// before them has finished (programmatic dependent launch, see dependency_wait()): only for sequences of this backend's
// own ops that begin with embed(), which waits for everything before it, and end with lm_head() or advance().
class StreamScope {
 public:
  StreamScope(int device, cudaStream_t stream, bool chained = false);
  ~StreamScope();
  StreamScope(const StreamScope&) = delete;
  StreamScope& operator=(const StreamScope&) = delete;

  static cudaStream_t stream();
  static bool chained();

 private:
  int device_before_;
  cudaStream_t stream_before_;
  bool chained_before_;
};

// Lets a kernel have all the shared memory that a block may have on the current device, once: the limit belongs to the
// kernel and not to a launch, and threads launch one kernel with several sizes. Also asks that multiprocessors keep
// their memory divided for it, so that a block of the next kernel finds room beside the last ones of this.
void prepare_kernel(const void* kernel, const char* name);

struct Grid {
  dim3 blocks;
  int threads;             // a multiple of 32
  size_t shared_bytes = 0;
  bool depends = true;     // false: waits for all work before it, also where launches are chained
};

template <class... Parameters, class... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), const Grid& grid, Arguments&&... arguments) {
  if (grid.blocks.x == 0 || grid.blocks.y == 0 || grid.blocks.z == 0) return;
  prepare_kernel(reinterpret_cast<const void*>(kernel), name);
  cudaLaunchAttribute attribute;
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = grid.blocks;
  config.blockDim = dim3(grid.threads, 1, 1);
  config.dynamicSmemBytes = grid.shared_bytes;
  config.stream = StreamScope::stream();
  config.attrs = &attribute;
  config.numAttrs = grid.depends && StreamScope::chained() && device_limits().dependent_launch ? 1 : 0;
  check_call(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(std::forward<Arguments>(arguments))...), name);
}

}  // namespace codegen_fast::cuda
