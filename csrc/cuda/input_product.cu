// Stage 1 of a layer: LayerNorm + W_in; epilogues rotary, cache append, bias + gelu.
#include "checks.h"
#include "product_decode.cuh"
#include "product_prefill.h"

namespace codegen_fast::cuda {

int64_t input_product_workspace(int64_t num_tokens, const PackedWeight& w_in) {
  return std::max(decode_workspace(num_tokens, w_in), prefill_rows_bytes(num_tokens, w_in));
}

namespace {

template <class T>
void project(const TensorView& q_out, const TensorView& act, const KVCache& cache, const TensorView& x,
             const Norm& norm, const PackedWeight& w_in, const TensorView& bias_in, const TensorView& rotary,
             int64_t n_head, const Batch& batch, Phase phase, const TensorView& workspace) {
  const int tokens = static_cast<int>(batch.num_tokens);
  const bool cache_alone = q_out.shape[0] == 0;
  const Weight w = cache_alone ? sections_of(weight_of(w_in), 1, 3) : weight_of(w_in);
  const InputEpilogue<T> epilogue{.w = w,
                                  .q = q_out.as<T>(),
                                  .q_stride = q_out.strides[0],
                                  .act = act.as<T>() + w_in.in_features(),
                                  .act_stride = act.strides[0],
                                  .pages = pages_of(cache, n_head),
                                  .bias = bias_in.as<float>(),
                                  .rotary = rotary.as<float>(),
                                  .rotary_dim = static_cast<int>(rotary.shape[1]),
                                  .num_positions = static_cast<int>(rotary.shape[0]),
                                  .sequences = sequences_of(batch)};
  if (phase == Phase::decode)
    decode_product<T>("input_product", w_in, x, nullptr, &norm, tokens, workspace.data, epilogue);
  else
    prefill_product<T>("input_product", w, normalized_rows(x, nullptr, norm, w_in, workspace.data), tokens, epilogue);
}

}  // namespace

void input_product(TensorView& q_out, TensorView& act, KVCache& cache, const TensorView& x, const Norm& norm,
                   const PackedWeight& w_in, const TensorView& bias_in, const TensorView& rotary, int64_t n_head,
                   const Batch& batch, Phase phase, TensorView& workspace) {
  // check
  check_input_product(kRules, q_out, act, cache, x, norm, w_in, bias_in, rotary, n_head, batch, phase);
  check_counts(batch, cache);
  to_int(rotary.shape[0], "rotary");
  check_workspace(workspace, input_product_workspace(batch.num_tokens, w_in), x.device);
  if (batch.num_tokens == 0) return;

  // launch
  const auto run = x.dtype == DType::f16 ? project<f16> : project<bf16>;
  run(q_out, act, cache, x, norm, w_in, bias_in, rotary, n_head, batch, phase, workspace);
}

}  // namespace codegen_fast::cuda
