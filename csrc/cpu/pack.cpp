// Packing, quantisation and their inverses: with pack_groups.cpp the only code that writes or reads the order of elements
// in a weight.
#include <atomic>

#include "checks.h"
#include "dispatch.h"
#include "packing.h"

namespace codegen_fast::cpu {
namespace {

constexpr int64_t kBlock = 64;  // columns that are converted at a time, on the stack; a multiple of kQuad

// The magnitude from which a finite value rounds to infinity in a narrower type.
float overflow_bound(DType to) {
  if (to == DType::f16) return 65520.0f;
  if (to == DType::bf16) return 3.3961775e38f;  // halfway between the largest bfloat16 and 2^128
  return INFINITY;
}

// round_half_even(v * inverse) for |v * inverse| <= 127: adding 1.5 * 2^23 rounds to the nearest even integer.
void quantize_block(int8_t* q, const float* v, float inverse, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const float shifted = v[i] * inverse + 12582912.0f;
    int32_t bits;
    std::memcpy(&bits, &shifted, 4);
    q[i] = static_cast<int8_t>(bits - 0x4B400000);
  }
}

// Calls f(column, n) for the blocks of a row of `columns`.
template <class F>
void for_blocks(int64_t columns, F&& f) {
  for (int64_t c = 0; c < columns; c += kBlock) f(c, std::min(kBlock, columns - c));
}

// A block of all rows is converted, then written column by column: the panel is filled from its first byte to its last.
template <class T>
Faults pack_panel(const PackedWeight& w, PanelRows at, int64_t segment, const TensorView& source) {
  Faults faults;
  const float bound = source.dtype == w.dtype ? INFINITY : overflow_bound(w.dtype);
  T* data = columns_of<T>(w, at.panel, segment) + at.first_lane;
  for_blocks(source.shape[1], [&](int64_t column, int64_t n) {
    T block[kPanel][kBlock];
    float values[kBlock];
    for (int64_t r = 0; r < at.lanes; ++r) {
      const char* from = row_of(source, at.first_row + r) + column * dtype_bytes(source.dtype);
      kernels().to_f32(values, from, source.dtype, n);
      faults += count_faults(values, n, bound);
      if (source.dtype == w.dtype) std::memcpy(block[r], from, n * sizeof(T));
      else kernels().from_f32(block[r], values, w.dtype, n);
    }
    for (int64_t i = 0; i < n; ++i)
      for (int64_t r = 0; r < at.lanes; ++r) data[(column + i) * kPanel + r] = block[r][i];
  });
  return faults;
}

Faults quantize_panel(const PackedWeight& w, PanelRows at, int64_t segment, const TensorView& source) {
  Faults faults;
  int8_t* data = columns_of<int8_t>(w, at.panel, segment);
  float* scales = scales_of(w, at, segment);
  float inverse[kPanel], values[kBlock];
  for (int64_t r = 0; r < at.lanes; ++r) {
    const char* from = row_of(source, at.first_row + r);
    int32_t largest = 0;
    for_blocks(source.shape[1], [&](int64_t column, int64_t n) {
      kernels().to_f32(values, from + column * dtype_bytes(source.dtype), source.dtype, n);
      faults += count_faults(values, n, INFINITY);
      largest = std::max(largest, largest_bits(values, n));
    });
    const float amax = as_float(largest);
    scales[r] = amax / 127.0f;
    inverse[r] = amax > 0.0f ? 127.0f / amax : 0.0f;
    if (!(inverse[r] <= 3.402823466e38f)) inverse[r] = 0.0f;  // amax below about 3.7e-37: as good as zero
  }
  if (faults.non_finite) return faults;
  for_blocks(source.shape[1], [&](int64_t column, int64_t n) {
    for (int64_t r = 0; r < at.lanes; ++r) {
      kernels().to_f32(values, row_of(source, at.first_row + r) + column * dtype_bytes(source.dtype), source.dtype, n);
      int8_t q[kBlock];
      quantize_block(q, values, inverse[r], n);
      put_quads(data, at.first_lane + r, column, q, n);
    }
  });
  return faults;
}

template <class T>
void unpack_panel(TensorView& out, const PackedWeight& w, PanelRows at, int64_t segment) {
  const T* data = columns_of<T>(w, at.panel, segment) + at.first_lane * (sizeof(T) == 1 ? kQuad : 1);
  for_blocks(out.shape[1], [&](int64_t column, int64_t n) {
    for (int64_t r = 0; r < at.lanes; ++r) {
      char* to = row_of(out, at.first_row + r) + column * dtype_bytes(out.dtype);
      T stored[kBlock];
      float values[kBlock];
      for (int64_t i = 0; i < n; ++i) {
        if constexpr (sizeof(T) == 1) stored[i] = data[(column + i) / kQuad * kQuad * kPanel + r * kQuad + i % kQuad];
        else stored[i] = data[(column + i) * kPanel + r];
      }
      if (out.dtype == w.dtype) {
        std::memcpy(to, stored, n * sizeof(T));
        continue;
      }
      if constexpr (sizeof(T) == 1)
        for (int64_t i = 0; i < n; ++i) values[i] = scales_of(w, at, segment)[r] * stored[i];
      else
        kernels().to_f32(values, stored, w.dtype, n);
      kernels().from_f32(to, values, out.dtype, n);
    }
  });
}

}  // namespace

