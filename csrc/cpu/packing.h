// What pack.cpp and pack_groups.cpp share: the rows of a call, panel by panel, and the faults of their values.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>

#include "layout.h"
#include "pool.h"

namespace codegen_fast::cpu {

// The rows of one panel that a call writes or reads: lanes first_lane .. first_lane + lanes of panel `panel`, which
// are rows first_row ... of the caller's tensor.
struct PanelRows {
  int64_t panel, first_lane, lanes, first_row;
};

// Calls f(PanelRows) on the threads for rows row .. row + n of a section.
template <class F>
void for_panels(const PackedWeight& w, int64_t section, int64_t row, int64_t n, F&& f) {
  if (n == 0) return;
  const int64_t first = row / kPanel, last = (row + n - 1) / kPanel, base = first_panel(w, section);
  parallel_for(last - first + 1, 1, [&](int64_t begin, int64_t end) {
    for (int64_t p = first + begin; p < first + end; ++p) {
      const int64_t from = std::max(row, p * kPanel), to = std::min(row + n, (p + 1) * kPanel);
      f(PanelRows{base + p, from - p * kPanel, to - from, from - row});
    }
  });
}

template <class T>
T* columns_of(const PackedWeight& w, int64_t panel, int64_t segment) {
  return reinterpret_cast<T*>(w.data.as<char>() + panel * panel_bytes(w) + segment_offset(w, segment));
}

inline char* row_of(const TensorView& t, int64_t row) {
  return t.as<char>() + row * t.strides[0] * dtype_bytes(t.dtype);
}

inline float as_float(int32_t bits) {
  float f;
  std::memcpy(&f, &bits, 4);
  return f;
}

// The largest magnitude as float bits, which order as the floats do: at least 0x7f800000 where there is a NaN or an
// infinity. As integers, because compilers vectorise their maximum and not that of floats.
inline int32_t largest_bits(const float* v, int64_t n) {
  int32_t m = 0;
  for (int64_t i = 0; i < n; ++i) {
    int32_t bits;
    std::memcpy(&bits, v + i, 4);
    bits &= 0x7fffffff;
    m = bits > m ? bits : m;
  }
  return m;
}

// Counts of values that cannot be stored as they are.
struct Faults {
  int32_t non_finite = 0, overflowed = 0;

  Faults& operator+=(Faults f) {
    non_finite += f.non_finite;
    overflowed += f.overflowed;
    return *this;
  }
};

// bound: the magnitude from which a finite value becomes infinite in the stored type.
inline Faults count_faults(const float* v, int64_t n, float bound) {
  Faults f;
  const float largest = as_float(largest_bits(v, n));
  if (largest < bound && largest <= 3.402823466e38f) return f;
  for (int64_t i = 0; i < n; ++i) {
    const float a = std::fabs(v[i]);
    const bool finite = a <= 3.402823466e38f;
    f.non_finite += !finite;
    f.overflowed += finite && a >= bound;
  }
  return f;
}

// The scales of i8, or the sums of its rows in groups, of a panel's lanes from first_lane on.
inline float* scales_of(const PackedWeight& w, PanelRows at, int64_t segment) {
  return w.scales.as<float>() + (segment * num_panels(w) + at.panel) * kPanel + at.first_lane;
}

// Puts n columns of one row, from a whole quad on, into int8 quads of a panel.
inline void put_quads(int8_t* quads, int64_t lane, int64_t column, const int8_t* values, int64_t n) {
  for (int64_t i = 0; i < n; i += kQuad)
    std::memcpy(quads + (column + i) * kPanel + lane * kQuad, values + i, std::min<int64_t>(kQuad, n - i));
}

// int8 and int4 in groups (pack_groups.cpp), for the rows of one panel.
Faults quantize_panel_in_groups(const PackedWeight& w, PanelRows at, int64_t segment, const TensorView& source);
void put_panel_in_groups(const PackedWeight& w, PanelRows at, int64_t segment, const TensorView& source,
                         const TensorView& scales);
void unpack_panel_in_groups(TensorView& out, TensorView& out_scales, const PackedWeight& w, PanelRows at,
                            int64_t segment);

}  // namespace codegen_fast::cpu
