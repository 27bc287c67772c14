// The ops of a decode step, recorded once and launched as one: a CUDA graph.
#pragma once

#include <optional>

#include "launch.h"

namespace codegen_fast::cuda {

class StepGraph {
 public:
  explicit StepGraph(int device) : device_(device) {}
  ~StepGraph();
  StepGraph(const StepGraph&) = delete;
  StepGraph& operator=(const StepGraph&) = delete;

  // From begin() to end(), ops that this thread calls are recorded instead of run, on a stream of the graph's own;
  // their tensors must live as long as the graph. Other threads, and what this thread does besides ops (allocating
  // memory too), go on as always. abandon() forgets what was recorded.
  void begin();
  void end();
  void abandon() noexcept;

  // Enqueues what was recorded, as often as wanted.
  void replay(cudaStream_t stream) const;

 private:
  int device_;
  cudaStream_t capture_stream_ = nullptr;  // while recording
  std::optional<StreamScope> recording_;
  cudaGraphExec_t executable_ = nullptr;
};

// Whether all work on a stream has finished. Throws if it, or anything before on the device, has failed.
bool stream_finished(cudaStream_t stream);

}  // namespace codegen_fast::cuda
