// The driver that all products of the decoder share: rows in, quantised where the weight is int8, panels spread over
// the threads, and an epilogue for every finished piece.
#pragma once

#include <algorithm>

#include "dispatch.h"
#include "layout.h"
#include "pool.h"

namespace codegen_fast::cpu {

// Sums of codes that a group of activations has.
inline int sums_per_group(const PackedWeight& w) { return static_cast<int>(group_of(w) / kSumColumns); }
// Rows that a product reads side by side must not lie a multiple of 4096 bytes apart: they would share a few lines of
// the first cache.
constexpr int64_t kRowPadding = 64;
// What memory delivers to a thread while the epilogue of a few rows runs, asked for beforehand, behind what the kernels
// have asked for already.
constexpr int64_t kFewRows = 4, kEpilogueBytes = 4096, kAheadBytes = 1024;
constexpr int64_t kPieceBytes = 1 << 15;  // of a weight that a thread takes at a time

// Scratch of a product, laid out in the caller's workspace.
struct ProductScratch {
  float* normed = nullptr;        // (T, normed_stride): the LayerNorm of the rows, where there is one
  int8_t* q = nullptr;            // (T, q_stride): the quantised rows, for int8 weights
  float* q_scales = nullptr;      // (T, groups)
  int32_t* q_sums = nullptr;      // (T, groups, sums_per_group)
  float* offsets = nullptr;       // (T, segments), where the weight is_fine
  char* rest = nullptr;           // what an op appends of its own, 64-byte aligned

