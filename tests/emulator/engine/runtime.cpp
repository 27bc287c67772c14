// The fake CUDA runtime: devices, memory, streams, events, graphs.
#include <cuda_runtime.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <map>
#include <mutex>

#include "grid.h"
#include "state.h"

namespace {

using Work = std::function<void()>;

constexpr int kDefaultMultiprocessors = 3;
constexpr int kMaxDevices = 64;
thread_local int t_device = 0;
thread_local cudaError_t t_last_error = cudaSuccess;

cudaError_t report(cudaError_t error) {
  if (error != cudaSuccess) t_last_error = error;
  return error;
}

std::mutex g_kernels_mutex;
std::map<const void*, int> g_max_shared_bytes;  // of kernels that asked for more than 48 KB

}  // namespace

struct emulated_stream {
  bool capturing = false;
  bool invalid = false;
  std::vector<Work> recorded;
};
struct emulated_event {
  std::chrono::steady_clock::time_point when;
  bool recorded = false;
};
struct emulated_graph {
  std::vector<Work> nodes;
};
struct emulated_graph_exec {
  std::vector<Work> nodes;
};

namespace {

cudaError_t run_or_record(cudaStream_t stream, Work work) {
  if (stream && stream->capturing) stream->recorded.push_back(std::move(work));
  else work();
  return cudaSuccess;
}

// What may not happen on a stream that is capturing: the capture is lost.
cudaError_t not_while_capturing(cudaStream_t stream) {
  if (!stream || !stream->capturing) return cudaSuccess;
  stream->invalid = true;
  return report(cudaErrorStreamCaptureUnsupported);
}

cudaError_t allocate(void** pointer, size_t bytes, const char* name) {
  void* p = std::aligned_alloc(256, (bytes + 255) / 256 * 256 + 256);
  if (!p) return report(cudaErrorMemoryAllocation);
  std::memset(p, codegen_fast::emulator::kPoison, bytes);
  const uintptr_t begin = reinterpret_cast<uintptr_t>(p);
  codegen_fast::emulator::add_allocation({.name = name, .begin = begin, .end = begin + bytes, .writable = true});
  *pointer = p;
  return cudaSuccess;
}

cudaError_t release(void* pointer) {
  if (!pointer) return cudaSuccess;
  codegen_fast::emulator::remove_allocation(pointer);
  std::free(pointer);
  return cudaSuccess;
}

}  // namespace

namespace codegen_fast::emulator {

cudaError_t launch(const cudaLaunchConfig_t& config, KernelCall call) {
  const dim3 b = config.blockDim, n = config.gridDim;
  if (b.y != 1 || b.z != 1 || b.x == 0 || b.x % kLanes || b.x > kMaxWarps * kLanes)
    return report(cudaErrorInvalidConfiguration);
  if (!n.x || !n.y || !n.z || n.x > 0x7FFFFFFFu || n.y > 65535 || n.z > 65535)
    return report(cudaErrorInvalidConfiguration);
  {
    const std::lock_guard lock(g_kernels_mutex);
    const auto asked = g_max_shared_bytes.find(call.kernel);
    const size_t limit = asked == g_max_shared_bytes.end() ? 48 * 1024 : std::max(48 * 1024, asked->second);
    if (config.dynamicSmemBytes > limit) return report(cudaErrorInvalidValue);
  }
  const GridLaunch grid{std::move(call), n, b, config.dynamicSmemBytes, current_memory()};
  return run_or_record(config.stream, [grid] { run_grid(grid); });
}

}  // namespace codegen_fast::emulator

// ---- Errors ------------------------------------------------------------------------------------

const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaSuccess: return "cudaSuccess";
    case cudaErrorInvalidValue: return "cudaErrorInvalidValue";
    case cudaErrorMemoryAllocation: return "cudaErrorMemoryAllocation";
    case cudaErrorInvalidConfiguration: return "cudaErrorInvalidConfiguration";
    case cudaErrorInsufficientDriver: return "cudaErrorInsufficientDriver";
    case cudaErrorNoDevice: return "cudaErrorNoDevice";
    case cudaErrorInvalidDevice: return "cudaErrorInvalidDevice";
    case cudaErrorNoKernelImageForDevice: return "cudaErrorNoKernelImageForDevice";
    case cudaErrorUnsupportedPtxVersion: return "cudaErrorUnsupportedPtxVersion";
    case cudaErrorIllegalState: return "cudaErrorIllegalState";
    case cudaErrorNotReady: return "cudaErrorNotReady";
    case cudaErrorStreamCaptureUnsupported: return "cudaErrorStreamCaptureUnsupported";
    case cudaErrorStreamCaptureInvalidated: return "cudaErrorStreamCaptureInvalidated";
    case cudaErrorNotSupported: return "cudaErrorNotSupported";
  }
  return "unknown error";
}
const char* cudaGetErrorString(cudaError_t error) { return cudaGetErrorName(error); }
cudaError_t cudaGetLastError() { return std::exchange(t_last_error, cudaSuccess); }
cudaError_t cudaPeekAtLastError() { return t_last_error; }

