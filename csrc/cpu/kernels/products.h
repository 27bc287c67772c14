// c += a * panel in floats, on one thread: with products_i8.h, the loops in which decoding and prefill spend their time.
#pragma once

#include <type_traits>

#include "simd.h"
#include "table.h"

namespace codegen_fast::cpu::CODEGEN_FAST_ISA {

constexpr int kVectors = kPanel / kWidth;

// Rows of activations that one pass over a panel serves: accumulators (kVectors a row), a panel's vectors and a
// broadcast value must stay in registers.
#if defined(__AVX512F__)
constexpr int kRowTile = 13;
#elif defined(__AVX2__) || defined(CODEGEN_FAST_NEON)
constexpr int kRowTile = 3;
#else
constexpr int kRowTile = 1;
#endif

// Columns after which a panel's slice is used for all rows before going on, so that it is read from L1 and not
// again from memory. Accumulators rest in c meanwhile, which changes no bit.
constexpr int64_t kColumnBlock = 256;

// How far ahead of its use a weight is asked for: a page boundary stops the hardware's prefetcher, this does not. Of 512
// to 16384 bytes these were the fastest with one row, where memory is fast by up to half (float16 at 512 bytes 56 GB/s,
// at 2048 39; int8 at 1024 61, at 2048 54; int4 at 1024 61, at 8192 29: 2 cores of Zen 4, a sum reads 57 to 60).
constexpr int64_t kPrefetchBytes = 1024;
// The same for floats: several rows take their time over 16-bit weights, and want them asked for earlier (8 rows of
// bfloat16: a step of 35 ms at 512 bytes, of 27 at 8192; 4 rows of float32: of 23 and of 30).
template <class T>
constexpr int64_t prefetch_bytes(int rows) { return sizeof(T) == 2 && rows >= 4 ? 8192 : 512; }

// Asks for a line of weights, into the second cache: asked for into the first, lines wait for one of its few buffers of
// misses, and a product of int8 with one row read 24 GB/s where it reads 34 so.
static inline void prefetch_weights(const void* p) { __builtin_prefetch(p, 0, 2); }

// f(std::integral_constant<int, n>) with n = rows, which is from 1 to Most.
template <int Most, class F>
static inline void with_rows(int64_t rows, F&& f) {
  if constexpr (Most > 1) {
    if (rows < Most) return with_rows<Most - 1>(rows, f);
  }
  f(std::integral_constant<int, Most>{});
}

// f(first row, constant number of rows) over rows in tiles of nearly equal height, none higher than Most.
template <int Most, class F>
static inline void for_tiles(int64_t rows, F&& f) {
  for (int64_t m = 0, tiles = (rows + Most - 1) / Most; tiles > 0; --tiles) {
    const int64_t height = (rows - m + tiles - 1) / tiles;
    with_rows<Most>(height, [&](auto n) { f(m, n); });
    m += height;
  }
}

template <class T, int Rows>
static inline void float_tile(float* c, const float* a, int64_t a_stride, const T* panel, int64_t k) {
  vreg sums[Rows][kVectors];
  for (int m = 0; m < Rows; ++m)
    for (int j = 0; j < kVectors; ++j) sums[m][j] = load(c + m * kPanel + j * kWidth);
  for (int64_t i = 0; i < k; ++i) {
    const T* w = panel + i * kPanel;
    for (int64_t b = 0; b < int64_t{kPanel * sizeof(T)}; b += 64)
      prefetch_weights(reinterpret_cast<const char*>(w) + prefetch_bytes<T>(Rows) + b);
    if constexpr (kVectors <= 2) {  // the panel's vectors stay, rows pass by
      vreg v[kVectors];
      for (int j = 0; j < kVectors; ++j) v[j] = load(w + j * kWidth);
#pragma GCC unroll 16
      for (int m = 0; m < Rows; ++m) {
        const vreg x = set1(a[m * a_stride + i]);
        for (int j = 0; j < kVectors; ++j) sums[m][j] = fma(x, v[j], sums[m][j]);
      }
    } else {
      vreg x[Rows];
      for (int m = 0; m < Rows; ++m) x[m] = set1(a[m * a_stride + i]);
#pragma GCC unroll 8
      for (int j = 0; j < kVectors; ++j) {
        const vreg wj = load(w + j * kWidth);
#pragma GCC unroll 4
        for (int m = 0; m < Rows; ++m) sums[m][j] = fma(x[m], wj, sums[m][j]);
      }
    }
  }
  for (int m = 0; m < Rows; ++m)
    for (int j = 0; j < kVectors; ++j) store(c + m * kPanel + j * kWidth, sums[m][j]);
}

template <class T>
static void float_panel(float* c, const float* a, int64_t a_stride, const void* panel, int64_t rows, int64_t k) {
  const T* w = static_cast<const T*>(panel);
  const int64_t block = rows <= kRowTile ? k : kColumnBlock;
  for (int64_t i = 0; i < k; i += block) {
    const int64_t n = k - i < block ? k - i : block;
    for_tiles<kRowTile>(rows, [&](int64_t m, auto height) {
      float_tile<T, height>(c + m * kPanel, a + m * a_stride + i, a_stride, w + i * kPanel, n);
    });
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

}  // namespace codegen_fast::cpu::CODEGEN_FAST_ISA
