// Where an element of a PackedWeight lies. Only the packer and the product driver include this.
//
// Rows stand in panels of kPanel; a section begins a new panel, and missing rows of its last panel are zeros.
//   f32, f16, bf16: data[panel][column][lane]
//   i8:             data[panel][quad][lane][column in quad], every segment rounded up to whole quads
//   scales of i8:   scales[segment][panel][lane]; for i8 in groups the rows' sums
//   i8 in groups:   data[panel][group][bfloat16 scale of every lane, then quad][lane][column in quad]
//   i4:             data[panel][group][bfloat16 scale of every lane, then pair][lane][column in quad], bytes whose low
//                   half is a column of the pair's first quad and whose high half one of its second; every segment
//                   rounded up to whole pairs
// So a product reads a panel from its first byte to its last, in order, and panels follow each other.
#pragma once

#include "../ops.h"
#include "kernels/table.h"

namespace codegen_fast::cpu {

inline int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }
inline int64_t panels_of(int64_t rows) { return (rows + kPanel - 1) / kPanel; }

// Whether products quantise their activations.
inline bool is_quantized(const PackedWeight& w) { return w.dtype == DType::i8 || w.dtype == DType::i4; }

// Whether scales stand among the codes.
inline bool is_grouped(const PackedWeight& w) { return w.group_cols != 0; }

// Whether activations have an offset and are quantised in groups of kFineGroup.
inline bool is_fine(const PackedWeight& w) { return w.dtype == DType::i8 && is_grouped(w); }

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

// A multiple of so many columns is stored of every segment.
inline int64_t column_padding(const PackedWeight& w) {
  return w.dtype == DType::i8 ? kQuad : w.dtype == DType::i4 ? kPair : 1;
}

// Columns that segments before `segment` take in a panel, and in a row of quantised activations.
inline int64_t first_column(const PackedWeight& w, int64_t segment) {
  int64_t n = 0;
  for (int i = 0; i < segment; ++i) n += round_up(w.segment_cols[i], column_padding(w));
  return n;
}

inline int64_t stored_columns(const PackedWeight& w) { return first_column(w, w.num_segments); }

// Bytes of a group of so many columns in a panel: bfloat16 scales, then nibbles or bytes.
inline int64_t group_bytes(const PackedWeight& w, int64_t columns) {
  return kPanel * (2 + round_up(columns, column_padding(w)) / (w.dtype == DType::i4 ? 2 : 1));
}

// Bytes of a panel before its segment `segment`.
inline int64_t segment_offset(const PackedWeight& w, int64_t segment) {
  if (!is_grouped(w)) return first_column(w, segment) * kPanel * dtype_bytes(w.dtype);
  int64_t n = 0;
  for (int i = 0; i < segment; ++i) {
    const int64_t whole = w.segment_cols[i] / w.group_cols, rest = w.segment_cols[i] % w.group_cols;
    n += whole * group_bytes(w, w.group_cols) + (rest ? group_bytes(w, rest) : 0);
  }
  return n;
}

inline int64_t panel_bytes(const PackedWeight& w) { return segment_offset(w, w.num_segments); }

// Columns that share a scale of the activations; groups of activations in a segment and in a row.
inline int64_t group_of(const PackedWeight& w) { return is_fine(w) ? kFineGroup : kGroup; }
inline int64_t groups_of_segment(const PackedWeight& w, int segment) {
  return (w.segment_cols[segment] + group_of(w) - 1) / group_of(w);
}
inline int64_t num_groups(const PackedWeight& w) {
  int64_t n = 0;
  for (int i = 0; i < w.num_segments; ++i) n += groups_of_segment(w, i);
  return n;
}

}  // namespace codegen_fast::cpu
