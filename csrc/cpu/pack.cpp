// Packing, quantisation and their inverses: the only code that writes or reads the order of elements in a weight.
#include <atomic>
#include <cmath>
#include <cstring>

#include "dispatch.h"
#include "layout.h"
#include "pool.h"

namespace codegen_fast::cpu {
namespace {

constexpr int64_t kBlock = 256;  // values converted at a time, on the stack

bool is_float(DType t) { return t == DType::f32 || t == DType::f16 || t == DType::bf16; }

struct Place {  // of row `row` of a section in data and scales
  int64_t panel, lane;
};

Place place(const PackedWeight& w, int64_t section, int64_t row) {
  return {first_panel(w, section) + row / kPanel, row % kPanel};
}

template <class T>
T* element(const PackedWeight& w, Place at, int64_t segment, int64_t column) {
  char* panel = w.data.as<char>() + at.panel * panel_bytes(w);
  const int64_t c = first_column(w, segment);
  if constexpr (sizeof(T) == 1)
    return reinterpret_cast<T*>(panel) + (c + column / kQuad * kQuad) * kPanel + at.lane * kQuad + column % kQuad;
  else
    return reinterpret_cast<T*>(panel) + (c + column) * kPanel + at.lane;
}

float* scale_of(const PackedWeight& w, Place at, int64_t segment) {
  return w.scales.as<float>() + (segment * num_panels(w) + at.panel) * kPanel + at.lane;
}

void check_rows(const PackedWeight& w, int64_t section, int64_t row, int64_t segment, const TensorView& rows) {
  if (section < 0 || section >= w.num_sections)
    throw ValueError("section: expected 0 to " + std::to_string(w.num_sections - 1) + ", got " + std::to_string(section));
  if (segment < 0 || segment >= w.num_segments)
    throw ValueError("segment: expected 0 to " + std::to_string(w.num_segments - 1) + ", got " + std::to_string(segment));
  check_shape(rows, {-1, w.segment_cols[segment]});
  if (row < 0 || row + rows.shape[0] > w.section_rows[section])
    throw ValueError(std::string(rows.name) + ": rows " + std::to_string(row) + " to " +
                     std::to_string(row + rows.shape[0]) + " do not fit a section of " +
                     std::to_string(w.section_rows[section]) + " rows");
  check_rows_contiguous(rows);
  check_device(rows, w.data.device);
}

// Counts of values that cannot be stored as they are.
struct Faults {
  int32_t non_finite = 0, overflowed = 0;
};

// The magnitude from which a finite value rounds to infinity in a narrower type.
float overflow_bound(DType to) {
  if (to == DType::f16) return 65520.0f;
  if (to == DType::bf16) return 3.3961775e38f;  // halfway between the largest bfloat16 and 2^128
  return INFINITY;
}

Faults count_faults(const float* v, int64_t n, float bound) {
  Faults f;
  for (int64_t i = 0; i < n; ++i) {
    const float a = std::fabs(v[i]);
    const bool finite = a <= 3.402823466e38f;
    f.non_finite += !finite;
    f.overflowed += finite && a >= bound;
  }
  return f;
}

// Calls f(column, values, n) for blocks of one source row, widened to float32.
template <class F>
void for_blocks(const TensorView& source, int64_t row, F&& f) {
  float values[kBlock];
  const int64_t n = source.shape[1];
  const char* base = source.as<char>() + row * source.strides[0] * dtype_bytes(source.dtype);
  for (int64_t c = 0; c < n; c += kBlock) {
    const int64_t count = n - c < kBlock ? n - c : kBlock;
    kernels().to_f32(values, base + c * dtype_bytes(source.dtype), source.dtype, count);
    f(c, values, count);
  }
}

template <class T>
Faults pack_row(const PackedWeight& w, Place at, int64_t segment, const TensorView& source, int64_t row) {
  Faults faults;
  const float bound = source.dtype == w.dtype ? INFINITY : overflow_bound(w.dtype);
  for_blocks(source, row, [&](int64_t column, const float* values, int64_t n) {
    const Faults f = count_faults(values, n, bound);
    faults.non_finite += f.non_finite;
    faults.overflowed += f.overflowed;
    T narrow[kBlock];
    kernels().from_f32(narrow, values, w.dtype, n);
    for (int64_t i = 0; i < n; ++i) *element<T>(w, at, segment, column + i) = narrow[i];
  });
  return faults;
}

Faults quantize_row(const PackedWeight& w, Place at, int64_t segment, const TensorView& source, int64_t row) {
  Faults faults;
  float amax = 0.0f;
  for_blocks(source, row, [&](int64_t, const float* values, int64_t n) {
    faults.non_finite += count_faults(values, n, INFINITY).non_finite;
    for (int64_t i = 0; i < n; ++i) amax = std::fabs(values[i]) > amax ? std::fabs(values[i]) : amax;
  });
  float inverse = amax > 0.0f ? 127.0f / amax : 0.0f;
  if (!(inverse <= 3.402823466e38f)) inverse = 0.0f;  // amax below about 3.7e-37: the row is as good as zero
  *scale_of(w, at, segment) = amax / 127.0f;
  if (faults.non_finite) return faults;
  for_blocks(source, row, [&](int64_t column, const float* values, int64_t n) {
    for (int64_t i = 0; i < n; ++i)
      *element<int8_t>(w, at, segment, column + i) = static_cast<int8_t>(std::nearbyint(values[i] * inverse));
  });
  return faults;
}

}  // namespace

void check_packed(const PackedWeight& w, const char* name, Device device) {
  const std::string n(name);
  if (w.num_sections < 1 || w.num_segments < 1) throw ValueError(n + ": a weight needs a section and a segment");
  for (int i = 0; i < w.num_sections; ++i)
    if (w.section_rows[i] < 1) throw ValueError(n + ": sections must have at least one row");
  for (int i = 0; i < w.num_segments; ++i)
    if (w.segment_cols[i] < 1) throw ValueError(n + ": segments must have at least one column");
  if (!is_float(w.dtype) && w.dtype != DType::i8)
    throw TypeError(n + ": expected float32, float16, bfloat16 or int8 weights, got " + dtype_name(w.dtype));
  check_dtype(w.data, {DType::u8});
  check_shape(w.data, {packed_weight_bytes(w)});
  check_contiguous(w.data);
  check_device(w.data, device);
  if (w.dtype != DType::i8) return;
  check_dtype(w.scales, {DType::f32});
  check_shape(w.scales, {packed_weight_scales(w)});
  check_contiguous(w.scales);
  check_device(w.scales, device);
}

int64_t packed_weight_bytes(const PackedWeight& w) { return num_panels(w) * panel_bytes(w); }

int64_t packed_weight_scales(const PackedWeight& w) {
  return w.dtype == DType::i8 ? w.num_segments * num_panels(w) * kPanel : 0;
}

void pack(PackedWeight& w, int64_t section, int64_t row, int64_t segment, const TensorView& source,
          TensorView& status) {
  check_packed(w, "weight", source.device);
  check_dtype(source, {DType::f32, DType::f16, DType::bf16});
  check_rows(w, section, row, segment, source);
  check_dtype(status, {DType::i32});
  check_shape(status, {2});
  check_contiguous(status);

  const int64_t n = source.shape[0];
  parallel_for(n, round_up(grain_for(n), kPanel), [&](int64_t begin, int64_t end) {
    Faults total;
    for (int64_t i = begin; i < end; ++i) {
      const Place at = place(w, section, row + i);
      const Faults f = w.dtype == DType::i8    ? quantize_row(w, at, segment, source, i)
                       : w.dtype == DType::f32 ? pack_row<float>(w, at, segment, source, i)
                                               : pack_row<uint16_t>(w, at, segment, source, i);
      total.non_finite += f.non_finite;
      total.overflowed += f.overflowed;
    }
    int32_t* s = status.as<int32_t>();
    std::atomic_ref<int32_t>(s[0]).fetch_add(total.non_finite);
    std::atomic_ref<int32_t>(s[1]).fetch_add(total.overflowed);
  });
}

void clear_packed(PackedWeight& w) {
  check_packed(w, "weight", w.data.device);
  char* data = w.data.as<char>();
  const int64_t bytes = panel_bytes(w);
  parallel_for(num_panels(w), grain_for(num_panels(w)), [&](int64_t begin, int64_t end) {
    std::memset(data + begin * bytes, 0, (end - begin) * bytes);
  });
  if (w.dtype == DType::i8) std::memset(w.scales.data, 0, w.scales.numel() * sizeof(float));
}

void pack_quantized(PackedWeight& w, int64_t section, int64_t row, int64_t segment, const TensorView& source,
                    const TensorView& scales) {
  check_packed(w, "weight", source.device);
  if (w.dtype != DType::i8) throw TypeError(std::string("weight: expected int8, got ") + dtype_name(w.dtype));
  check_dtype(source, {DType::i8});
  check_rows(w, section, row, segment, source);
  check_dtype(scales, {DType::f32});
  check_shape(scales, {source.shape[0]});
  check_contiguous(scales);
  check_device(scales, source.device);

  const int64_t n = source.shape[0], columns = source.shape[1];
  parallel_for(n, round_up(grain_for(n), kPanel), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const Place at = place(w, section, row + i);
      const int8_t* from = source.as<int8_t>() + i * source.strides[0];
      for (int64_t c = 0; c < columns; ++c) *element<int8_t>(w, at, segment, c) = from[c];
      *scale_of(w, at, segment) = scales.as<float>()[i];
    }
  });
}

