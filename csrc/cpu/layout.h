// Where an element of a PackedWeight lies. Only the packer and the product driver include this.
//
// Rows stand in panels of kPanel; a section begins a new panel, and missing rows of its last panel are zeros.
//   f32, f16, bf16: data[panel][column][lane]
//   i8:             data[panel][quad][lane][column in quad], every segment rounded up to whole quads
//   scales:         scales[segment][panel][lane]
// So a product reads a panel from its first byte to its last, in order, and panels follow each other.
#pragma once

#include "../ops.h"
#include "kernels/table.h"

namespace codegen_fast::cpu {

inline int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }
inline int64_t panels_of(int64_t rows) { return (rows + kPanel - 1) / kPanel; }

inline int64_t num_panels(const PackedWeight& w) {
  int64_t n = 0;
  for (int i = 0; i < w.num_sections; ++i) n += panels_of(w.section_rows[i]);
  return n;
}

inline int64_t first_panel(const PackedWeight& w, int64_t section) {
  int64_t n = 0;
  for (int i = 0; i < section; ++i) n += panels_of(w.section_rows[i]);
  return n;
}

// Columns that segments before `segment` take in a panel.
inline int64_t first_column(const PackedWeight& w, int64_t segment) {
  int64_t n = 0;
  for (int i = 0; i < segment; ++i)
    n += w.dtype == DType::i8 ? round_up(w.segment_cols[i], kQuad) : w.segment_cols[i];
  return n;
}

inline int64_t stored_columns(const PackedWeight& w) { return first_column(w, w.num_segments); }
inline int64_t panel_bytes(const PackedWeight& w) { return stored_columns(w) * kPanel * dtype_bytes(w.dtype); }

inline int64_t num_groups(const PackedWeight& w) {
  int64_t n = 0;
  for (int i = 0; i < w.num_segments; ++i) n += (w.segment_cols[i] + kGroup - 1) / kGroup;
  return n;
}

}  // namespace codegen_fast::cpu
