// After the layers: final LayerNorm + lm_head, for the rows whose logits are wanted.
#include "checks.h"
#include "product.h"

namespace codegen_fast::cpu {

int64_t lm_head_workspace(int64_t num_rows, const PackedWeight& w_lm) {
  return ProductScratch::bytes(num_rows, w_lm, true);
}

void lm_head(TensorView& logits, const TensorView& x, const TensorView& rows, const Norm& norm,
             const PackedWeight& w_lm, const TensorView& bias_lm, Phase, TensorView& workspace) {
  // check
  const int64_t count = rows.shape[0];
  check_lm_head(kRules, logits, x, rows, norm, w_lm, bias_lm);
  check_workspace(workspace, lm_head_workspace(count, w_lm), x.device);
  if (count == 0) return;

  // LayerNorm
  const ProductScratch scratch(workspace, count, w_lm, true);
  const ProductRows prepared = prepare_rows(
      [&](int64_t m) -> const float* {
        const int64_t t = rows.as<int32_t>()[m];
        return t < 0 || t >= x.shape[0] ? nullptr : x.as<float>() + t * x.strides[0];
      },
      count, 0, &norm, w_lm, scratch);

  // product and epilogue
  multiply(w_lm, prepared, [&](const Tile& tile) {
    const float* bias = bias_lm.as<float>() + tile.first_row;
    for (int64_t i = 0; i < tile.tokens; ++i) {
      float* out = logits.as<float>() + (tile.first_token + i) * logits.strides[0] + tile.first_row;
      const float* c = tile.c + i * kPanel;
      for (int64_t j = 0; j < tile.count; ++j) out[j] = c[j] + bias[j];
    }
  });
}

}  // namespace codegen_fast::cpu
