// The driver that all products of the decoder share: rows in, quantised where the weight is int8, panels spread over
// the threads, and an epilogue for every finished piece.
#pragma once

#include "dispatch.h"
#include "layout.h"
#include "pool.h"

namespace codegen_fast::cpu {

// Scratch of a product, laid out in the caller's workspace.
struct ProductScratch {
  float* normed = nullptr;        // (T, K): the LayerNorm of the rows, where there is one
  int8_t* q = nullptr;            // (T, stored columns): the quantised rows, for int8 weights
  float* q_scales = nullptr;      // (T, groups)
  char* rest = nullptr;           // what an op appends of its own, 64-byte aligned

  static int64_t bytes(int64_t rows, const PackedWeight& w, bool with_norm);
  ProductScratch(const TensorView& workspace, int64_t rows, const PackedWeight& w, bool with_norm);
};

// The rows of a product, ready to be multiplied: float rows, or int8 rows with scales.
struct ProductRows {
  const float* x = nullptr;
  int64_t x_stride = 0;
  const int8_t* q = nullptr;
  int64_t q_stride = 0;
  const float* q_scales = nullptr;
  int64_t q_scales_stride = 0;
  int64_t count = 0;
};

// LayerNorm (norm may be null) and quantisation of rows source(0), source(1), ...; a null source gives a row of NaN.
template <class Source>
ProductRows prepare_rows(Source&& source, int64_t rows, int64_t x_stride, const Norm* norm, const PackedWeight& w,
                         const ProductScratch& scratch) {
  const Kernels& k = kernels();
  const int64_t columns = w.in_features(), q_stride = stored_columns(w), groups = num_groups(w);
  const bool quantized = w.dtype == DType::i8;
  auto prepare = [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const float* x = source(t);
      if (norm) {
        float* out = scratch.normed + t * columns;
        if (x) k.layer_norm(out, x, norm->weight.as<float>(), norm->bias.as<float>(), norm->eps, columns);
        else for (int64_t i = 0; i < columns; ++i) out[i] = __builtin_nanf("");
        x = out;
      }
      if (!quantized) continue;
      float* scales = scratch.q_scales + t * groups;
      for (int s = 0; s < w.num_segments; x += w.segment_cols[s], ++s) {
        k.quantize(scratch.q + t * q_stride + first_column(w, s), scales, x, w.segment_cols[s]);
        scales += (w.segment_cols[s] + kGroup - 1) / kGroup;
      }
    }
  };
  // A few rows cost less than waking the other threads.
  if (norm || quantized) {
    if (rows * columns <= 32768) prepare(0, rows);
    else parallel_for(rows, grain_for(rows), prepare);
  }
  ProductRows r;
  r.count = rows;
  if (quantized) {
    r.q = scratch.q;
    r.q_stride = q_stride;
    r.q_scales = scratch.q_scales;
    r.q_scales_stride = groups;
  } else {
    r.x = norm ? scratch.normed : source(0);
    r.x_stride = norm ? columns : x_stride;
  }
  return r;
}

// A finished piece of a product: rows first_token .. first_token + tokens of c, kPanel columns of which `count` exist.
struct Tile {
  const float* c;  // (tokens, kPanel)
  int section;
  int64_t first_row;  // output row in the section of column 0
  int64_t count;
  int64_t first_token;
  int64_t tokens;
};

// For all panels of w and all rows: epilogue(tile), on the thread that computed it. Reads every weight once, panel
// after panel, and holds a panel in cache for all rows.
template <class Epilogue>
void multiply(const PackedWeight& w, const ProductRows& rows, Epilogue&& epilogue) {
  constexpr int64_t kTokens = 64;  // rows whose accumulators rest on the stack
  if (rows.count == 0) return;
  const Kernels& k = kernels();
  const int64_t panels = num_panels(w), bytes = panel_bytes(w);
  parallel_for(panels, grain_for(panels), [&](int64_t begin, int64_t end) {
    alignas(64) float c[kTokens * kPanel];
    for (int64_t p = begin; p < end; ++p) {
      int section = 0;
      int64_t in_section = p;
      while (in_section >= panels_of(w.section_rows[section])) in_section -= panels_of(w.section_rows[section++]);
      const int64_t first_row = in_section * kPanel;
      const int64_t left = w.section_rows[section] - first_row;
      for (int64_t t = 0; t < rows.count; t += kTokens) {
        const int64_t n = rows.count - t < kTokens ? rows.count - t : kTokens;
        for (int64_t i = 0; i < n * kPanel; ++i) c[i] = 0.0f;
        const char* panel = w.data.as<char>() + p * bytes;
        int64_t x_column = 0, group = 0;
        for (int s = 0; s < w.num_segments; ++s) {
          const int64_t columns = w.segment_cols[s];
          if (w.dtype == DType::i8) {
            const int64_t column = first_column(w, s);
            k.panel_product_i8(c, rows.q + t * rows.q_stride + column, rows.q_stride,
                               rows.q_scales + t * rows.q_scales_stride + group, rows.q_scales_stride,
                               reinterpret_cast<const int8_t*>(panel) + column * kPanel,
                               w.scales.as<float>() + (s * panels + p) * kPanel, n, columns);
            group += (columns + kGroup - 1) / kGroup;
          } else {
            k.panel_product(c, rows.x + t * rows.x_stride + x_column, rows.x_stride,
                            panel + x_column * kPanel * dtype_bytes(w.dtype), w.dtype, n, columns);
            x_column += columns;
          }
        }
        epilogue(Tile{c, section, first_row, left < kPanel ? left : kPanel, t, n});
      }
    }
  });
}

}  // namespace codegen_fast::cpu
