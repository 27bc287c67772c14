// Stage 3 of a layer: W_out over attention and MLP together, bias and residual in the epilogue.
#include "product.h"

namespace codegen_fast::cpu {

int64_t output_product_workspace(int64_t num_tokens, const PackedWeight& w_out) {
  return ProductScratch::bytes(num_tokens, w_out, false);
}

void output_product(TensorView& x, const TensorView& act, const PackedWeight& w_out, const TensorView& bias_out,
                    Phase, TensorView& workspace) {
  // check
  const Device device = act.device;
  check_packed(w_out, "w_out", device);
  const int64_t d = w_out.out_features();
  if (w_out.num_sections != 1) throw ValueError("w_out: expected one section of rows");
  check_shape(act, {-1, w_out.in_features()});
  const int64_t tokens = act.shape[0];
  check_activations(act, tokens, w_out.in_features(), device);
  check_output(x, tokens, d, device);
  check_dtype(bias_out, {DType::f32});
  check_shape(bias_out, {d});
  check_contiguous(bias_out);
  check_device(bias_out, device);
  check_workspace(workspace, output_product_workspace(tokens, w_out));
  if (tokens == 0) return;

  // product and epilogue
  const ProductScratch scratch(workspace, tokens, w_out, false);
  const ProductRows rows = prepare_rows([&](int64_t t) { return act.as<float>() + t * act.strides[0]; }, tokens,
                                        act.strides[0], nullptr, w_out, scratch);
  multiply(w_out, rows, [&](const Tile& tile) {
    const float* bias = bias_out.as<float>() + tile.first_row;
    for (int64_t i = 0; i < tile.tokens; ++i) {
      float* out = x.as<float>() + (tile.first_token + i) * x.strides[0] + tile.first_row;
      const float* c = tile.c + i * kPanel;
      for (int64_t j = 0; j < tile.count; ++j) out[j] += c[j] + bias[j];
    }
  });
}

}  // namespace codegen_fast::cpu
