// What one instruction set offers: plain functions over plain pointers, found through a table at run time.
// The ops in csrc/cpu/*.cpp check, plan and split the work; the functions here do a piece of it on one thread.
#pragma once

#include <cstdint>

#include "../../view.h"

namespace codegen_fast::cpu {

constexpr int kPanel = 32;      // rows of a weight that stand interleaved
constexpr int kQuad = 4;        // int8: neighbouring columns that stand together
constexpr int kGroup = 64;      // int8: columns that share one scale of the activations
constexpr int kPage = 16;       // tokens of a page of the cache
constexpr int kSplit = 256;     // keys that attention sums before it merges; a multiple of kPage
constexpr int kMaxHeadDim = 1024;

// Attention of one query over keys [first, first + count) of its sequence, not yet normalised:
// out = sum exp(score - max) v, sum = sum exp(score - max).
struct AttentionPartial {
  float max, sum;
};

struct Kernels {
  const char* name;

  // ---- rows
  // out[d] = (x - mean) / sqrt(var + eps) * weight + bias
  void (*layer_norm)(float* out, const float* x, const float* weight, const float* bias, float eps, int64_t d);
  // q[round4(n)], scales[ceil(n / kGroup)] from x[n]: one segment of a row of activations
  void (*quantize)(int8_t* q, float* scales, const float* x, int64_t n);
  // out[n] = gelu_new(x[n] + bias[n])
  void (*bias_gelu)(float* out, const float* x, const float* bias, int64_t n);
  // pairs (2i, 2i+1) of x[2n] turned by the angles whose cosines and sines are given
  void (*rotate)(float* x, const float* cosines, const float* sines, int64_t n);
  // out[i] = exp(z[i])
  void (*exponentials)(float* out, const float* z, int64_t n);
  // index of the first of the largest of x[n], n at least 1; -1 if any is NaN
  int64_t (*argmax)(const float* x, int64_t n);
  // The elements of ids, z and p, n each, where of[i] >= bound, moved to their beginnings in order; how many they are.
  // `of` may be z or p.
  int64_t (*keep_from)(int32_t* ids, float* z, float* p, const float* of, float bound, int64_t n);
  // sum of x[n], n a multiple of 256: nothing but reading, as fast as memory gives
  float (*read)(const float* x, int64_t n);
  // type conversion, round to nearest even; by DType f32, f16, bf16
  void (*to_f32)(float* out, const void* in, DType type, int64_t n);
  void (*from_f32)(void* out, const float* in, DType type, int64_t n);

  // ---- products: c[m][kPanel] += a[m][k] * panel, for m in [0, rows)
  // panel of f32, f16 or bf16: [k][kPanel]. Every element is summed in the order of k, whatever `rows` is.
  void (*panel_product)(float* c, const float* a, int64_t a_stride, const void* panel, DType type, int64_t rows,
                        int64_t k);
  // panel of i8: [ceil(k / kQuad)][kPanel][kQuad]; q, q_scales from quantize(); scales[kPanel] of the panel's rows.
  // Exact int32 sums in groups of kGroup columns; groups are scaled and summed in float in their order.
  void (*panel_product_i8)(float* c, const int8_t* q, int64_t q_stride, const float* q_scales,
                           int64_t q_scales_stride, const int8_t* panel, const float* scales, int64_t rows, int64_t k);

  // ---- cache and attention; a page holds, for every head, keys [D][kPage] and values [kPage][D]
  void (*append)(void* page, DType type, const float* key, const float* value, int64_t slot, int64_t first,
                 int64_t count, int64_t head_dim);
  AttentionPartial (*attend)(float* out, const float* q, const void* pages, int64_t page_elements, DType type,
                             const int32_t* page_ids, int64_t count, int64_t head, int64_t head_dim);
};

const Kernels& kernels_portable();
#ifdef CODEGEN_FAST_HAVE_AVX2
const Kernels& kernels_avx2();
#endif

}  // namespace codegen_fast::cpu
