// c += a * panel with int8 weights and quantised activations: exact int32 dot products in groups of kGroup columns,
// which are scaled and added in float in their order. Every instruction set gives the same integers.
#pragma once

#include "products.h"

namespace codegen_fast::cpu::CODEGEN_FAST_ISA {

// Rows that share a pass over a panel; integers and totals both take registers, so not all of the latter have one.
#if defined(__AVX512F__)
constexpr int kRowTileI8 = 12;
#elif defined(CODEGEN_FAST_NEON) || defined(__AVXVNNI__)
constexpr int kRowTileI8 = 2;
#else
constexpr int kRowTileI8 = kRowTile;
#endif

static inline int32_t quad_at(const int8_t* q) {
  int32_t quad;
  std::memcpy(&quad, q, 4);
  return quad;
}

// sums[m][j] += the products of one quad of columns; what lies `ahead` bytes behind it is asked for, unless that is 0.
template <int Rows>
static inline __attribute__((always_inline)) void add_quad(ireg (&sums)[Rows][kVectors], const int8_t* q,
                                                           int64_t q_stride, const int8_t* w, int64_t ahead) {
  if (ahead)
    for (int b = 0; b < kPanel * kQuad; b += 64) prefetch_weights(w + ahead + b);
  if constexpr (kVectors <= 2) {  // the panel's vectors stay, rows pass by
    Quads v[kVectors];
    for (int j = 0; j < kVectors; ++j) v[j] = load_quads(w + j * kWidth * kQuad);
#pragma GCC unroll 16
    for (int m = 0; m < Rows; ++m) {
      const ireg x = ireg{} + quad_at(q + m * q_stride);
      for (int j = 0; j < kVectors; ++j) sums[m][j] = dot(sums[m][j], v[j], x);
    }
  } else {
    ireg x[Rows];
    for (int m = 0; m < Rows; ++m) x[m] = ireg{} + quad_at(q + m * q_stride);
#pragma GCC unroll 8
    for (int j = 0; j < kVectors; ++j) {
      const Quads wj = load_quads(w + j * kWidth * kQuad);
#pragma GCC unroll 4
      for (int m = 0; m < Rows; ++m) sums[m][j] = dot(sums[m][j], wj, x[m]);
    }
  }
}

// sums[m][j] = dot products of `quads` quads of columns; offsets[m] is the sum of row m's codes over these columns.
template <int Rows>
static inline __attribute__((always_inline)) void dot_quads(ireg (&sums)[Rows][kVectors], const int8_t* q,
                                                            int64_t q_stride, const int32_t* offsets,
                                                            const int8_t* panel, int64_t quads) {
  for (int m = 0; m < Rows; ++m)
    for (int j = 0; j < kVectors; ++j) sums[m][j] = ireg{} - kQuadOffset * offsets[m];
  // A row alone does so little with a quad that the loop itself would cost a twentieth.
  if constexpr (Rows == 1) {
#pragma GCC unroll 16
    for (int64_t i = 0; i < quads; ++i)
      add_quad<Rows>(sums, q + i * kQuad, q_stride, panel + i * kPanel * kQuad, kPrefetchBytes);
  } else {
    for (int64_t i = 0; i < quads; ++i)
      add_quad<Rows>(sums, q + i * kQuad, q_stride, panel + i * kPanel * kQuad, kPrefetchBytes);
  }
}

template <int Rows>
static inline void int8_tile(float* c, const QuantizedRows& rows, int64_t first_row, const int8_t* panel,
                             const float* scales, int64_t k) {
  constexpr int64_t group_quads = kGroup / kQuad, sums_per_group = kGroup / kSumColumns;
  const int64_t quads = (k + kQuad - 1) / kQuad;
  const int8_t* q = rows.q + first_row * rows.q_stride;
  const float* q_scales = rows.scales + first_row * rows.groups_stride;
  const int32_t* q_sums = rows.sums + first_row * rows.groups_stride * sums_per_group;
  vreg totals[Rows][kVectors] = {};
  for (int64_t first = 0, group = 0; first < quads; first += group_quads, ++group) {
    int32_t offsets[Rows];
    for (int m = 0; m < Rows; ++m) {
      const int32_t* of = q_sums + (m * rows.groups_stride + group) * sums_per_group;
      offsets[m] = of[0] + of[1];
    }
    ireg sums[Rows][kVectors];
    const int8_t* from = q + first * kQuad;
    const int8_t* w = panel + first * kPanel * kQuad;
    if (quads - first >= group_quads) dot_quads<Rows>(sums, from, rows.q_stride, offsets, w, group_quads);
    else dot_quads<Rows>(sums, from, rows.q_stride, offsets, w, quads - first);
    for (int m = 0; m < Rows; ++m) {
      const vreg scale = set1(q_scales[m * rows.groups_stride + group]);
      for (int j = 0; j < kVectors; ++j)
        totals[m][j] = fma(__builtin_convertvector(sums[m][j], vreg), scale, totals[m][j]);
    }
  }
  for (int m = 0; m < Rows; ++m)
    for (int j = 0; j < kVectors; ++j)
      store(c + m * kPanel + j * kWidth,
            fma(totals[m][j], load(scales + j * kWidth), load(c + m * kPanel + j * kWidth)));
}

static void panel_product_i8(float* c, const QuantizedRows& rows, const int8_t* panel, const float* scales,
                             int64_t k) {
  static_assert(kGroup == 2 * kSumColumns);
  for_tiles<kRowTileI8>(rows.count, [&](int64_t m, auto height) {
    int8_tile<height>(c + m * kPanel, rows, m, panel, scales, k);
  });
}

}  // namespace codegen_fast::cpu::CODEGEN_FAST_ISA