// ---- Devices -----------------------------------------------------------------------------------

cudaError_t cudaDriverGetVersion(int* version) { return *version = CUDART_VERSION, cudaSuccess; }
cudaError_t cudaRuntimeGetVersion(int* version) { return *version = CUDART_VERSION, cudaSuccess; }
cudaError_t cudaGetDeviceCount(int* count) { return *count = 1, cudaSuccess; }
cudaError_t cudaGetDevice(int* device) { return *device = t_device, cudaSuccess; }
cudaError_t cudaSetDevice(int device) {
  if (device < 0 || device >= kMaxDevices) return report(cudaErrorInvalidDevice);
  t_device = device;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  if (device < 0 || device >= kMaxDevices) return report(cudaErrorInvalidDevice);
  switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock: *value = 1024; break;
    case cudaDevAttrWarpSize: *value = 32; break;
    case cudaDevAttrMultiProcessorCount: *value = device ? device : kDefaultMultiprocessors; break;
    case cudaDevAttrMemoryClockRate: *value = 1; break;
    case cudaDevAttrGlobalMemoryBusWidth: *value = 8; break;
    case cudaDevAttrL2CacheSize: *value = 1 << 20; break;
    case cudaDevAttrMaxThreadsPerMultiProcessor: *value = 2048; break;
    case cudaDevAttrComputeCapabilityMajor: *value = codegen_fast::emulator::kArchitecture / 10; break;
    case cudaDevAttrComputeCapabilityMinor: *value = codegen_fast::emulator::kArchitecture % 10; break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *value = 228 * 1024; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = codegen_fast::emulator::kSharedLimit; break;
    default: return report(cudaErrorInvalidValue);
  }
  return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int device) {
  if (device < 0 || device >= kMaxDevices) return report(cudaErrorInvalidDevice);
  *p = {};
  std::snprintf(p->name, sizeof p->name, "emulated GPU");
  p->totalGlobalMem = size_t{1} << 32;
  p->sharedMemPerBlock = 48 * 1024;
  p->sharedMemPerBlockOptin = codegen_fast::emulator::kSharedLimit;
  p->major = codegen_fast::emulator::kArchitecture / 10;
  p->minor = codegen_fast::emulator::kArchitecture % 10;
  p->multiProcessorCount = device ? device : kDefaultMultiprocessors;
  p->memoryBusWidth = 8;
  p->l2CacheSize = 1 << 20;
  p->warpSize = 32;
  p->maxThreadsPerBlock = 1024;
  return cudaSuccess;
}
cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }

// ---- Memory ------------------------------------------------------------------------------------

cudaError_t cudaMalloc(void** pointer, size_t bytes) { return allocate(pointer, bytes, "memory of cudaMalloc"); }
cudaError_t cudaFree(void* pointer) { return release(pointer); }
cudaError_t cudaHostAlloc(void** pointer, size_t bytes, unsigned) {
  return allocate(pointer, bytes, "memory of cudaHostAlloc");
}
cudaError_t cudaMallocHost(void** pointer, size_t bytes) { return cudaHostAlloc(pointer, bytes, 0); }
cudaError_t cudaFreeHost(void* pointer) { return release(pointer); }
cudaError_t cudaHostGetDevicePointer(void** device, void* host, unsigned) { return *device = host, cudaSuccess; }
cudaError_t cudaHostRegister(void*, size_t, unsigned) { return cudaSuccess; }
cudaError_t cudaHostUnregister(void*) { return cudaSuccess; }
cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind) {
  std::memmove(to, from, bytes);
  return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t stream) {
  return run_or_record(stream, [=] { std::memmove(to, from, bytes); });
}
cudaError_t cudaMemset(void* to, int value, size_t bytes) {
  std::memset(to, value, bytes);
  return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t stream) {
  return run_or_record(stream, [=] { std::memset(to, value, bytes); });
}
cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  *free = size_t{1} << 31;
  *total = size_t{1} << 32;
  return cudaSuccess;
}

