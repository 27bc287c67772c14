// c += a * panel with int4 weights and quantised activations: exact int32 dot products of the columns that share both
// scales, which are scaled and added in float in their order. Every instruction set gives the same integers.
#pragma once

#include "products_i8.h"

namespace codegen_fast::cpu::CODEGEN_FAST_ISA {

// Rows that share a pass over a panel. On AVX-512 some totals rest in memory between groups, as in products_i8.h, and
// more often: of 6 to 14 rows, 8 give batches of 8 one pass and are within 1% of the fastest for many. Blocks of
// columns, as float_panel has them, made products of 64 and 256 rows 1 to 9% slower: a panel is small.
#if defined(__AVX512F__)
constexpr int kRowTileI4 = 8;
#elif defined(__AVX2__) || defined(CODEGEN_FAST_NEON)
constexpr int kRowTileI4 = 2;  // AVX2: 16-bit sums, two quads of weights and of activations: all 16 registers
#else
constexpr int kRowTileI4 = 1;
#endif

// sums[m][j] = dot products of `pairs` pairs of quads with q - 8; offsets[m] is the sum of row m's codes over these
// columns. Nibbles are unsigned, which is what the instructions want, and 8 times a row's codes go off.
template <int Rows>
static inline __attribute__((always_inline)) void dot_pairs(ireg (&sums)[Rows][kVectors], const int8_t* q,
                                                            int64_t q_stride, const int32_t* offsets,
                                                            const uint8_t* panel, int64_t pairs) {
  for (int m = 0; m < Rows; ++m)
    for (int j = 0; j < kVectors; ++j) sums[m][j] = ireg{} - 8 * offsets[m];
#if defined(__AVX2__) && !defined(__AVX512VNNI__) && !defined(__AVXVNNI__)
  // A pair of products is within 2 * 15 * 127 and eight of them within 30480: 32 columns are summed in 16 bits.
  constexpr int64_t kBlock = 4;
  const __m256i low_half = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1);
  for (int64_t first = 0; first < pairs; first += kBlock) {
    const int64_t end = first + kBlock < pairs ? first + kBlock : pairs;
    __m256i short_sums[Rows][kVectors];
    for (int m = 0; m < Rows; ++m)
      for (int j = 0; j < kVectors; ++j) short_sums[m][j] = _mm256_setzero_si256();
    for (int64_t i = first; i < end; ++i) {
      const uint8_t* w = panel + i * kPanel * kQuad;
      for (int b = 0; b < kPanel * kQuad; b += 64) prefetch_weights(w + kPrefetchBytes + b);
      __m256i x0[Rows], x1[Rows];
      for (int m = 0; m < Rows; ++m) {
        x0[m] = _mm256_set1_epi32(quad_at(q + m * q_stride + i * kPair));
        x1[m] = _mm256_set1_epi32(quad_at(q + m * q_stride + i * kPair + kQuad));
      }
#pragma GCC unroll 4
      for (int j = 0; j < kVectors; ++j) {
        const __m256i both = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(w + j * 32));
        const __m256i low = _mm256_and_si256(both, low_half);
        const __m256i high = _mm256_and_si256(_mm256_srli_epi16(both, 4), low_half);
#pragma GCC unroll 4
        for (int m = 0; m < Rows; ++m) {
          const __m256i of_low = _mm256_maddubs_epi16(low, x0[m]), of_high = _mm256_maddubs_epi16(high, x1[m]);
          short_sums[m][j] = _mm256_add_epi16(short_sums[m][j], _mm256_add_epi16(of_low, of_high));
        }
      }
    }
    for (int m = 0; m < Rows; ++m)
      for (int j = 0; j < kVectors; ++j)
        sums[m][j] = reinterpret_cast<ireg>(_mm256_add_epi32(reinterpret_cast<__m256i>(sums[m][j]),
                                                             _mm256_madd_epi16(short_sums[m][j], ones)));
  }
