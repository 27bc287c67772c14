// The backends of an extension: which ops run for tensors on the CPU, and which for tensors on CUDA devices.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "../ops.h"

namespace codegen_fast::bind {

#define CODEGEN_FAST_FOR_EACH_OP(X)                                                                                  \
  X(pack) X(clear_packed) X(pack_quantized) X(unpack) X(quantize_activations) X(embed) X(layer_norm)                 \
  X(input_product) X(attention) X(output_product) X(lm_head) X(sample) X(filter_logits) X(edit_logits)             \
  X(advance) X(copy_pages)

#define CODEGEN_FAST_FOR_EACH_SIZE(X)                                                                                \
  X(packed_weight_bytes) X(packed_weight_scales) X(kv_page_size) X(activation_group) X(activation_padding)           \
  X(input_product_workspace) X(attention_workspace) X(output_product_workspace) X(lm_head_workspace)                 \
  X(sample_workspace) X(edit_logits_workspace)

// Ops recorded once and run many times: cuda/graph.h and cpu_backend.cpp say how.
class Graph {
 public:
  virtual ~Graph() = default;
  virtual void begin() = 0;
  virtual void end() = 0;
  virtual void abandon() noexcept = 0;
  virtual void replay() = 0;  // on the device's current stream
};

// Ops with their arguments.
using RecordedOps = std::vector<std::function<void()>>;

struct Backend {
  const char* name;  // "cpu" or "cuda"
  // Calls body(context) with the device's surroundings in place (floating-point mode, current device, stream).
  void (*run)(Device device, void* context, void (*body)(void*));
  // Whether everything that was given to the device's current stream is done; throws if any of it failed.
  bool (*finished)(Device device);
  std::unique_ptr<Graph> (*new_graph)(Device device);
  // What this thread's ops are added to instead of being run, or null: they are run (and a stream may record them).
  RecordedOps* (*recording)();
#define CODEGEN_FAST_MEMBER(op) decltype(&cpu::op) op;
  CODEGEN_FAST_FOR_EACH_OP(CODEGEN_FAST_MEMBER)
  CODEGEN_FAST_FOR_EACH_SIZE(CODEGEN_FAST_MEMBER)
#undef CODEGEN_FAST_MEMBER
};

extern const Backend kCpuBackend;
extern const Backend kCudaBackend;  // only in builds with CUDA

// The backends of this extension; null: tensors on such devices are refused.
struct Backends {
  const Backend* for_cpu_tensors = nullptr;
  const Backend* for_cuda_tensors = nullptr;

  // Throws ValueError where there is none. `what` is the op or tensor that asks.
  const Backend& of(DeviceType type, const char* what) const {
    const Backend* b = type == DeviceType::cuda ? for_cuda_tensors : for_cpu_tensors;
    if (!b)
      throw ValueError(std::string(what) + ": lies on a CUDA device, and this build of codegen_fast has no CUDA kernels "
                       "(it was built without CUDA); use device='cpu'");
    return *b;
  }
};
inline Backends g_backends;

}  // namespace codegen_fast::bind
