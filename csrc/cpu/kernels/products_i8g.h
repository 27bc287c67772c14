// c += a * panel with int8 weights in groups, whose bfloat16 scales stand in the stream, and activations in the same
// groups: exact int32 dot products of a group, scaled and added in float in their order. Every instruction set gives
// the same integers.
#pragma once

#include "products_i8.h"
#include "scale_terms.h"

namespace codegen_fast::cpu::CODEGEN_FAST_ISA {

// Rows that share a pass over the weights. Every group's sums end in totals, so both want registers: on AVX-512 tiles of
// 6 have them and reach 182 GMAC/s a core of Zen 4, where tiles of 8 reach 95 to 173 and of 12 164; with scales added, where
// totals rest in memory and the sums of two groups have the registers, 198. Of 5 to 8 rows two
// tiles keep pace with memory (8 rows: 38 GB/s of 58), and one does not (6 rows: 26).
#if defined(__AVX512F__)
constexpr int kRowTileI8g = 6, kFewRowsI8g = 4;
#elif defined(CODEGEN_FAST_NEON) || defined(__AVX2__)
constexpr int kRowTileI8g = 2, kFewRowsI8g = 2;
#else
constexpr int kRowTileI8g = 1, kFewRowsI8g = 1;
#endif

constexpr int64_t kGroupBytesI8g = kPanel * (2 + kFineGroup);
// Columns after which several tiles have had their turn, so that the later ones find the weights in a cache. Meanwhile
// the first two ask for the next columns, half of the lines each: memory would rest else.
constexpr int64_t kColumnBlockI8g = 2048;
constexpr int64_t kBlockBytesI8g = kColumnBlockI8g / kFineGroup * kGroupBytesI8g;

// Which lines a tile asks for: those a little ahead, or of the next block those of even or odd quads.
enum class Ask { ahead, next_even, next_odd, none };
template <Ask A>
constexpr std::integral_constant<Ask, A> asking{};

// Of the groups of a tile, one may be:
enum class Place { first, within, behind_last };
template <Place P>
constexpr std::integral_constant<Place, P> at{};

template <int Rows, Ask What>
static inline void int8_groups_tile(float* c, const QuantizedRows& rows, int64_t first_row, const char* panel,
                                    int64_t first_column, int64_t columns) {
  static_assert(kFineGroup % kQuad == 0 && kFineGroup == kSumColumns);
  constexpr int quads = kFineGroup / kQuad;
  constexpr int64_t even = What == Ask::ahead ? kPrefetchBytes : What == Ask::next_even ? kBlockBytesI8g : 0;
  constexpr int64_t odd = What == Ask::ahead ? kPrefetchBytes : What == Ask::next_odd ? kBlockBytesI8g : 0;
  const int8_t* q = rows.q + first_row * rows.q_stride + first_column;
  const float* q_scales = rows.scales + first_row * rows.groups_stride + first_column / kFineGroup;
  const int32_t* q_sums = rows.sums + first_row * rows.groups_stride + first_column / kFineGroup;
  vreg totals[Rows][kVectors];
  for (int m = 0; m < Rows; ++m)
    for (int j = 0; j < kVectors; ++j) totals[m][j] = load(c + m * kPanel + j * kWidth);
  for (int64_t left = columns; left > 0; left -= kFineGroup, q += kFineGroup, ++q_scales, ++q_sums) {
    if (odd) prefetch_weights(panel + odd);
    // In the order in which they lie: read after the codes, the scales' line throws the hardware's prefetcher off.
    vreg scales[kVectors];
#pragma GCC unroll 8
    for (int j = 0; j < kVectors; ++j) scales[j] = load(reinterpret_cast<const bfloat*>(panel) + j * kWidth);
    const int8_t* w = reinterpret_cast<const int8_t*>(panel) + kPanel * sizeof(bfloat);
    ireg sums[Rows][kVectors];
    for (int m = 0; m < Rows; ++m)
      for (int j = 0; j < kVectors; ++j) sums[m][j] = ireg{} - kQuadOffset * q_sums[m * rows.groups_stride];
    if (left >= kFineGroup) {
#pragma GCC unroll 16
      for (int i = 0; i < quads; ++i)
        add_quad<Rows>(sums, q + i * kQuad, rows.q_stride, w + i * kPanel * kQuad, i % 2 ? odd : even);
    } else {
      for (int i = 0; i * kQuad < left; ++i)
        add_quad<Rows>(sums, q + i * kQuad, rows.q_stride, w + i * kPanel * kQuad, i % 2 ? odd : even);
    }
    panel += kGroupBytesI8g;
#pragma GCC unroll 8
    for (int j = 0; j < kVectors; ++j)
#pragma GCC unroll 8
      for (int m = 0; m < Rows; ++m)
        totals[m][j] = fma(__builtin_convertvector(sums[m][j], vreg),
                           scales[j] * set1(q_scales[m * rows.groups_stride]), totals[m][j]);
  }
  for (int m = 0; m < Rows; ++m)
    for (int j = 0; j < kVectors; ++j) store(c + m * kPanel + j * kWidth, totals[m][j]);
}

// The same with added scales, of whole groups. While a group's dot products are made, the sums of the group
// before are scaled and added, so that no pipe waits; totals rest in c.
template <int Rows, Ask What>
static inline void int8_groups_tile_added(float* c, const QuantizedRows& rows, int64_t first_row, const char* panel,
                                          int64_t first_column, int64_t groups) {
  constexpr int quads = kFineGroup / kQuad;
  static_assert(Rows <= quads);
  constexpr int64_t even = What == Ask::next_even ? kBlockBytesI8g : 0, odd = What == Ask::next_odd ? kBlockBytesI8g : 0;
  const int8_t* q = rows.q + first_row * rows.q_stride + first_column;
  const ScaledGroup* scaled_groups = rows.scaled + first_row * rows.groups_stride + first_column / kFineGroup;
  const int64_t q_stride = rows.q_stride, groups_stride = rows.groups_stride;

  // The next group's sums. `before`, those of the group before it, go into c meanwhile, unless this is the first group.
  auto group = [&](ireg (&sums)[Rows][kVectors], const ireg (&before)[Rows][kVectors], auto place) {
    constexpr bool dots = place != Place::behind_last, finish = place != Place::first;
    vreg scales[kVectors];
    if constexpr (finish)
      for (int j = 0; j < kVectors; ++j)
        scales[j] = load(reinterpret_cast<const bfloat*>(panel - kGroupBytesI8g) + j * kWidth);
    if constexpr (dots) {
      if (odd) prefetch_weights(panel + odd);
      for (int m = 0; m < Rows; ++m)
        for (int j = 0; j < kVectors; ++j) sums[m][j] = ireg{} + scaled_groups[m * groups_stride].start;
    }
    const int8_t* w = reinterpret_cast<const int8_t*>(panel) + kPanel * sizeof(bfloat);
#pragma GCC unroll 16
    for (int i = 0; i < quads; ++i) {
      if constexpr (dots) add_quad<Rows>(sums, q + i * kQuad, q_stride, w + i * kPanel * kQuad, i % 2 ? odd : even);
      if constexpr (finish)
        if (i < Rows) {
          const uint32_t* terms = scaled_groups[i * groups_stride - 1].terms;
          float* totals = c + i * kPanel;
          asm volatile("" : "+r"(totals));  // they are read now and not before: the sums want the registers
#pragma GCC unroll 8
          for (int j = 0; j < kVectors; ++j) {
            float* total = totals + j * kWidth;
            store(total, fma(__builtin_convertvector(before[i][j], vreg), scaled(scales[j], terms), load(total)));
          }
        }
    }
    panel += kGroupBytesI8g, q += kFineGroup, ++scaled_groups;
  };
  ireg a[Rows][kVectors], b[Rows][kVectors];
  group(a, a, at<Place::first>);
  for (int64_t left = groups - 1;; left -= 2) {
    if (left == 0) return group(b, a, at<Place::behind_last>);
    group(b, a, at<Place::within>);
    if (left == 1) return group(a, b, at<Place::behind_last>);
    group(a, b, at<Place::within>);
  }
}

// Rows in tiles of at most Most.
template <int Most>
static void product_i8g_in_tiles(float* c, const QuantizedRows& rows, const char* panel, int64_t k) {
  for (int64_t column = 0; column < k; column += kColumnBlockI8g, panel += kBlockBytesI8g) {
    const int64_t columns = k - column < kColumnBlockI8g ? k - column : kColumnBlockI8g;
    const int64_t whole = columns / kFineGroup;
    const bool adds = kAddsScales && rows.scaled && whole > 0 && weights_add(panel, whole, kGroupBytesI8g);
    int tile = 0;
    for_tiles<Most>(rows.count, [&](int64_t m, auto height) {
      auto multiply = [&](auto ask) {
        float* of = c + m * kPanel;
        int64_t done = 0;
        if constexpr (kAddsScales)
          if (adds && rows_add(rows, m, height)) {
            int8_groups_tile_added<height, ask>(of, rows, m, panel, column, whole);
            done = whole;
          }
        if (done * kFineGroup < columns)
          int8_groups_tile<height, ask>(of, rows, m, panel + done * kGroupBytesI8g, column + done * kFineGroup,
                                        columns - done * kFineGroup);
      };
      switch (tile++) {
        case 0: return multiply(asking<Ask::next_even>);
        case 1: return multiply(asking<Ask::next_odd>);
        default: return multiply(asking<Ask::none>);
      }
    });
  }
}

static void begin_i8g(float* c, const float* offsets, const float* row_sums, int64_t stride, int64_t segments, int64_t rows) {
  for (int64_t m = 0; m < rows; ++m, c += kPanel, offsets += segments)
    for (int j = 0; j < kVectors; ++j) {
      vreg sum = set1(offsets[0]) * load(row_sums + j * kWidth);
      for (int64_t s = 1; s < segments; ++s) sum += set1(offsets[s]) * load(row_sums + s * stride + j * kWidth);
      store(c + j * kWidth, sum);
    }
}

static void panel_product_i8g(float* c, const QuantizedRows& rows, const char* panel, int64_t k) {
  if (rows.count <= kFewRowsI8g)
    return with_rows<kFewRowsI8g>(rows.count, [&](auto height) {
      int8_groups_tile<height, Ask::ahead>(c, rows, 0, panel, 0, k);
    });
  if (rows.count <= 2 * kFewRowsI8g) product_i8g_in_tiles<kFewRowsI8g>(c, rows, panel, k);
  else product_i8g_in_tiles<kRowTileI8g>(c, rows, panel, k);
}

}  // namespace codegen_fast::cpu::CODEGEN_FAST_ISA
