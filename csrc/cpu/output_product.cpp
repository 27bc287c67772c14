// Stage 3 of a layer: W_out over attention and MLP together, bias and residual in the epilogue.
#include "checks.h"
#include "product.h"

namespace codegen_fast::cpu {

int64_t output_product_workspace(int64_t num_tokens, const PackedWeight& w_out) {
  return ProductScratch::bytes(num_tokens, w_out, false);
}

void output_product(TensorView& x, const TensorView& act, const PackedWeight& w_out, const TensorView& bias_out,
                    Phase, TensorView& workspace) {
  // check
  const int64_t tokens = act.shape[0];
  check_output_product(kRules, x, act, w_out, bias_out);
  check_workspace(workspace, output_product_workspace(tokens, w_out), act.device);
  if (tokens == 0) return;

  // product and epilogue
  const Kernels& k = kernels();
  const ProductScratch scratch(workspace, tokens, w_out, false);
  const ProductRows rows = prepare_rows([&](int64_t t) { return act.as<float>() + t * act.strides[0]; }, tokens,
                                        act.strides[0], nullptr, w_out, scratch);
  multiply(w_out, all_panels(w_out), rows, [&](const Tile& tile) {
    for (int64_t i = 0; i < tile.tokens; ++i)
      k.add_bias(x.as<float>() + (tile.first_token + i) * x.strides[0] + tile.first_row, tile.c + i * kPanel,
                 bias_out.as<float>() + tile.first_row, tile.count);
  });
}

}  // namespace codegen_fast::cpu
