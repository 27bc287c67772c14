// Packing of weights that are quantised in groups of columns, int8 and int4, and its inverse. layout.h says how a panel
// lies: scales of a group, then its codes.
#include "dispatch.h"
#include "packing.h"

namespace codegen_fast::cpu {
namespace {

constexpr int64_t kLargestGroup = 128;
constexpr int64_t kBlock = 128;  // columns that are converted at a time, on the stack; a multiple of every group

// Group `group` of a segment in a panel: its columns, and where its scales and its codes lie.
struct Group {
  int64_t first_column, columns;
  uint16_t* scales;  // (kPanel) bfloat16
  uint8_t* codes;    // quads of bytes, or pairs of quads of nibbles

  Group(const PackedWeight& w, int64_t panel, int64_t segment, int64_t group)
      : first_column(group * w.group_cols),
        columns(std::min(w.group_cols, w.segment_cols[segment] - first_column)),
        scales(reinterpret_cast<uint16_t*>(columns_of<char>(w, panel, segment) + group * group_bytes(w, w.group_cols))),
        codes(reinterpret_cast<uint8_t*>(scales + kPanel)) {}
};

int64_t weight_groups(const PackedWeight& w, int64_t segment) {
  return (w.segment_cols[segment] + w.group_cols - 1) / w.group_cols;
}

typedef float four __attribute__((vector_size(16), aligned(4), may_alias));

// to (n, kPanel) <- from (lanes, n), whose rows lie kBlock apart.
void transpose(float* to, const float* from, int64_t lanes, int64_t n) {
  int64_t r = 0;
#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)  // four by four, in registers
  if (n % 4 == 0)
    for (; r + 4 <= lanes; r += 4)
      for (int64_t i = 0; i < n; i += 4) {
        auto row = [&](int64_t k) { return *reinterpret_cast<const four*>(from + (r + k) * kBlock + i); };
        auto put = [&](int64_t k, four v) { *reinterpret_cast<four*>(to + (i + k) * kPanel + r) = v; };
        const four a = row(0), b = row(1), c = row(2), d = row(3);
        const four ab_low = __builtin_shufflevector(a, b, 0, 4, 1, 5), ab_high = __builtin_shufflevector(a, b, 2, 6, 3, 7);
        const four cd_low = __builtin_shufflevector(c, d, 0, 4, 1, 5), cd_high = __builtin_shufflevector(c, d, 2, 6, 3, 7);
        put(0, __builtin_shufflevector(ab_low, cd_low, 0, 1, 4, 5));
        put(1, __builtin_shufflevector(ab_low, cd_low, 2, 3, 6, 7));
        put(2, __builtin_shufflevector(ab_high, cd_high, 0, 1, 4, 5));
        put(3, __builtin_shufflevector(ab_high, cd_high, 2, 3, 6, 7));
      }
#endif
#endif
  for (; r < lanes; ++r)
    for (int64_t i = 0; i < n; ++i) to[i * kPanel + r] = from[r * kBlock + i];
}

// Puts q (n, kPanel) into lanes of a group's nibbles; columns of its last pair that do not exist become q = 0.
void put_nibbles(uint8_t* nibbles, const int8_t* q, int64_t n, int64_t first_lane, int64_t lanes) {
  auto column = [&](int64_t i, int64_t lane) { return (i < n ? q[i * kPanel + lane] : 0) + 8; };
  for (int64_t i = 0; i < n; i += kPair)
    for (int64_t b = 0; b < kQuad; ++b) {
      uint8_t* to = nibbles + i / 2 * kPanel + b;
      for (int64_t lane = first_lane; lane < first_lane + lanes; ++lane)
        to[lane * kQuad] = static_cast<uint8_t>(column(i + b, lane) | column(i + kQuad + b, lane) << 4);
    }
}

int8_t code_at(const PackedWeight& w, const Group& g, int64_t column, int64_t lane) {
  if (w.dtype == DType::i8)
    return static_cast<int8_t>(g.codes[column / kQuad * kQuad * kPanel + lane * kQuad + column % kQuad]);
  const uint8_t both = g.codes[column / kPair * (kPanel * kQuad) + lane * kQuad + column % kQuad];
  return static_cast<int8_t>((column % kPair < kQuad ? both & 15 : both >> 4) - 8);
}

float scale_at(const Group& g, int64_t lane) { return as_float(static_cast<int32_t>(g.scales[lane]) << 16); }

}  // namespace

Faults quantize_panel_in_groups(const PackedWeight& w, PanelRows at, int64_t segment, const TensorView& source) {
  Faults faults;
  const bool is_i8 = w.dtype == DType::i8;
  float row_sums[kPanel] = {};
  float values[kPanel][kBlock];  // of the call's rows
  alignas(64) float columns[kLargestGroup * kPanel];
  if (at.lanes < kPanel) std::memset(columns, 0, sizeof columns);
  for (int64_t block = 0; block < w.segment_cols[segment]; block += kBlock) {
    const int64_t width = std::min(kBlock, w.segment_cols[segment] - block);
    Faults found;
    for (int64_t r = 0; r < at.lanes; ++r) {
      kernels().to_f32(values[r], row_of(source, at.first_row + r) + block * dtype_bytes(source.dtype), source.dtype, width);
      found += count_faults(values[r], width, INFINITY);
    }
    faults += found;
    if (found.non_finite) continue;
    for (int64_t first = 0; first < width; first += w.group_cols) {
      const Group g(w, at.panel, segment, (block + first) / w.group_cols);
      transpose(columns + at.first_lane, &values[0][first], at.lanes, g.columns);
      alignas(64) int8_t q[kLargestGroup * kPanel];
      uint16_t scales[kPanel];
      int32_t sums[kPanel];
      const bool whole = is_i8 && at.lanes == kPanel;  // its codes go to their place at once
      if (is_i8) kernels().quantize_i8(whole ? reinterpret_cast<int8_t*>(g.codes) : q, scales, sums, columns, g.columns);
      else kernels().quantize_i4(q, scales, columns, g.columns);
      std::copy_n(scales + at.first_lane, at.lanes, g.scales + at.first_lane);
      if (!is_i8) {
        put_nibbles(g.codes, q, g.columns, at.first_lane, at.lanes);
        continue;
      }
      if (!whole)
        for (int64_t i = 0; i < g.columns; i += kQuad)
          std::memcpy(g.codes + i * kPanel + at.first_lane * kQuad, q + i * kPanel + at.first_lane * kQuad, at.lanes * kQuad);
      for (int64_t lane = at.first_lane; lane < at.first_lane + at.lanes; ++lane)
        row_sums[lane] += scale_at(g, lane) * static_cast<float>(sums[lane]);
    }
  }
  if (is_i8) std::copy_n(row_sums + at.first_lane, at.lanes, scales_of(w, at, segment));
  return faults;
}

void put_panel_in_groups(const PackedWeight& w, PanelRows at, int64_t segment, const TensorView& source,
                         const TensorView& scales) {
  const int64_t groups = weight_groups(w, segment);
  float row_sums[kPanel] = {};
  for (int64_t group = 0; group < groups; ++group) {
    const Group g(w, at.panel, segment, group);
    int8_t q[kLargestGroup * kPanel];
    for (int64_t r = 0; r < at.lanes; ++r) {
      const int8_t* from = reinterpret_cast<const int8_t*>(row_of(source, at.first_row + r)) + g.first_column;
      const int64_t lane = at.first_lane + r;
      int32_t sum = 0;
      for (int64_t i = 0; i < g.columns; ++i) sum += from[i];
      if (w.dtype == DType::i8) put_quads(reinterpret_cast<int8_t*>(g.codes), lane, 0, from, g.columns);
      else
        for (int64_t i = 0; i < g.columns; ++i) q[i * kPanel + lane] = from[i];
      uint32_t bits;
      std::memcpy(&bits, scales.as<float>() + (at.first_row + r) * groups + group, 4);
      g.scales[lane] = static_cast<uint16_t>(bits >> 16);
      row_sums[lane] += scale_at(g, lane) * static_cast<float>(sum);
    }
    if (w.dtype == DType::i4) put_nibbles(g.codes, q, g.columns, at.first_lane, at.lanes);
  }
  if (w.dtype == DType::i8) std::copy_n(row_sums + at.first_lane, at.lanes, scales_of(w, at, segment));
}

void unpack_panel_in_groups(TensorView& out, TensorView& out_scales, const PackedWeight& w, PanelRows at,
                            int64_t segment) {
  const int64_t groups = weight_groups(w, segment);
  for (int64_t group = 0; group < groups; ++group) {
    const Group g(w, at.panel, segment, group);
    for (int64_t r = 0; r < at.lanes; ++r) {
      const int64_t lane = at.first_lane + r;
      const float scale = scale_at(g, lane);
      char* to = row_of(out, at.first_row + r) + g.first_column * dtype_bytes(out.dtype);
      if (out.dtype == DType::i8) {
        for (int64_t i = 0; i < g.columns; ++i) reinterpret_cast<int8_t*>(to)[i] = code_at(w, g, i, lane);
        out_scales.as<float>()[(at.first_row + r) * groups + group] = scale;
        continue;
      }
      float values[kLargestGroup];
      for (int64_t i = 0; i < g.columns; ++i) values[i] = scale * code_at(w, g, i, lane);
      kernels().from_f32(to, values, out.dtype, g.columns);
    }
  }
}

}  // namespace codegen_fast::cpu
