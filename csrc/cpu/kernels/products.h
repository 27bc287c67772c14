// c += a * panel, on one thread: the loops in which decoding and prefill spend their time.
#pragma once

#include "simd.h"
#include "table.h"

namespace codegen_fast::cpu::CODEGEN_FAST_ISA {

constexpr int kVectors = kPanel / kWidth;

// Rows of activations that one pass over a panel serves: accumulators (kVectors a row) must stay in registers.
#if defined(__AVX2__)
constexpr int kRowTile = 3;
#else
constexpr int kRowTile = 1;
#endif

// Columns after which a panel's slice is used for all rows before going on, so that it is read from L1 and not
// again from memory. Accumulators rest in c meanwhile, which changes no bit.
constexpr int64_t kColumnBlock = 256;

// How far ahead of its use a weight is asked for. A page boundary stops the hardware's prefetcher, this does not.
constexpr int64_t kPrefetchBytes = 2048;

template <class T, int Rows>
static inline void float_tile(float* c, const float* a, int64_t a_stride, const T* panel, int64_t k) {
  vreg sums[Rows][kVectors];
  for (int m = 0; m < Rows; ++m)
    for (int j = 0; j < kVectors; ++j) sums[m][j] = load(c + m * kPanel + j * kWidth);
  for (int64_t i = 0; i < k; ++i) {
    const T* w = panel + i * kPanel;
    for (int64_t b = 0; b < int64_t{kPanel * sizeof(T)}; b += 64)
      __builtin_prefetch(reinterpret_cast<const char*>(w) + kPrefetchBytes + b);
    vreg x[Rows];
    for (int m = 0; m < Rows; ++m) x[m] = set1(a[m * a_stride + i]);
#pragma GCC unroll 8
    for (int j = 0; j < kVectors; ++j) {
      const vreg wj = load(w + j * kWidth);
#pragma GCC unroll 4
      for (int m = 0; m < Rows; ++m) sums[m][j] = fma(x[m], wj, sums[m][j]);
    }
  }
  for (int m = 0; m < Rows; ++m)
    for (int j = 0; j < kVectors; ++j) store(c + m * kPanel + j * kWidth, sums[m][j]);
}

template <class T, int Rows>
static inline void float_rows(float* c, const float* a, int64_t a_stride, const T* panel, int64_t rows, int64_t k) {
  int64_t m = 0;
  for (; m + Rows <= rows; m += Rows) float_tile<T, Rows>(c + m * kPanel, a + m * a_stride, a_stride, panel, k);
  if constexpr (Rows > 1)
    if (m < rows) float_rows<T, Rows - 1>(c + m * kPanel, a + m * a_stride, a_stride, panel, rows - m, k);
}

template <class T>
static void float_panel(float* c, const float* a, int64_t a_stride, const void* panel, int64_t rows, int64_t k) {
  const T* w = static_cast<const T*>(panel);
  if (rows <= kRowTile) return float_rows<T, kRowTile>(c, a, a_stride, w, rows, k);
  for (int64_t i = 0; i < k; i += kColumnBlock) {
    const int64_t n = k - i < kColumnBlock ? k - i : kColumnBlock;
    float_rows<T, kRowTile>(c, a + i, a_stride, w + i * kPanel, rows, n);
  }
}

static void panel_product(float* c, const float* a, int64_t a_stride, const void* panel, DType type, int64_t rows,
                          int64_t k) {
  switch (type) {
    case DType::f32: return float_panel<float>(c, a, a_stride, panel, rows, k);
    case DType::f16: return float_panel<half>(c, a, a_stride, panel, rows, k);
    default: return float_panel<bfloat>(c, a, a_stride, panel, rows, k);
  }
}

// One group: exact int32 dot products of `quads` quads of columns, Rows rows by one panel.
template <int Rows>
static inline void int8_group(ireg (&sums)[Rows][kVectors], const int8_t* q, int64_t q_stride, const int8_t* panel,
                              int64_t quads) {
  for (int m = 0; m < Rows; ++m)
    for (int j = 0; j < kVectors; ++j) sums[m][j] = ireg{};
  for (int64_t i = 0; i < quads; ++i) {
    const int8_t* w = panel + i * kPanel * kQuad;
#if defined(__AVX2__)
    for (int b = 0; b < kPanel * kQuad; b += 64)
      __builtin_prefetch(reinterpret_cast<const char*>(w) + kPrefetchBytes + b);
    const __m256i ones = _mm256_set1_epi16(1);
    __m256i x[Rows];
    for (int m = 0; m < Rows; ++m) {
      int32_t quad;
      std::memcpy(&quad, q + m * q_stride + i * kQuad, 4);
      x[m] = _mm256_set1_epi32(quad);
    }
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) {
      const __m256i wj = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(w + j * 32));
      // maddubs multiplies unsigned by signed: |w| * (x with w's sign). Both stay within 127, so a pair's sum stays
      // within 32258 and cannot saturate.
      const __m256i magnitude = _mm256_abs_epi8(wj);
#pragma GCC unroll 4
      for (int m = 0; m < Rows; ++m) {
        const __m256i pairs = _mm256_maddubs_epi16(magnitude, _mm256_sign_epi8(x[m], wj));
        sums[m][j] = reinterpret_cast<ireg>(
            _mm256_add_epi32(reinterpret_cast<__m256i>(sums[m][j]), _mm256_madd_epi16(pairs, ones)));
      }
    }
#else
    for (int m = 0; m < Rows; ++m) {
      const int8_t* x = q + m * q_stride + i * kQuad;
      for (int j = 0; j < kVectors; ++j)
        for (int lane = 0; lane < kWidth; ++lane) {
          const int8_t* v = w + (j * kWidth + lane) * kQuad;
          sums[m][j][lane] += v[0] * x[0] + v[1] * x[1] + v[2] * x[2] + v[3] * x[3];
        }
    }
#endif
  }
}

