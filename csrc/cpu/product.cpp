#include "product.h"

#include <algorithm>

#include "checks.h"

namespace codegen_fast::cpu {

int64_t ProductScratch::bytes(int64_t rows, const PackedWeight& w, bool with_norm) {
  int64_t n = with_norm ? round_up(rows * normed_stride(w) * 4, 64) : 0;
  if (is_quantized(w))
    n += rows * q_stride(w) + round_up(rows * num_groups(w) * 4, 64) * (1 + kSumsPerGroup);
  return n;
}

ProductScratch::ProductScratch(const TensorView& workspace, int64_t rows, const PackedWeight& w, bool with_norm) {
  char* at = workspace.as<char>();
  if (with_norm) {
    normed = reinterpret_cast<float*>(at);
    at += round_up(rows * normed_stride(w) * 4, 64);
  }
  if (is_quantized(w)) {
    q = reinterpret_cast<int8_t*>(at);
    at += rows * q_stride(w);
    q_scales = reinterpret_cast<float*>(at);
    at += round_up(rows * num_groups(w) * 4, 64);
    q_sums = reinterpret_cast<int32_t*>(at);
    at += round_up(rows * num_groups(w) * 4, 64) * kSumsPerGroup;
  }
  rest = at;
}

void quantize_activations(TensorView& q, TensorView& scales, const TensorView& x, const PackedWeight& w) {
  check_quantize_activations(kRules, q, scales, x, w);

  const Kernels& k = kernels();
  const int64_t rows = x.shape[0], groups = num_groups(w);
  parallel_for(rows, grain_for(rows), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const float* from = x.as<float>() + t * x.strides[0];
      float* to_scales = scales.as<float>() + t * groups;
      for (int s = 0; s < w.num_segments; from += w.segment_cols[s], ++s) {
        int8_t* codes = q.as<int8_t>() + t * stored_columns(w) + first_column(w, s);
        // A group at a time: nobody asked for the sums, and an op allocates nothing.
        for (int64_t c = 0; c < w.segment_cols[s]; c += kGroup) {
          int32_t sums[kSumsPerGroup];
          k.quantize(codes + c, to_scales++, sums, from + c, std::min<int64_t>(kGroup, w.segment_cols[s] - c));
        }
      }
    }
  });
}

}  // namespace codegen_fast::cpu
