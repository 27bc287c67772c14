// Stage 3 of a layer: W_out over attention and MLP together, bias and residual in the epilogue.
#include "checks.h"
#include "product_decode.cuh"
#include "product_prefill.h"

namespace codegen_fast::cuda {

int64_t output_product_workspace(int64_t num_tokens, const PackedWeight& w_out) {
  return std::max(decode_workspace(num_tokens, w_out), prefill_rows_bytes(num_tokens, w_out));
}

namespace {

template <class T>
void project(const TensorView& x, const TensorView& act, const PackedWeight& w_out, const TensorView& bias_out,
             Phase phase, const TensorView& workspace) {
  const int tokens = static_cast<int>(act.shape[0]);
  const OutputEpilogue<T> epilogue{.x = x.as<T>(),
                                   .x_stride = x.strides[0],
                                   .bias = bias_out.as<float>(),
                                   .rows = static_cast<int>(w_out.out_features())};
  if (phase == Phase::decode)
    decode_product<T>("output_product", w_out, act, nullptr, nullptr, tokens, workspace.data, epilogue);
  else
    prefill_product<T>("output_product", weight_of(w_out), plain_rows(act, w_out, workspace.data), tokens, epilogue);
}

}  // namespace

void output_product(TensorView& x, const TensorView& act, const PackedWeight& w_out, const TensorView& bias_out,
                    Phase phase, TensorView& workspace) {
  // check
  check_output_product(kRules, x, act, w_out, bias_out);
  const int64_t tokens = to_int(act.shape[0], "act");
  check_workspace(workspace, output_product_workspace(tokens, w_out), act.device);
  if (tokens == 0) return;

  // launch
  const auto run = act.dtype == DType::f16 ? project<f16> : project<bf16>;
  run(x, act, w_out, bias_out, phase, workspace);
}

}  // namespace codegen_fast::cuda
