// After the layers: final LayerNorm + lm_head, for the rows whose logits are wanted.
#include "checks.h"
#include "product.h"

namespace codegen_fast::cpu {
namespace {

// Rows of the product whose sum is a row of logits.
int64_t parts_of(const PackedWeight& w) { return is_fine(w) ? 2 : 1; }

// What the codes of row t of the scratch leave of x, out (in_features,).
void leave_rest(float* out, const float* x, int64_t t, const PackedWeight& w, const ProductScratch& scratch) {
  const int8_t* q = scratch.q + t * ProductScratch::q_stride(w);
  const float* scales = scratch.q_scales + t * num_groups(w);
  const float offset = scratch.offsets[t];
  for (int64_t i = 0; i < w.in_features(); ++i)
    out[i] = (x[i] - offset) - scales[i / kFineGroup] * static_cast<float>(q[i]);
}

// LayerNorm and quantisation in two parts: rows 2m and 2m + 1 of the product are those of source(m).
template <class Source>
ProductRows prepare_in_parts(Source&& source, int64_t rows, const Norm& norm, const PackedWeight& w,
                             const ProductScratch& scratch) {
  const int64_t stride = ProductScratch::normed_stride(w), columns = w.in_features();
  auto prepare = [&](int64_t begin, int64_t end) {
    for (int64_t m = begin; m < end; ++m) {
      float *normed = scratch.normed + 2 * m * stride, *rest = normed + stride;
      if (const float* x = source(m))
        kernels().layer_norm(normed, x, norm.weight.as<float>(), norm.bias.as<float>(), norm.eps, columns);
      else
        std::fill_n(normed, columns, __builtin_nanf(""));
      quantize_row(normed, 2 * m, w, scratch);
      leave_rest(rest, normed, 2 * m, w, scratch);
      quantize_row(rest, 2 * m + 1, w, scratch);
    }
  };
  parallel_for(rows, grain_for(rows), prepare);
  return quantized_rows(2 * rows, w, scratch);
}

}  // namespace

int64_t lm_head_workspace(int64_t num_rows, const PackedWeight& w_lm) {
  return ProductScratch::bytes(num_rows * parts_of(w_lm), w_lm, true);
}

void lm_head(TensorView& logits, const TensorView& x, const TensorView& rows, const Norm& norm,
             const PackedWeight& w_lm, const TensorView& bias_lm, Phase, TensorView& workspace) {
  // check
  const int64_t count = rows.shape[0], parts = parts_of(w_lm);
  check_lm_head(kRules, logits, x, rows, norm, w_lm, bias_lm);
  check_workspace(workspace, lm_head_workspace(count, w_lm), x.device);
  if (count == 0) return;

  // LayerNorm
  const ProductScratch scratch(workspace, count * parts, w_lm, true);
  auto source = [&](int64_t m) -> const float* {
    const int64_t t = rows.as<int32_t>()[m];
    return t < 0 || t >= x.shape[0] ? nullptr : x.as<float>() + t * x.strides[0];
  };
  const ProductRows prepared = parts == 2 ? prepare_in_parts(source, count, norm, w_lm, scratch)
                                          : prepare_rows(source, count, 0, &norm, w_lm, scratch);

  // product and epilogue; the parts of a row are neighbours, and a tile has all of them
  multiply(w_lm, all_panels(w_lm), prepared, [&](const Tile& tile) {
    const float* bias = bias_lm.as<float>() + tile.first_row;
    for (int64_t i = 0; i < tile.tokens; i += parts) {
      float* out = logits.as<float>() + (tile.first_token + i) / parts * logits.strides[0] + tile.first_row;
      const float *c = tile.c + i * kPanel, *rest = c + kPanel;
      if (parts == 2)
        for (int64_t j = 0; j < tile.count; ++j) out[j] = (c[j] + rest[j]) + bias[j];
      else
        for (int64_t j = 0; j < tile.count; ++j) out[j] = c[j] + bias[j];
    }
  });
}

}  // namespace codegen_fast::cpu
