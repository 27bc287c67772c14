#include "devices.h"

#include "launch.h"

namespace codegen_fast::cuda {
namespace {

// Never launched: compiled as all kernels are, it tells whether a GPU can run them.
__global__ void probe() {}

}  // namespace

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
    if (error == cudaErrorInsufficientDriver)
      d.why_none += " (driver for CUDA " + std::to_string(driver / 1000) + "." + std::to_string(driver % 1000 / 10) +
                    ", this build has the runtime " + std::to_string(CUDART_VERSION / 1000) + "." +
                    std::to_string(CUDART_VERSION % 1000 / 10) + ")";
    return d;
  }
  for (int i = 0; i < count; ++i) {
    cudaDeviceProp p;
    if (cudaGetDeviceProperties(&p, i) != cudaSuccess) {
      cudaGetLastError();
      d.found.push_back({"a GPU that does not answer", 0, 0, 0, 0});  // it keeps its number
      continue;
    }
    int clock_khz = 0;
    cudaDeviceGetAttribute(&clock_khz, cudaDevAttrMemoryClockRate, i);
    d.found.push_back({p.name, p.major, p.minor, static_cast<int64_t>(p.totalGlobalMem),
                       2LL * clock_khz * 1000 * (p.memoryBusWidth / 8)});
  }
  if (d.found.empty()) d.why_none = "no GPU";
  return d;
}

std::string why_unusable(int device) {
  cudaError_t error = cudaSuccess;
  try {
    const StreamScope scope(device, nullptr);
    cudaFuncAttributes attributes;
    error = cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(probe));
  } catch (const DeviceError& e) {
    return e.what();
  }
  if (error == cudaSuccess) return "";
  cudaGetLastError();  // reported here
  if (error != cudaErrorNoKernelImageForDevice && error != cudaErrorInvalidDeviceFunction)
    return cudaGetErrorString(error);
  int major = 0, minor = 0;
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
  return "this build has no kernels for compute capability " + std::to_string(major) + "." + std::to_string(minor) +
         "; install it again on this machine";
}

}  // namespace codegen_fast::cuda