int64_t packed_weight_bytes(const PackedWeight& w) { return num_panels(w) * panel_bytes(w); }

int64_t activation_group(const PackedWeight& w) { return group_of(w); }
int64_t activation_padding() { return kQuad; }

int64_t packed_weight_scales(const PackedWeight& w) {
  return w.dtype == DType::i8 ? w.num_segments * num_panels(w) * kPanel : 0;
}

void pack(PackedWeight& w, int64_t section, int64_t row, int64_t segment, const TensorView& source,
          TensorView& status) {
  check_pack(kRules, w, section, row, segment, source, status);

  for_panels(w, section, row, source.shape[0], [&](PanelRows at) {
    const Faults f = is_grouped(w)           ? quantize_panel_in_groups(w, at, segment, source)
                     : w.dtype == DType::i8  ? quantize_panel(w, at, segment, source)
                     : w.dtype == DType::f32 ? pack_panel<float>(w, at, segment, source)
                                             : pack_panel<uint16_t>(w, at, segment, source);
    int32_t* s = status.as<int32_t>();
    if (f.non_finite) std::atomic_ref<int32_t>(s[0]).fetch_add(f.non_finite);
    if (f.overflowed) std::atomic_ref<int32_t>(s[1]).fetch_add(f.overflowed);
  });
}

void clear_packed(PackedWeight& w) {
  check_packed(kRules, w, "weight", w.data.device);
  char* data = w.data.as<char>();
  const int64_t bytes = panel_bytes(w);
  parallel_for(num_panels(w), grain_for(num_panels(w)), [&](int64_t begin, int64_t end) {
    std::memset(data + begin * bytes, 0, (end - begin) * bytes);
  });
  if (w.dtype == DType::i8) std::memset(w.scales.data, 0, w.scales.numel() * sizeof(float));
}

void pack_quantized(PackedWeight& w, int64_t section, int64_t row, int64_t segment, const TensorView& source,
                    const TensorView& scales) {
  check_pack_quantized(kRules, w, section, row, segment, source, scales);

  for_panels(w, section, row, source.shape[0], [&](PanelRows at) {
    if (is_grouped(w)) return put_panel_in_groups(w, at, segment, source, scales);
    int8_t* data = columns_of<int8_t>(w, at.panel, segment);
    for (int64_t r = 0; r < at.lanes; ++r) {
      put_quads(data, at.first_lane + r, 0, reinterpret_cast<const int8_t*>(row_of(source, at.first_row + r)),
                source.shape[1]);
      scales_of(w, at, segment)[r] = scales.as<float>()[at.first_row + r];
    }
  });
}

void unpack(TensorView& out, TensorView& out_scales, const PackedWeight& w, int64_t section, int64_t row,
            int64_t segment) {
  check_unpack(kRules, out, out_scales, w, section, row, segment);
  const bool raw = out.dtype == DType::i8;

  for_panels(w, section, row, out.shape[0], [&](PanelRows at) {
    if (is_grouped(w)) return unpack_panel_in_groups(out, out_scales, w, at, segment);
    if (w.dtype == DType::i8) unpack_panel<int8_t>(out, w, at, segment);
    else if (w.dtype == DType::f32) unpack_panel<float>(out, w, at, segment);
    else unpack_panel<uint16_t>(out, w, at, segment);
    if (raw)
      for (int64_t r = 0; r < at.lanes; ++r)
        out_scales.as<float>()[at.first_row + r] = scales_of(w, at, segment)[r];
  });
}

}  // namespace codegen_fast::cpu
