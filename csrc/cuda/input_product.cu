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
  const InputEpilogue<T> epilogue{.w = weight_of(w_in),
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
    prefill_product<T>("input_product", w_in, normalized_rows(x, nullptr, norm, w_in, workspace.data), tokens,
                       epilogue);
}

}  // namespace

void input_product(TensorView& q_out, TensorView& act, KVCache& cache, const TensorView& x, const Norm& norm,
                   const PackedWeight& w_in, const TensorView& bias_in, const TensorView& rotary, int64_t n_head,
                   const Batch& batch, Phase phase, TensorView& workspace) {
  // check
  const Device device = x.device;
  check_packed(w_in, "w_in", device);
  const int64_t tokens = batch.num_tokens, d = w_in.in_features(), inner = w_in.section_rows[3];
  if (w_in.num_sections != 4 || w_in.num_segments != 1 || w_in.section_rows[0] != d || w_in.section_rows[1] != d ||
      w_in.section_rows[2] != d)
    throw ValueError("w_in: expected sections (d, d, d, F) over one segment of d columns");
  if (n_head < 1 || d % n_head)
    throw ValueError("n_head: " + std::to_string(n_head) + " does not divide " + std::to_string(d));
  const int64_t head_dim = d / n_head;
  const DType type = activation_type(x);
  check_weight_type(w_in, "w_in", type);
  check_activations(x, tokens, d, type, device);
  check_output(q_out, tokens, d, type, device);
  check_output(act, tokens, d + inner, type, device);
  check_norm(norm, d, device);
  check_vector(bias_in, inner, device);
  check_dtype(rotary, {DType::f32});
  check_shape(rotary, {-1, -1});
  check_contiguous(rotary);
  check_device(rotary, device);
  const int64_t rotary_dim = rotary.shape[1];
  if (rotary_dim % 2 || rotary_dim > head_dim)
    throw ValueError("rotary: expected an even number of columns, at most the head's " + std::to_string(head_dim) +
                     ", got " + std::to_string(rotary_dim));
  if (head_dim % 2)
    throw ValueError("n_head: heads of " + std::to_string(head_dim) + " dimensions; rotary needs an even number");
  if (batch.max_seq_len > rotary.shape[0])
    throw ValueError("rotary: the table has " + std::to_string(rotary.shape[0]) + " positions, max_seq_len is " +
                     std::to_string(batch.max_seq_len));
  to_int(rotary.shape[0], "rotary");
  check_batch(batch, cache, d, type, device);
  check_workspace(workspace, input_product_workspace(tokens, w_in), device);
  if (tokens == 0) return;

  // launch
  const auto run = type == DType::f16 ? project<f16> : project<bf16>;
  run(q_out, act, cache, x, norm, w_in, bias_in, rotary, n_head, batch, phase, workspace);
}

}  // namespace codegen_fast::cuda
