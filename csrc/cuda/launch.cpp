#include "launch.h"

#include <array>
#include <mutex>
#include <optional>
#include <set>
#include <utility>

namespace codegen_fast::cuda {
namespace {

thread_local cudaStream_t t_stream = nullptr;
thread_local bool t_chained = false;

constexpr int kMaxDevices = 64;

// Whether this process uses the device already. To choose it with cudaSetDevice() would begin to, and take a few
// hundred megabytes of its memory.
bool is_in_use(int device) {
  using GetState = int (*)(int device, unsigned* flags, int* active);  // cuDevicePrimaryCtxGetState
  static const GetState get_state = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found;
    if (cudaGetDriverEntryPointByVersion("cuDevicePrimaryCtxGetState", &function, 12000, cudaEnableDefault, &found) !=
        cudaSuccess) {
      cudaGetLastError();
      function = nullptr;
    }
    return reinterpret_cast<GetState>(function);
  }();
  unsigned flags = 0;
  int active = 1;
  return !get_state || get_state(device, &flags, &active) != 0 || active;
}

}  // namespace

void check_call(cudaError_t error, const char* doing) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // reported here; later calls start clean unless the device itself is lost
  std::string what = std::string(doing) + ": " + cudaGetErrorString(error);
  if (error == cudaErrorNoKernelImageForDevice || error == cudaErrorUnsupportedPtxVersion)
    what += " (this build of codegen_fast has no code for this GPU; build it on this machine with CODEGEN_FAST_CUDA=on)";
  throw DeviceError(what);
}

const DeviceLimits& device_limits() {
  static std::mutex mutex;
  static std::array<std::optional<DeviceLimits>, kMaxDevices> known;
  int device = 0;
  check_call(cudaGetDevice(&device), "asking for the current device");
  if (device < 0 || device >= kMaxDevices) throw DeviceError("more than 64 GPUs are not supported");
  const std::lock_guard lock(mutex);
  if (!known[device]) {
    auto ask = [&](cudaDeviceAttr attribute) {
      int value = 0;
      check_call(cudaDeviceGetAttribute(&value, attribute, device), "asking for the device's limits");
      return value;
    };
    known[device] = DeviceLimits{ask(cudaDevAttrMultiProcessorCount), ask(cudaDevAttrMaxSharedMemoryPerBlockOptin),
                                 ask(cudaDevAttrComputeCapabilityMajor) >= 9};
  }
  return *known[device];
}

void prepare_kernel(const void* kernel, const char* name) {
  static std::mutex mutex;
  static std::set<std::pair<int, const void*>> prepared;
  int device = 0;
  check_call(cudaGetDevice(&device), name);
  const int most = device_limits().shared_bytes_per_block;
  const std::lock_guard lock(mutex);
  if (prepared.contains({device, kernel})) return;
  check_call(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most), name);
  check_call(cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared),
             name);
  prepared.insert({device, kernel});
}

StreamScope::StreamScope(int device, cudaStream_t stream, bool chained)
    : device_before_(0), stream_before_(t_stream), chained_before_(t_chained) {
  check_call(cudaGetDevice(&device_before_), "asking for the current device");
  if (device != device_before_) check_call(cudaSetDevice(device), "choosing the device");
  t_stream = stream;
  t_chained = chained;
}

StreamScope::~StreamScope() {
  t_stream = stream_before_;
  t_chained = chained_before_;
  int device = 0;
  if (cudaGetDevice(&device) == cudaSuccess && device != device_before_ && is_in_use(device_before_))
    cudaSetDevice(device_before_);
}

cudaStream_t StreamScope::stream() { return t_stream; }
bool StreamScope::chained() { return t_chained; }

}  // namespace codegen_fast::cuda