void unpack(TensorView& out, TensorView& out_scales, const PackedWeight& w, int64_t section, int64_t row,
            int64_t segment) {
  check_packed(w, "weight", out.device);
  check_rows(w, section, row, segment, out);
  check_dtype(out, {DType::f32, DType::f16, DType::bf16, DType::i8});
  const bool raw = out.dtype == DType::i8;
  if (raw) {
    if (w.dtype != DType::i8) throw TypeError(std::string("out: int8 needs an int8 weight, got ") + dtype_name(w.dtype));
    check_dtype(out_scales, {DType::f32});
    check_shape(out_scales, {out.shape[0]});
    check_contiguous(out_scales);
  }

  const int64_t n = out.shape[0], columns = out.shape[1];
  parallel_for(n, round_up(grain_for(n), kPanel), [&](int64_t begin, int64_t end) {
    float values[kBlock];
    for (int64_t i = begin; i < end; ++i) {
      const Place at = place(w, section, row + i);
      char* to = out.as<char>() + i * out.strides[0] * dtype_bytes(out.dtype);
      if (raw) {
        for (int64_t c = 0; c < columns; ++c) reinterpret_cast<int8_t*>(to)[c] = *element<int8_t>(w, at, segment, c);
        out_scales.as<float>()[i] = *scale_of(w, at, segment);
        continue;
      }
      for (int64_t c = 0; c < columns; c += kBlock) {
        const int64_t count = columns - c < kBlock ? columns - c : kBlock;
        if (w.dtype == DType::i8) {
          const float scale = *scale_of(w, at, segment);
          for (int64_t j = 0; j < count; ++j) values[j] = scale * *element<int8_t>(w, at, segment, c + j);
        } else if (w.dtype == DType::f32) {
          for (int64_t j = 0; j < count; ++j) values[j] = *element<float>(w, at, segment, c + j);
        } else {
          uint16_t narrow[kBlock];
          for (int64_t j = 0; j < count; ++j) narrow[j] = *element<uint16_t>(w, at, segment, c + j);
          kernels().to_f32(values, narrow, w.dtype, count);
        }
        kernels().from_f32(to + c * dtype_bytes(out.dtype), values, out.dtype, count);
      }
    }
  });
}

}  // namespace codegen_fast::cpu
