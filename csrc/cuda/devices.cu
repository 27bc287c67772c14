#include "devices.h"

#include <cuda_runtime_api.h>

namespace codegen_fast::cuda {

Devices devices() {
  Devices d;
  int driver = 0, count = 0;
  cudaDriverGetVersion(&driver);
  if (driver == 0) {
    d.why_none = "no NVIDIA driver";
    return d;
  }
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess) {
    cudaGetLastError();  // the error is reported here; later calls start clean
    d.why_none = cudaGetErrorString(error);
    if (driver < CUDART_VERSION)
      d.why_none += " (driver for CUDA " + std::to_string(driver / 1000) + "." + std::to_string(driver % 1000 / 10) +
                    ", this build has the runtime " + std::to_string(CUDART_VERSION / 1000) + "." +
                    std::to_string(CUDART_VERSION % 1000 / 10) + ")";
    return d;
  }
  for (int i = 0; i < count; ++i) {
    cudaDeviceProp p;
    if (cudaGetDeviceProperties(&p, i) != cudaSuccess) continue;
    int clock_khz = 0;
    cudaDeviceGetAttribute(&clock_khz, cudaDevAttrMemoryClockRate, i);
    d.found.push_back({p.name, p.major, p.minor, static_cast<int64_t>(p.totalGlobalMem),
                       2LL * clock_khz * 1000 * (p.memoryBusWidth / 8)});
  }
  if (d.found.empty()) d.why_none = "no GPU";
  return d;
}

}  // namespace codegen_fast::cuda
