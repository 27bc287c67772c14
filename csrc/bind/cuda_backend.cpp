#include "../cuda/launch.h"
#include "backend.h"
#include "tensors.h"

namespace codegen_fast::bind {
namespace {

// On torch's current stream of the tensors' device; inside a capture, on the capture's.
void run_on_cuda(Device device, void* context, void (*body)(void*)) {
  if (cuda::StreamScope::chained()) return body(context);
  const cuda::StreamScope scope(device.index, static_cast<cudaStream_t>(current_stream(device)));
  body(context);
}

}  // namespace

#define CODEGEN_FAST_MEMBER(op) cuda::op,
const Backend kCudaBackend = {"cuda", run_on_cuda, CODEGEN_FAST_FOR_EACH_OP(CODEGEN_FAST_MEMBER)
                              CODEGEN_FAST_FOR_EACH_SIZE(CODEGEN_FAST_MEMBER)};
#undef CODEGEN_FAST_MEMBER

}  // namespace codegen_fast::bind