// ---- Streams and events ------------------------------------------------------------------------

cudaError_t cudaStreamCreate(cudaStream_t* stream) { return *stream = new emulated_stream, cudaSuccess; }
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) { return cudaStreamCreate(stream); }
cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned, int) { return cudaStreamCreate(stream); }
cudaError_t cudaStreamDestroy(cudaStream_t stream) { return delete stream, cudaSuccess; }
cudaError_t cudaStreamSynchronize(cudaStream_t stream) { return not_while_capturing(stream); }
cudaError_t cudaStreamQuery(cudaStream_t stream) { return not_while_capturing(stream); }
cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t, unsigned) { return cudaSuccess; }
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  if (!stream) return report(cudaErrorStreamCaptureUnsupported);
  if (stream->capturing) return report(cudaErrorIllegalState);
  stream->capturing = true;
  stream->invalid = false;
  stream->recorded.clear();
  return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  *graph = nullptr;
  if (!stream || !stream->capturing) return report(cudaErrorIllegalState);
  stream->capturing = false;
  if (stream->invalid) return report(cudaErrorStreamCaptureInvalidated);
  *graph = new emulated_graph{std::move(stream->recorded)};
  return cudaSuccess;
}
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  *status = !stream || !stream->capturing ? cudaStreamCaptureStatusNone
            : stream->invalid             ? cudaStreamCaptureStatusInvalidated
                                          : cudaStreamCaptureStatusActive;
  return cudaSuccess;
}
cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
  static thread_local cudaStreamCaptureMode current = cudaStreamCaptureModeGlobal;
  std::swap(current, *mode);
  return cudaSuccess;
}
cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void* data) {
  return run_or_record(stream, [=] { function(data); });
}

cudaError_t cudaEventCreate(cudaEvent_t* event) { return *event = new emulated_event, cudaSuccess; }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) { return cudaEventCreate(event); }
cudaError_t cudaEventDestroy(cudaEvent_t event) { return delete event, cudaSuccess; }
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  if (stream && stream->capturing) return cudaSuccess;
  event->when = std::chrono::steady_clock::now();
  event->recorded = true;
  return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t) { return cudaSuccess; }
cudaError_t cudaEventQuery(cudaEvent_t) { return cudaSuccess; }
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t start, cudaEvent_t end) {
  if (!start->recorded || !end->recorded) return report(cudaErrorInvalidValue);
  *milliseconds = std::chrono::duration<float, std::milli>(end->when - start->when).count();
  return cudaSuccess;
}

// ---- Graphs ------------------------------------------------------------------------------------

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long) {
  if (!graph) return report(cudaErrorInvalidValue);
  *exec = new emulated_graph_exec{graph->nodes};
  return cudaSuccess;
}
cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long flags) {
  return cudaGraphInstantiate(exec, graph, flags);
}
cudaError_t cudaGraphUpload(cudaGraphExec_t, cudaStream_t) { return cudaSuccess; }
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
  if (!exec) return report(cudaErrorInvalidValue);
  for (const Work& node : exec->nodes) run_or_record(stream, node);
  return cudaSuccess;
}
cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t* nodes, size_t* count) {
  if (nodes) return report(cudaErrorNotSupported);
  *count = graph->nodes.size();
  return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) { return delete graph, cudaSuccess; }
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) { return delete exec, cudaSuccess; }

// ---- Kernels -----------------------------------------------------------------------------------

cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
  if (value < 0 || static_cast<size_t>(value) > codegen_fast::emulator::kSharedLimit)
    return report(cudaErrorInvalidValue);
  const std::lock_guard lock(g_kernels_mutex);
  g_max_shared_bytes[kernel] = value;
  return cudaSuccess;
}
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* a, const void*) {
  *a = {};
  a->maxThreadsPerBlock = 1024;
  a->ptxVersion = a->binaryVersion = codegen_fast::emulator::kArchitecture;
  return cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void*, int threads, size_t shared_bytes) {
  *blocks = static_cast<int>(std::min<size_t>(2048 / std::max(threads, 1), 228 * 1024 / (shared_bytes + 1024)));
  return cudaSuccess;
}
