#include "product.h"

#include "checks.h"

namespace codegen_fast::cpu {

int64_t ProductScratch::bytes(int64_t rows, const PackedWeight& w, bool with_norm) {
  int64_t n = with_norm ? round_up(rows * w.in_features() * 4, 64) : 0;
  if (w.dtype == DType::i8) n += round_up(rows * stored_columns(w), 64) + round_up(rows * num_groups(w) * 4, 64);
  return n;
}

ProductScratch::ProductScratch(const TensorView& workspace, int64_t rows, const PackedWeight& w, bool with_norm) {
  char* at = workspace.as<char>();
  if (with_norm) {
    normed = reinterpret_cast<float*>(at);
    at += round_up(rows * w.in_features() * 4, 64);
  }
  if (w.dtype == DType::i8) {
    q = reinterpret_cast<int8_t*>(at);
    at += round_up(rows * stored_columns(w), 64);
    q_scales = reinterpret_cast<float*>(at);
    at += round_up(rows * num_groups(w) * 4, 64);
  }
  rest = at;
}

void quantize_activations(TensorView& q, TensorView& scales, const TensorView& x, const PackedWeight& w) {
  check_quantize_activations(kRules, q, scales, x, w);

  TensorView none;
  ProductScratch scratch(none, 0, w, false);
  scratch.q = q.as<int8_t>();
  scratch.q_scales = scales.as<float>();
  prepare_rows([&](int64_t t) { return x.as<float>() + t * x.strides[0]; }, x.shape[0], x.strides[0], nullptr, w,
               scratch);
}

}  // namespace codegen_fast::cpu
