// c += a * panel with int8 weights in groups, whose bfloat16 scales stand in the stream, and activations in the same
// groups: exact int32 dot products of a group, scaled and added in float in their order. Every instruction set gives
// the same integers.
#pragma once

#include "products_i8.h"

namespace codegen_fast::cpu::CODEGEN_FAST_ISA {

// Rows that share a pass over a panel. Every group's sums end in totals, so both want registers: on AVX-512 tiles of 6
// have them and reach 182 GMAC/s a core of Zen 4 with many rows, where tiles of 8 reach 173 and of 12 164. A batch of 7
// or 8 is one tile all the same: a second pass over a panel would leave memory idle.
#if defined(__AVX512F__)
constexpr int kRowTileI8g = 6, kRowsTogetherI8g = 8;
#elif defined(CODEGEN_FAST_NEON) || defined(__AVX2__)
constexpr int kRowTileI8g = 2, kRowsTogetherI8g = 2;
#else
constexpr int kRowTileI8g = 1, kRowsTogetherI8g = 1;
#endif

template <int Rows>
static inline void int8_groups_tile(float* c, const QuantizedRows& rows, int64_t first_row, const char* panel,
                                    int64_t k) {
  static_assert(kFineGroup % kQuad == 0 && kFineGroup == kSumColumns);
  const int8_t* q = rows.q + first_row * rows.q_stride;
  const float* q_scales = rows.scales + first_row * rows.groups_stride;
  const int32_t* q_sums = rows.sums + first_row * rows.groups_stride;
  vreg totals[Rows][kVectors];
  for (int m = 0; m < Rows; ++m)
    for (int j = 0; j < kVectors; ++j) totals[m][j] = load(c + m * kPanel + j * kWidth);
  for (int64_t column = 0; column < k; column += kFineGroup, ++q_scales, ++q_sums) {
    const bfloat* scales = reinterpret_cast<const bfloat*>(panel);
    prefetch_weights(panel + kPrefetchBytes);
    panel += kPanel * sizeof(bfloat);
    int32_t offsets[Rows];
    for (int m = 0; m < Rows; ++m) offsets[m] = q_sums[m * rows.groups_stride];
    ireg sums[Rows][kVectors];
    const int8_t* w = reinterpret_cast<const int8_t*>(panel);
    if (k - column >= kFineGroup) dot_quads<Rows, kFineGroup / kQuad>(sums, q + column, rows.q_stride, offsets, w);
    else dot_quads<Rows>(sums, q + column, rows.q_stride, offsets, w, (k - column + kQuad - 1) / kQuad);
    panel += kPanel * kFineGroup;
#pragma GCC unroll 8
    for (int j = 0; j < kVectors; ++j) {
      const vreg scale = load(scales + j * kWidth);
#pragma GCC unroll 8
      for (int m = 0; m < Rows; ++m)
        totals[m][j] = fma(__builtin_convertvector(sums[m][j], vreg),
                           scale * set1(q_scales[m * rows.groups_stride]), totals[m][j]);
    }
  }
  for (int m = 0; m < Rows; ++m)
    for (int j = 0; j < kVectors; ++j) store(c + m * kPanel + j * kWidth, totals[m][j]);
}

static void panel_product_i8g(float* c, const QuantizedRows& rows, const char* panel, int64_t k) {
  auto tile = [&](int64_t m, auto height) { int8_groups_tile<height>(c + m * kPanel, rows, m, panel, k); };
  if (rows.count <= kRowsTogetherI8g) for_tiles<kRowsTogetherI8g>(rows.count, tile);
  else for_tiles<kRowTileI8g>(rows.count, tile);
}

}  // namespace codegen_fast::cpu::CODEGEN_FAST_ISA
