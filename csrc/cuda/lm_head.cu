// After the layers: final LayerNorm + lm_head, for the rows whose logits are wanted.
#include "checks.h"
#include "product_decode.cuh"
#include "product_prefill.h"

namespace codegen_fast::cuda {

int64_t lm_head_workspace(int64_t num_rows, const PackedWeight& w_lm) {
  return std::max(decode_workspace(num_rows, w_lm), prefill_rows_bytes(num_rows, w_lm));
}

namespace {

template <class T>
void project(const TensorView& logits, const TensorView& x, const TensorView& rows, const Norm& norm,
             const PackedWeight& w_lm, const TensorView& bias_lm, Phase phase, const TensorView& workspace) {
  const int count = static_cast<int>(rows.shape[0]);
  const LogitsEpilogue epilogue{.logits = logits.as<float>(),
                                .stride = logits.strides[0],
                                .bias = bias_lm.as<float>(),
                                .rows = static_cast<int>(w_lm.out_features())};
  if (phase == Phase::decode)
    decode_product<T>("lm_head", w_lm, x, &rows, &norm, count, workspace.data, epilogue);
  else
    prefill_product<T>("lm_head", weight_of(w_lm), normalized_rows(x, &rows, norm, w_lm, workspace.data), count,
                       epilogue);
}

}  // namespace

void lm_head(TensorView& logits, const TensorView& x, const TensorView& rows, const Norm& norm,
             const PackedWeight& w_lm, const TensorView& bias_lm, Phase phase, TensorView& workspace) {
  // check
  check_lm_head(kRules, logits, x, rows, norm, w_lm, bias_lm);
  to_int(x.shape[0], "x");
  const int64_t count = to_int(rows.shape[0], "rows");
  check_workspace(workspace, lm_head_workspace(count, w_lm), x.device);
  if (count == 0) return;

  // launch
  const auto run = x.dtype == DType::f16 ? project<f16> : project<bf16>;
  run(logits, x, rows, norm, w_lm, bias_lm, phase, workspace);
}

}  // namespace codegen_fast::cuda
