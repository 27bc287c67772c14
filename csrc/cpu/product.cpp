#include "product.h"

#include <algorithm>

#include "checks.h"

namespace codegen_fast::cpu {

int64_t ProductScratch::bytes(int64_t rows, const PackedWeight& w, bool with_norm) {
  int64_t n = with_norm ? round_up(rows * normed_stride(w) * 4, 64) : 0;
  if (is_quantized(w))
    n += rows * q_stride(w) + round_up(rows * num_groups(w) * 4, 64) * (1 + sums_per_group(w));
  if (is_fine(w)) n += round_up(rows * w.num_segments * 4, 64);
  if (is_fine(w) && rows > kFewRows) n += round_up(rows * num_groups(w) * sizeof(ScaledGroup), 64);
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
    at += round_up(rows * num_groups(w) * 4, 64) * sums_per_group(w);
  }
  if (is_fine(w)) {
    offsets = reinterpret_cast<float*>(at);
    at += round_up(rows * w.num_segments * 4, 64);
  }
  if (is_fine(w) && rows > kFewRows) {
    if (kernels().scale_terms) scaled = reinterpret_cast<ScaledGroup*>(at);
    at += round_up(rows * num_groups(w) * sizeof(ScaledGroup), 64);
  }
  rest = at;
}

void quantize_row(const float* x, int64_t t, const PackedWeight& w, const ProductScratch& scratch) {
  const Kernels& k = kernels();
  int8_t* q = scratch.q + t * ProductScratch::q_stride(w);
  int64_t group = t * num_groups(w);
  for (int s = 0; s < w.num_segments; x += w.segment_cols[s], ++s) {
    float* scales = scratch.q_scales + group;
    int32_t* sums = scratch.q_sums + group * sums_per_group(w);
    if (is_fine(w)) {
      k.quantize_fine(q + first_column(w, s), scales, sums, scratch.offsets + t * w.num_segments + s, x,
                      w.segment_cols[s]);
      if (scratch.scaled) k.scale_terms(scratch.scaled + group, scales, sums, groups_of_segment(w, s));
    } else {
      k.quantize(q + first_column(w, s), scales, sums, x, w.segment_cols[s]);
    }
    // What they fill up is a quad; int4 reads pairs of them.
    for (int64_t c = first_column(w, s) + round_up(w.segment_cols[s], kQuad); c < first_column(w, s + 1); ++c) q[c] = 0;
    group += groups_of_segment(w, s);
  }
}

void multiply_panel(float* c, const PackedWeight& w, int64_t p, const ProductRows& rows, int64_t t, int64_t n) {
  const Kernels& k = kernels();
  const int64_t panels = num_panels(w);
  const char* panel = w.data.as<char>() + p * panel_bytes(w);
  if (is_fine(w))
    k.begin_i8g(c, rows.offsets + t * w.num_segments, w.scales.as<float>() + p * kPanel, panels * kPanel, w.num_segments, n);
  else
    std::fill_n(c, n * kPanel, 0.0f);
  int64_t x_column = 0, group = 0;
  for (int s = 0; s < w.num_segments; ++s) {
    const int64_t columns = w.segment_cols[s];
    if (!is_quantized(w)) {
      k.panel_product(c, rows.x + t * rows.x_stride + x_column, rows.x_stride,
                      panel + x_column * kPanel * dtype_bytes(w.dtype), w.dtype, n, columns);
      x_column += columns;
      continue;
    }
    const int64_t column = first_column(w, s);
    QuantizedRows of = rows.quantized;
    of.q += t * of.q_stride + column;
    of.scales += t * of.groups_stride + group;
    of.sums += (t * of.groups_stride + group) * sums_per_group(w);
    if (of.scaled) of.scaled += t * of.groups_stride + group;
    of.count = n;
    if (w.dtype == DType::i4)
      k.panel_product_i4(c, of, reinterpret_cast<const uint8_t*>(panel) + segment_offset(w, s), w.group_cols, columns);
    else if (is_fine(w))
      k.panel_product_i8g(c, of, panel + segment_offset(w, s), columns);
    else
      k.panel_product_i8(c, of, reinterpret_cast<const int8_t*>(panel) + column * kPanel,
                         w.scales.as<float>() + (s * panels + p) * kPanel, columns);
    group += groups_of_segment(w, s);
  }
}

void quantize_activations(TensorView& q, TensorView& scales, const TensorView& x, const PackedWeight& w) {
  check_quantize_activations(kRules, q, scales, x, w);

  const Kernels& k = kernels();
  const int64_t rows = x.shape[0], groups = num_groups(w);
  const bool fine = is_fine(w);
  parallel_for(rows, grain_for(rows), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const float* from = x.as<float>() + t * x.strides[0];
      float* to_scales = scales.as<float>() + t * (groups + (fine ? w.num_segments : 0));
      float* const offsets = to_scales + groups;
      for (int s = 0; s < w.num_segments; from += w.segment_cols[s], ++s) {
        int8_t* codes = q.as<int8_t>() + t * stored_columns(w) + first_column(w, s);
        if (fine) {
          k.quantize_fine(codes, to_scales, nullptr, offsets + s, from, w.segment_cols[s]);
          to_scales += groups_of_segment(w, s);
          continue;
        }
        // A group at a time: nobody asked for the sums, and an op allocates nothing.
        for (int64_t c = 0; c < w.segment_cols[s]; c += kGroup) {
          int32_t sums[kGroup / kSumColumns];
          k.quantize(codes + c, to_scales++, sums, from + c, std::min<int64_t>(kGroup, w.segment_cols[s] - c));
        }
      }
    }
  });
}

}  // namespace codegen_fast::cpu
