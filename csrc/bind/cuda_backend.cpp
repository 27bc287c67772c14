#include "../cuda/graph.h"
#include "../cuda/launch.h"
#include "backend.h"
#include "tensors.h"

namespace codegen_fast::bind {
namespace {

cudaStream_t stream_of(Device device) { return static_cast<cudaStream_t>(current_stream(device)); }

// On torch's current stream of the tensors' device; inside a capture, on the capture's.
void run_on_cuda(Device device, void* context, void (*body)(void*)) {
  if (cuda::StreamScope::chained()) return body(context);
  const cuda::StreamScope scope(device.index, stream_of(device));
  body(context);
}

bool finished(Device device) {
  const cuda::StreamScope scope(device.index, stream_of(device));
  return cuda::stream_finished(cuda::StreamScope::stream());
}

class CudaGraph : public Graph {
 public:
  explicit CudaGraph(Device device) : device_(device), graph_(device.index) {}
  void begin() override { graph_.begin(); }
  void end() override { graph_.end(); }
  void abandon() noexcept override { graph_.abandon(); }
  void replay() override { graph_.replay(stream_of(device_)); }

 private:
  Device device_;
  cuda::StepGraph graph_;
};

std::unique_ptr<Graph> new_graph(Device device) { return std::make_unique<CudaGraph>(device); }

RecordedOps* recording() { return nullptr; }  // the stream records

}  // namespace

#define CODEGEN_FAST_MEMBER(op) cuda::op,
const Backend kCudaBackend = {"cuda", run_on_cuda, finished, new_graph, recording,
                              CODEGEN_FAST_FOR_EACH_OP(CODEGEN_FAST_MEMBER)
                              CODEGEN_FAST_FOR_EACH_SIZE(CODEGEN_FAST_MEMBER)};
#undef CODEGEN_FAST_MEMBER

}  // namespace codegen_fast::bind
