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
// Rows up to which memory is what takes the time, and what it delivers to a thread while their epilogues run, asked for
// beforehand, behind what the kernels have asked for already.
constexpr int64_t kFewRows = 4, kEpilogueBytes = 4096, kAheadBytes = 1024;
// A few rows have their epilogues after several panels: behind an epilogue a core has nothing to read in flight. One panel
// after another, int8 of 1024 columns reads 82% of what a sum reads, so 88% (a whole step, 2 cores of Zen 4 at 60 GB/s).
constexpr int64_t kRunBytes = 9 << 14, kMostPanels = 8;
constexpr int64_t kPieceBytes = 1 << 15;  // of a weight that a thread takes at a time, at least

// Scratch of a product, laid out in the caller's workspace.
struct ProductScratch {
  float* normed = nullptr;        // (T, normed_stride): the LayerNorm of the rows, where there is one
  int8_t* q = nullptr;            // (T, q_stride): the quantised rows, for int8 weights
  float* q_scales = nullptr;      // (T, groups)
  int32_t* q_sums = nullptr;      // (T, groups, sums_per_group)
  float* offsets = nullptr;       // (T, segments), where the weight is_fine
  ScaledGroup* scaled = nullptr;  // (T, groups), where it is and rows are more than a few
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
  r.quantized = {scratch.q, scratch.q_scales, scratch.q_sums, scratch.scaled, ProductScratch::q_stride(w),
                 num_groups(w), rows};
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

// c (n, kPanel) <- panel p times rows t .. t + n.
void multiply_panel(float* c, const PackedWeight& w, int64_t p, const ProductRows& rows, int64_t t, int64_t n);

// What of an output is panel p: c and the rows of a tile are the caller's.
inline Tile tile_of(const PackedWeight& w, int64_t p) {
  Tile tile{};
  while (p >= panels_of(w.section_rows[tile.section])) p -= panels_of(w.section_rows[tile.section++]);
  tile.first_row = p * kPanel;
  tile.count = std::min<int64_t>(w.section_rows[tile.section] - tile.first_row, kPanel);
  return tile;
}

// Panels first .. end of a weight.
struct Panels {
  int64_t first, end;
};
inline Panels all_panels(const PackedWeight& w) { return {0, num_panels(w)}; }

// For these panels of w and all rows: epilogue(tile), on the thread that computed it. Reads every weight once, panel
// after panel, and holds a panel in cache for all rows.
template <class Epilogue>
void multiply(const PackedWeight& w, Panels of, const ProductRows& rows, Epilogue&& epilogue) {
  // Rows whose accumulators rest on the stack: even, as lm_head wants it, and whole tiles of 6 and 12.
  constexpr int64_t kTokens = 72;
  static_assert(kMostPanels * kFewRows <= kTokens);
  if (rows.count == 0) return;
  const int64_t panels = of.end - of.first, bytes = panel_bytes(w);
  const bool few = rows.count <= kFewRows;
  // With many threads short runs: every thread needs some.
  const int64_t run = few ? std::clamp<int64_t>(std::min(kRunBytes / bytes, grain_for(panels, 8)), 1, kMostPanels) : 1;
  // Small pieces: at the end of an op every thread waits for the last. Taking one costs nanoseconds.
  parallel_for(panels, std::max(run, kPieceBytes / bytes), [&](int64_t begin, int64_t end) {
    alignas(64) float sums[kTokens * kPanel];
    for (int64_t p = of.first + begin, last = of.first + end; p < last; p += run) {
      const int64_t here = std::min(run, last - p);
      for (int64_t t = 0; t < rows.count; t += kTokens) {
        const int64_t n = std::min(rows.count - t, kTokens), stride = n * kPanel;
        for (int64_t i = 0; i < here; ++i) multiply_panel(sums + i * stride, w, p + i, rows, t, n);
        if (few)
          for (int64_t b = 0; b < kEpilogueBytes; b += 64)
            __builtin_prefetch(w.data.as<char>() + (p + here) * bytes + kAheadBytes + b, 0, 2);
        for (int64_t i = 0; i < here; ++i) {
          Tile tile = tile_of(w, p + i);
          tile.c = sums + i * stride;
          tile.first_token = t;
          tile.tokens = n;
          epilogue(tile);
        }
      }
    }
  });
}

}  // namespace codegen_fast::cpu
