// Floor 1: the contract's checks of operands, once for every backend: names, shapes, dtypes, strides and devices, one
// function per op. What a backend takes is in its rules; what only it asks (the workspace's size, counts that its
// kernels can hold, contents that it can read) it checks after these. No torch, no Python, no CUDA.
#pragma once

#include "ops.h"

namespace codegen_fast {

// What differs between backends in the operands that they take.
struct BackendRules {
  DType (*activation_type)(const TensorView& x);  // x's type if it is one of activations; throws otherwise
  bool one_type;                                  // pages, and weights that are not int8, have the activations' type
  // Each throws unless the backend takes the type of a cache's pages, the type of a weight, heads of attention so wide.
  void (*check_page_type)(const TensorView& pages);
  void (*check_weight_type)(const PackedWeight& w, const char* name);
  void (*check_head_dim)(int64_t head_dim);
  int64_t copied_page_alignment;  // bytes on whose multiple a cache begins whose pages are copied
  // The backend's ops of these names.
  int64_t (*packed_weight_bytes)(const PackedWeight& w);
  int64_t (*packed_weight_scales)(const PackedWeight& w);
  int64_t (*kv_page_size)();
  int64_t (*activation_group)(const PackedWeight& w);
  int64_t (*activation_padding)();
};

// (at least `bytes`,) u8
void check_workspace(const TensorView& workspace, int64_t bytes, Device device);
// w's sizes are sane, its memory is there and of the right size and device.
void check_packed(const BackendRules& rules, const PackedWeight& w, const char* name, Device device);

void check_pack(const BackendRules& rules, const PackedWeight& w, int64_t section, int64_t row, int64_t segment,
                const TensorView& source, const TensorView& status);
void check_pack_quantized(const BackendRules& rules, const PackedWeight& w, int64_t section, int64_t row,
                          int64_t segment, const TensorView& source, const TensorView& scales);
void check_unpack(const BackendRules& rules, const TensorView& out, const TensorView& out_scales,
                  const PackedWeight& w, int64_t section, int64_t row, int64_t segment);
void check_quantize_activations(const BackendRules& rules, const TensorView& q, const TensorView& scales,
                                const TensorView& x, const PackedWeight& w);
void check_embed(const BackendRules& rules, const TensorView& x, const TensorView& ids, const TensorView& wte);
void check_layer_norm(const BackendRules& rules, const TensorView& out, const TensorView& x, const Norm& norm);
void check_input_product(const BackendRules& rules, const TensorView& q_out, const TensorView& act,
                         const KVCache& cache, const TensorView& x, const Norm& norm, const PackedWeight& w_in,
                         const TensorView& bias_in, const TensorView& rotary, int64_t n_head, const Batch& batch,
                         Phase phase);
void check_attention(const BackendRules& rules, const TensorView& act, const TensorView& q, const KVCache& cache,
                     int64_t n_head, const Batch& batch);
void check_output_product(const BackendRules& rules, const TensorView& x, const TensorView& act,
                          const PackedWeight& w_out, const TensorView& bias_out);
void check_lm_head(const BackendRules& rules, const TensorView& logits, const TensorView& x, const TensorView& rows,
                   const Norm& norm, const PackedWeight& w_lm, const TensorView& bias_lm);
void check_sample(const TensorView& out, const TensorView& logits, const SamplingParams& params);
void check_filter_logits(const TensorView& logits, const SamplingParams& params);
void check_edit_logits(const TensorView& logits, const LogitsRules& rules);
// Where the ring has to lie, the backend knows.
void check_advance(const TensorView& tokens, const TensorView& seq_lens, const TensorView& remaining,
                   const TensorView& step, const TensorView& history, const HostRing& ring, const TensorView& sampled,
                   const TensorView& eos);
void check_copy_pages(const BackendRules& rules, const KVCache& cache, const TensorView& source,
                      const TensorView& destination);

}  // namespace codegen_fast