template <int Rows>
static inline void int8_tile(float* c, const int8_t* q, int64_t q_stride, const float* q_scales,
                             int64_t q_scales_stride, const int8_t* panel, const float* scales, int64_t k) {
  constexpr int64_t group_quads = kGroup / kQuad;
  const int64_t quads = (k + kQuad - 1) / kQuad;
  float totals[Rows][kPanel] = {};
  ireg sums[Rows][kVectors];
  for (int64_t first = 0, group = 0; first < quads; first += group_quads, ++group) {
    const int64_t n = quads - first < group_quads ? quads - first : group_quads;
    int8_group<Rows>(sums, q + first * kQuad, q_stride, panel + first * kPanel * kQuad, n);
    for (int m = 0; m < Rows; ++m) {
      const vreg scale = set1(q_scales[m * q_scales_stride + group]);
      for (int j = 0; j < kVectors; ++j)
        store(totals[m] + j * kWidth,
              fma(__builtin_convertvector(sums[m][j], vreg), scale, load(totals[m] + j * kWidth)));
    }
  }
  for (int m = 0; m < Rows; ++m)
    for (int j = 0; j < kVectors; ++j)
      store(c + m * kPanel + j * kWidth, fma(load(totals[m] + j * kWidth), load(scales + j * kWidth),
                                             load(c + m * kPanel + j * kWidth)));
}

template <int Rows>
static inline void int8_rows(float* c, const int8_t* q, int64_t q_stride, const float* q_scales,
                             int64_t q_scales_stride, const int8_t* panel, const float* scales, int64_t rows,
                             int64_t k) {
  int64_t m = 0;
  for (; m + Rows <= rows; m += Rows)
    int8_tile<Rows>(c + m * kPanel, q + m * q_stride, q_stride, q_scales + m * q_scales_stride, q_scales_stride,
                    panel, scales, k);
  if constexpr (Rows > 1)
    if (m < rows)
      int8_rows<Rows - 1>(c + m * kPanel, q + m * q_stride, q_stride, q_scales + m * q_scales_stride,
                          q_scales_stride, panel, scales, rows - m, k);
}

static void panel_product_i8(float* c, const int8_t* q, int64_t q_stride, const float* q_scales,
                             int64_t q_scales_stride, const int8_t* panel, const float* scales, int64_t rows,
                             int64_t k) {
  int8_rows<kRowTile>(c, q, q_stride, q_scales, q_scales_stride, panel, scales, rows, k);
}

}  // namespace codegen_fast::cpu::CODEGEN_FAST_ISA