#else
  for (int64_t i = 0; i < pairs; ++i) {
    const uint8_t* w = panel + i * kPanel * kQuad;
    const int8_t* x = q + i * kPair;
    for (int b = 0; b < kPanel * kQuad; b += 64) prefetch_weights(w + kPrefetchBytes + b);
    if constexpr (kVectors <= 2) {  // the panel's vectors stay, rows pass by
      Quads low[kVectors], high[kVectors];
      for (int j = 0; j < kVectors; ++j) load_nibbles(low[j], high[j], w + j * kWidth * kQuad);
#pragma GCC unroll 16
      for (int m = 0; m < Rows; ++m) {
        const ireg first = ireg{} + quad_at(x + m * q_stride), second = ireg{} + quad_at(x + m * q_stride + kQuad);
        for (int j = 0; j < kVectors; ++j) sums[m][j] = dot(dot(sums[m][j], low[j], first), high[j], second);
      }
    } else {
      ireg first[Rows], second[Rows];
      for (int m = 0; m < Rows; ++m) {
        first[m] = ireg{} + quad_at(x + m * q_stride);
        second[m] = ireg{} + quad_at(x + m * q_stride + kQuad);
      }
#pragma GCC unroll 8
      for (int j = 0; j < kVectors; ++j) {
        Quads low, high;
        load_nibbles(low, high, w + j * kWidth * kQuad);
#pragma GCC unroll 4
        for (int m = 0; m < Rows; ++m) sums[m][j] = dot(dot(sums[m][j], low, first[m]), high, second[m]);
      }
    }
  }
#endif
}

// Span: columns of an integer sum, those of a group of weights or of activations, whichever is smaller.
template <int Span, int Rows>
static inline void int4_tile(float* c, const QuantizedRows& rows, int64_t first_row, const uint8_t* panel,
                             int64_t group, int64_t k) {
  constexpr int64_t sums_per_group = kGroup / kSumColumns;
  static_assert(Span == kSumColumns || Span == kGroup, "quantize() sums the codes of kSumColumns");
  const int8_t* q = rows.q + first_row * rows.q_stride;
  const float* q_scales = rows.scales + first_row * rows.groups_stride;
  const int32_t* q_sums = rows.sums + first_row * rows.groups_stride * sums_per_group;
  vreg totals[Rows][kVectors];
  for (int m = 0; m < Rows; ++m)
    for (int j = 0; j < kVectors; ++j) totals[m][j] = load(c + m * kPanel + j * kWidth);
  vreg scales[kVectors] = {};
  for (int64_t column = 0; column < k; column += Span) {
    if (column % group == 0) {
      const bfloat* of = reinterpret_cast<const bfloat*>(panel);
      for (int j = 0; j < kVectors; ++j) scales[j] = load(of + j * kWidth);
      panel += kPanel * sizeof(bfloat);
    }
    int32_t offsets[Rows];
    for (int m = 0; m < Rows; ++m) {
      const int32_t* of = q_sums + m * rows.groups_stride * sums_per_group + column / kSumColumns;
      offsets[m] = Span == kSumColumns ? of[0] : of[0] + of[1];
    }
    ireg sums[Rows][kVectors];
    const int64_t left = k - column;
    if (left >= Span) dot_pairs<Rows>(sums, q + column, rows.q_stride, offsets, panel, Span / kPair);
    else dot_pairs<Rows>(sums, q + column, rows.q_stride, offsets, panel, (left + kPair - 1) / kPair);
    panel += kPanel * Span / 2;
    for (int m = 0; m < Rows; ++m) {
      const vreg scale = set1(q_scales[m * rows.groups_stride + column / kGroup]);
      for (int j = 0; j < kVectors; ++j)
        totals[m][j] = fma(__builtin_convertvector(sums[m][j], vreg), scales[j] * scale, totals[m][j]);
    }
  }
  for (int m = 0; m < Rows; ++m)
    for (int j = 0; j < kVectors; ++j) store(c + m * kPanel + j * kWidth, totals[m][j]);
}

static void panel_product_i4(float* c, const QuantizedRows& rows, const uint8_t* panel, int64_t group, int64_t k) {
  for_tiles<kRowTileI4>(rows.count, [&](int64_t m, auto height) {
    if (group == kSumColumns) int4_tile<kSumColumns, height>(c + m * kPanel, rows, m, panel, group, k);
    else int4_tile<kGroup, height>(c + m * kPanel, rows, m, panel, group, k);
  });
}

}  // namespace codegen_fast::cpu::CODEGEN_FAST_ISA