  static int64_t normed_stride(const PackedWeight& w) { return w.in_features() + kRowPadding / sizeof(float); }
  static int64_t q_stride(const PackedWeight& w) { return round_up(stored_columns(w), 64) + kRowPadding; }
  static int64_t bytes(int64_t rows, const PackedWeight& w, bool with_norm);
  ProductScratch(const TensorView& workspace, int64_t rows, const PackedWeight& w, bool with_norm);
};

// The rows of a product, ready to be multiplied: float rows, or int8 rows with scales.
struct ProductRows {
  const float* x = nullptr;
  int64_t x_stride = 0;
  QuantizedRows quantized{};
  const float* offsets = nullptr;  // (count, segments), or none
  int64_t count = 0;
};

// Row t of the scratch <- x (in_features,), quantised.
void quantize_row(const float* x, int64_t t, const PackedWeight& w, const ProductScratch& scratch);

// The first `rows` rows of the scratch, once they are quantised.
inline ProductRows quantized_rows(int64_t rows, const PackedWeight& w, const ProductScratch& scratch) {
  ProductRows r;
  r.count = rows;
  r.quantized = {scratch.q, scratch.q_scales, scratch.q_sums, ProductScratch::q_stride(w), num_groups(w), rows};
  r.offsets = scratch.offsets;
  return r;
}

// LayerNorm (norm may be null) and quantisation of rows source(0), source(1), ...; a null source gives a row of NaN.
template <class Source>
ProductRows prepare_rows(Source&& source, int64_t rows, int64_t x_stride, const Norm* norm, const PackedWeight& w,
                         const ProductScratch& scratch) {
  const Kernels& k = kernels();
  const int64_t columns = w.in_features();
  const bool quantized = is_quantized(w);
  auto prepare = [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const float* x = source(t);
      if (norm) {
        float* out = scratch.normed + t * scratch.normed_stride(w);
        if (x) k.layer_norm(out, x, norm->weight.as<float>(), norm->bias.as<float>(), norm->eps, columns);
        else for (int64_t i = 0; i < columns; ++i) out[i] = __builtin_nanf("");
        x = out;
      }
      if (quantized) quantize_row(x, t, w, scratch);
    }
  };
  // A few rows cost less than waking the other threads.
  if (norm || quantized) {
    if (rows * columns <= 32768) prepare(0, rows);
    else parallel_for(rows, grain_for(rows), prepare);
  }
  if (quantized) return quantized_rows(rows, w, scratch);
  ProductRows r;
  r.count = rows;
  r.x = norm ? scratch.normed : source(0);
  r.x_stride = norm ? scratch.normed_stride(w) : x_stride;
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

// c (n, kPanel) of a panel and rows t .. t + n before the product: what the rows' offsets contribute, or 0. row_sums
// (segments, kPanel) lie stride apart, null without offsets.
inline void begin_sums(float* c, const float* row_sums, int64_t stride, const ProductRows& rows, int64_t segments,
                       int64_t t, int64_t n) {
  if (!row_sums) {
    for (int64_t i = 0; i < n * kPanel; ++i) c[i] = 0.0f;
    return;
  }
  const float* offsets = rows.offsets + t * segments;
  for (int64_t i = 0; i < n; ++i, c += kPanel, offsets += segments) {
    for (int64_t lane = 0; lane < kPanel; ++lane) c[lane] = offsets[0] * row_sums[lane];
    for (int64_t s = 1; s < segments; ++s)
      for (int64_t lane = 0; lane < kPanel; ++lane) c[lane] += offsets[s] * row_sums[s * stride + lane];
  }
}

// For all panels of w and all rows: epilogue(tile), on the thread that computed it. Reads every weight once, panel
// after panel, and holds a panel in cache for all rows.
template <class Epilogue>
void multiply(const PackedWeight& w, const ProductRows& rows, Epilogue&& epilogue) {
  constexpr int64_t kTokens = 64;  // rows whose accumulators rest on the stack; even, as lm_head wants it
  if (rows.count == 0) return;
  const Kernels& k = kernels();
  const int64_t panels = num_panels(w), bytes = panel_bytes(w);
  // Small pieces: at the end of an op every thread waits for the last. Taking one costs nanoseconds.
  const int64_t grain = std::max<int64_t>(1, kPieceBytes / bytes);
  parallel_for(panels, grain, [&](int64_t begin, int64_t end) {
    alignas(64) float c[kTokens * kPanel];
    for (int64_t p = begin; p < end; ++p) {
      int section = 0;
      int64_t in_section = p;
      while (in_section >= panels_of(w.section_rows[section])) in_section -= panels_of(w.section_rows[section++]);
      const int64_t first_row = in_section * kPanel;
      const int64_t left = w.section_rows[section] - first_row;
      for (int64_t t = 0; t < rows.count; t += kTokens) {
        const int64_t n = rows.count - t < kTokens ? rows.count - t : kTokens;
        begin_sums(c, is_fine(w) ? w.scales.as<float>() + p * kPanel : nullptr, panels * kPanel, rows, w.num_segments,
                   t, n);
        const char* panel = w.data.as<char>() + p * bytes;
        int64_t x_column = 0, group = 0;
        for (int s = 0; s < w.num_segments; ++s) {
          const int64_t columns = w.segment_cols[s];
          if (is_quantized(w)) {
            const int64_t column = first_column(w, s);
            QuantizedRows of = rows.quantized;
            of.q += t * of.q_stride + column;
            of.scales += t * of.groups_stride + group;
            of.sums += (t * of.groups_stride + group) * sums_per_group(w);
            of.count = n;
            if (w.dtype == DType::i4)
              k.panel_product_i4(c, of, reinterpret_cast<const uint8_t*>(panel) + segment_offset(w, s), w.group_cols,
                                 columns);
            else if (is_fine(w))
              k.panel_product_i8g(c, of, panel + segment_offset(w, s), columns);
            else
              k.panel_product_i8(c, of, reinterpret_cast<const int8_t*>(panel) + column * kPanel,
                                 w.scales.as<float>() + (s * panels + p) * kPanel, columns);
            group += groups_of_segment(w, s);
          } else {
            k.panel_product(c, rows.x + t * rows.x_stride + x_column, rows.x_stride,
                            panel + x_column * kPanel * dtype_bytes(w.dtype), w.dtype, n, columns);
            x_column += columns;
          }
        }
        // Memory must not rest meanwhile; with many rows it is not what takes the time.
        if (rows.count <= kFewRows)
          for (int64_t b = 0; b < kEpilogueBytes; b += 64) __builtin_prefetch(panel + bytes + kAheadBytes + b, 0, 2);
        epilogue(Tile{c, section, first_row, left < kPanel ? left : kPanel, t, n});
      }
    }
  });
}

}  // namespace codegen_fast::cpu
