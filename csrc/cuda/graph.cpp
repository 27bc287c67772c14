#include "graph.h"

namespace codegen_fast::cuda {

StepGraph::~StepGraph() {
  abandon();
  if (executable_) cudaGraphExecDestroy(executable_);
}

void StepGraph::begin() {
  if (recording_) throw DeviceError("this graph is being recorded already");
  if (executable_) throw DeviceError("this graph has been recorded");
  {
    const StreamScope on_device(device_, nullptr);
    check_call(cudaStreamCreateWithFlags(&capture_stream_, cudaStreamNonBlocking), "making a stream to record on");
  }
  recording_.emplace(device_, capture_stream_, true);
  const cudaError_t error = cudaStreamBeginCapture(capture_stream_, cudaStreamCaptureModeRelaxed);
  if (error != cudaSuccess) abandon();
  check_call(error, "beginning to record a step");
}

void StepGraph::end() {
  if (!recording_) throw DeviceError("this graph is not being recorded");
  cudaGraph_t graph = nullptr;
  cudaError_t error = cudaStreamEndCapture(capture_stream_, &graph);
  const char* doing = "recording a step";
  if (error == cudaSuccess) {
    doing = "making a graph of a step";
    error = cudaGraphInstantiate(&executable_, graph, 0);
    cudaGraphDestroy(graph);
  }
  abandon();
  check_call(error, doing);
}

void StepGraph::abandon() noexcept {
  if (!capture_stream_) return;
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  if (cudaStreamIsCapturing(capture_stream_, &status) == cudaSuccess && status != cudaStreamCaptureStatusNone) {
    cudaGraph_t graph = nullptr;
    cudaStreamEndCapture(capture_stream_, &graph);
    if (graph) cudaGraphDestroy(graph);
  }
  recording_.reset();
  cudaStreamDestroy(capture_stream_);
  capture_stream_ = nullptr;
  cudaGetLastError();  // a recording that failed is reported by its exception alone
}

void StepGraph::replay(cudaStream_t stream) const {
  if (!executable_) throw DeviceError("this graph has not been recorded");
  const StreamScope scope(device_, stream);
  check_call(cudaGraphLaunch(executable_, stream), "launching a step");
}

bool stream_finished(cudaStream_t stream) {
  const cudaError_t error = cudaStreamQuery(stream);
  if (error == cudaErrorNotReady) {
    cudaGetLastError();
    return false;
  }
  check_call(error, "running a step");
  return true;
}

}  // namespace codegen_fast::cuda
